/** History: which image went to which machine, with which result. */

import { all, get, queryText } from "../api.js";
import { fill, h, icon } from "../dom.js";
import { field, select } from "../forms.js";
import { formatBytes, formatDuration } from "../format.js";
import { noticeError } from "../notices.js";
import { badge, emptyState, pagedTable, pageHead, timeElement } from "../parts.js";
import { go, to } from "../router.js";
import { roomName, roomNames } from "../store.js";
import { MACHINE_STATES, machineLook } from "../words.js";

const FILTERS = ["room_id", "image_id", "machine_id", "cast_id", "state", "since", "until"];
const STATES = ["complete", "failed", "lost", "dropped"];

/**
 * @param {import("../app.js").PageContext} context
 * @returns {Promise<import("../app.js").Page>}
 */
export async function show({ query, signal }) {
  const filters = readFilters(query);
  const images = await all("/images", {}, signal);
  const list = h("div", { class: "card" });
  const csv = h("a", { class: "button", download: "history.csv" }, icon("download"), "As CSV");
  const load = async () => {
    csv.href = `/api/v1/history.csv${queryText(asked(filters))}`;
    fill(list, await pagedTable({ caption: "History", columns: columns(), load: (cursor) => get("/history", { ...asked(filters), cursor, limit: 50 }, signal), empty: () => emptyState("history", "History has nothing like that."), report: noticeError }));
  };
  const bar = filterBar(filters, images);
  await load();
  return {
    title: "History",
    element: h("div", {}, pageHead("History", { lead: "Which image went to which machine, with which result.", actions: csv }), bar.element, list),
    update: (_params, next) => {
      Object.assign(filters, readFilters(next));
      bar.show(filters);
      load().catch(noticeError);
      return true;
    },
  };
}

/** @param {URLSearchParams} query @returns {Record<string, string>} */
function readFilters(query) {
  return Object.fromEntries(FILTERS.map((name) => [name, query.get(name) ?? ""]));
}

/** @param {Record<string, string>} filters what the daemon is asked: days as instants of this device's time zone */
function asked(filters) {
  const { since, until, ...rest } = filters;
  const day = (/** @type {string} */ text, /** @type {number} */ later) => {
    if (!text) return "";
    const at = new Date(`${text}T00:00:00`);
    at.setDate(at.getDate() + later);
    return at.toISOString();
  };
  return { ...rest, since: day(since, 0), until: day(until, 1) };
}

/** @param {Record<string, string>} filters @param {any[]} images */
function filterBar(filters, images) {
  const room = field({ label: "Room", name: "room_id", input: select({ name: "room_id", options: [["", "Any"], ...[...roomNames].map(([id, name]) => /** @type {[string, string]} */ ([id, name || id]))] }) });
  const image = field({ label: "Image", name: "image_id", input: select({ name: "image_id", options: [["", "Any"], ...images.map((each) => /** @type {[string, string]} */ ([each.image_id, each.name]))] }) });
  const state = field({ label: "Result", name: "state", input: select({ name: "state", options: [["", "Any"], ...STATES.map((key) => /** @type {[string, string]} */ ([key, MACHINE_STATES[key].label]))] }) });
  const since = field({ label: "From", name: "since", type: "date" });
  const until = field({ label: "Until", name: "until", type: "date" });
  const fields = [room, image, state, since, until];
  const note = h("p", { class: "filter-note", hidden: true });
  const apply = () => go(to(["history"], Object.fromEntries(fields.map((each) => [each.name, each.input.value]))));
  for (const each of fields) each.input.addEventListener("change", apply);
  const showFilters = (/** @type {Record<string, string>} */ values) => {
    for (const each of fields) each.input.value = values[each.name];
    const extra = [values.cast_id && `cast ${values.cast_id}`, values.machine_id && `machine ${values.machine_id}`].filter(Boolean).join(", ");
    note.hidden = !extra;
    fill(note, extra && [`Only ${extra}. `, h("a", { href: "#/history" }, "Show all")]);
  };
  showFilters(filters);
  return { element: h("form", { class: "filters", role: "search", "aria-label": "History", onsubmit: (/** @type {Event} */ event) => event.preventDefault() }, fields.map((each) => each.element), note), show: showFilters };
}

/** @returns {import("../parts.js").Column[]} */
function columns() {
  return [
    { label: "Machine", class: "main", cell: (line) => [line.machine_id ? h("a", { href: to(["machines", line.machine_id]) }, line.machine_name) : line.machine_name, h("p", { class: "small muted phone-only" }, timeElement(line.ended_at)), line.error && h("p", { class: "small bad-text reason" }, line.error)] },
    { label: "Result", cell: (line) => badge(machineLook(line.state)) },
    { label: "Image", cell: (line) => h("a", { href: to(["casts", line.cast_id]) }, line.image_name) },
    { label: "Room", class: "wide-only nowrap", cell: (line) => (line.room_id ? roomName(line.room_id) : "–") },
    { label: "Verified", class: "number wide-only", cell: (line) => formatBytes(line.bytes_verified) },
    { label: "Took", class: "number wide-only", cell: (line) => formatDuration(line.seconds) },
    { label: "Ended", class: "wide-only nowrap", cell: (line) => timeElement(line.ended_at) },
    { label: "By", class: "wide-only", cell: (line) => line.created_by },
  ];
}
