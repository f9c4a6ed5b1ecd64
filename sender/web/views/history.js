/** History: images, machines and results of all casts. */

import { all } from "../api.js";
import { h } from "../dom.js";
import { field, select } from "../forms.js";
import { formatBytes, formatDuration } from "../format.js";
import { badge, timeElement } from "../components.js";
import { recordPage } from "../record_page.js";
import { to } from "../router.js";
import { roomName, roomNames } from "../store.js";
import { needsAttention, MACHINE_STATES, machineLabel } from "../labels.js";

const STATES = ["complete", "failed", "lost", "dropped"];

/**
 * @param {import("../app.js").PageContext} context
 * @returns {Promise<import("../app.js").Page>}
 */
export async function show(context) {
  const images = await all("/images", {}, context.signal);
  return recordPage({
    title: "History",
    lead: "Images, machines and results of all casts.",
    name: "history",
    fields: [
      choice("Room", "room_id", [...roomNames].map(([id, name]) => [id, name || id])),
      choice("Image", "image_id", images.map((image) => [image.image_id, image.name])),
      choice("Result", "state", STATES.map((state) => [state, MACHINE_STATES[state].label])),
      field({ label: "From", name: "since", type: "date" }),
      field({ label: "Until", name: "until", type: "date" }),
    ],
    linked: ["cast_id", "machine_id"],
    columns: columns(),
    nothing: "No matching results.",
  }, context);
}

/** @param {string} label @param {string} name @param {[string, string][]} options */
function choice(label, name, options) {
  return field({ label, name, input: select({ name, options: [["", "Any"], ...options] }) });
}

/** @param {any} line @returns {boolean} true if its cast may still run: the line is as old as the last saved progress */
function isUnderWay(line) {
  return !line.ended_at && line.state !== "complete" && !needsAttention(line.state);
}

/** @param {any} line */
function imageLink(line) {
  return h("a", { href: to(["casts", line.cast_id]) }, line.image_name);
}

/** @returns {import("../components.js").Column[]} */
function columns() {
  return [
    { label: "Machine", class: "main", cell: (line) => [line.machine_id ? h("a", { href: to(["machines", line.machine_id]) }, line.machine_name) : line.machine_name, h("p", { class: "small muted phone-only" }, imageLink(line), line.ended_at && [" · ", timeElement(line.ended_at)]), line.error && h("p", { class: "small bad-text reason" }, line.error)] },
    { label: "Result", cell: (line) => (isUnderWay(line) ? h("a", { href: to(["casts", line.cast_id]) }, "In progress") : badge(machineLabel(line.state))) },
    { label: "Image", class: "wide-only", cell: imageLink },
    { label: "Room", class: "wide-only nowrap", cell: (line) => (line.room_id ? roomName(line.room_id) : "–") },
    { label: "Verified", class: "number wide-only", cell: (line) => (isUnderWay(line) ? "–" : `${formatBytes(line.bytes_verified)}${line.patch_id ? ", customised" : ""}`) },
    { label: "Took", class: "number wide-only", cell: (line) => (isUnderWay(line) ? "–" : formatDuration(line.seconds)) },
    { label: "Ended", class: "wide-only nowrap", cell: (line) => timeElement(line.ended_at) },
    { label: "By", class: "wide-only", cell: (line) => line.created_by },
  ];
}
