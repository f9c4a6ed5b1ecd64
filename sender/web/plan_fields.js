/** The fields of a cast's plan, for a new cast and for a schedule: image, room, what begins it, and how fast. */

import { all } from "./api.js";
import { fill, h } from "./dom.js";
import { choices, field, fieldProblem, select } from "./forms.js";
import { formatBytes, formatCount, parseRate, zoneHere } from "./format.js";
import { roomNames } from "./store.js";

/**
 * @param {AbortSignal} signal
 * @returns {Promise<{images: any[], rooms: any[]}>} what can be chosen
 */
export async function readChoices(signal) {
  const [images, rooms] = await Promise.all([all("/images", {}, signal), all("/rooms", {}, signal)]);
  for (const room of rooms) roomNames.set(room.room_id, room.name);
  return { images: images.filter((image) => ["available", "remote", "fetching"].includes(image.state)), rooms };
}

/**
 * @param {{images: any[], rooms: any[], preset: {image?: string, room?: string, machines?: string[], plan?: any}, timed: boolean, signal: AbortSignal}} options
 *   timed: a start at a time can be chosen (a schedule has its own)
 */
export function planFields({ images, rooms, preset, timed, signal }) {
  const given = preset.plan ?? {};
  const image = field({
    label: "Image", name: "image", required: true,
    input: select({ name: "image", required: true, value: preset.image ?? (images.length === 1 ? images[0].image_id : ""), options: [["", "Choose an image"], ...images.map((each) => /** @type {[string, string]} */ ([each.image_id, imageWords(each)]))] }),
  });
  const room = field({
    label: "Room", name: "room_id",
    input: select({ name: "room_id", value: preset.room ?? (rooms.length === 1 ? rooms[0].room_id : ""), options: [["", "Any machine that joins"], ...rooms.map((each) => /** @type {[string, string]} */ ([each.room_id, `${each.name || each.room_id} (${formatCount(each.machine_count, "machine")})`]))] }),
  });
  const name = field({ label: timed ? "Name" : "Name of its casts", name: "name", value: given.name ?? "", hint: "For people. Empty: the image's name.", attributes: { maxlength: 64 } });
  const picker = machinePicker(room.input, new Set(preset.machines ?? given.machine_ids ?? []), signal);

  const waitFor = field({ label: "Machines that must have joined", name: "wait_for", type: "number", value: given.wait_for ?? "", hint: "Empty: all of the room.", attributes: { min: 1, max: 100000, inputmode: "numeric" } });
  const maxWait = field({ label: "Begin with whoever is there after (minutes)", name: "max_wait_s", type: "number", value: given.max_wait_s === null ? "" : (given.max_wait_s ?? 300) / 60, hint: "Empty: wait for ever.", attributes: { min: 0.1, max: 1440, step: "any", inputmode: "decimal" } });
  const startAt = field({ label: "Time", name: "start_at", type: "datetime-local", hint: `In this device's time zone, ${zoneHere()}.` });
  const start = choices({
    legend: "Begin", name: "start", value: given.start ?? "joined",
    options: [
      { value: "joined", label: "When machines have joined", more: h("div", { class: "field-row" }, waitFor.element, maxWait.element) },
      { value: "manual", label: "By hand", hint: "Machines gather until somebody presses “Begin now”." },
      ...(timed ? [{ value: "at", label: "At a time", hint: "Machines gather from then on, and it begins when they have joined.", more: startAt.element }] : []),
    ],
  });

  const rate = field({ label: "Rate", name: "rate_bytes_per_s", hint: "Bits per second, e.g. 800M. It isn't changed by loss.", value: given.rate_bytes_per_s ? rateText(given.rate_bytes_per_s) : "" });
  const ceiling = field({ label: "At most", name: "rate_max_bytes_per_s", hint: "Bits per second, e.g. 900M. Empty: no limit of this cast's own.", value: given.rate_max_bytes_per_s ? rateText(given.rate_max_bytes_per_s) : "" });
  const pace = choices({
    legend: "Rate", name: "pace", value: given.rate_bytes_per_s ? "fixed" : "automatic",
    options: [
      { value: "automatic", label: "Automatic", hint: "As fast as network and disks take it.", more: ceiling.element },
      { value: "fixed", label: "Fixed", more: rate.element },
    ],
  });
  const share = h("input", { type: "checkbox", name: "share", id: "plan-share", checked: Boolean(given.share) });
  const below = field({ label: "Slow is below (per cent of the group)", name: "slow_below", type: "number", value: Math.round((given.slow_below ?? 0.3) * 100), attributes: { min: 1, max: 90 } });
  const slowFor = field({ label: "for (seconds)", name: "slow_for_s", type: "number", value: given.slow_for_s ?? 10, attributes: { min: 0.5, max: 3600, step: "any" } });
  const slow = choices({
    legend: "A machine that is much slower than the others", name: "slow", value: given.slow ?? "demote",
    options: [
      { value: "demote", label: "Finish it afterwards", hint: "The others go on at full rate." },
      { value: "wait", label: "Wait for it", hint: "Everybody goes at its rate." },
      { value: "drop", label: "Give it up" },
    ],
  });

  const element = [
    h("div", { class: "field-row" }, image.element, room.element),
    picker.element,
    name.element,
    start.element,
    h("details", { class: "advanced" }, h("summary", {}, "More: rate, slow machines"),
      h("div", { class: "advanced-body" }, pace.element,
        h("div", { class: "check" }, share, h("label", { for: "plan-share" }, "Leave other traffic its share")),
        slow.element, h("div", { class: "field-row" }, below.element, slowFor.element))),
  ];
  const fields = [image, room, name, waitFor, maxWait, startAt, rate, ceiling, below, slowFor];

  const read = () => {
    const mode = start.read();
    const plan = /** @type {Record<string, any>} */ ({
      image: image.input.value,
      room_id: room.input.value || null,
      machine_ids: picker.read(),
      name: name.input.value.trim(),
      start: mode === "manual" ? "manual" : "joined",
      start_at: null,
      wait_for: waitFor.input.value ? Number(waitFor.input.value) : null,
      max_wait_s: maxWait.input.value ? Number(maxWait.input.value) * 60 : null,
      rate_bytes_per_s: pace.read() === "fixed" ? readRate(rate, true) : null,
      rate_max_bytes_per_s: pace.read() === "automatic" ? readRate(ceiling, false) : null,
      share: share.checked,
      slow: slow.read(),
      slow_below: Number(below.input.value) / 100,
      slow_for_s: Number(slowFor.input.value),
    });
    if (mode === "at") {
      const at = new Date(startAt.input.value);
      if (!startAt.input.value || Number.isNaN(at.getTime())) throw fieldProblem("start_at", "Choose a day and a time.");
      if (at.getTime() < Date.now()) throw fieldProblem("start_at", "That time is over. Choose one to come.");
      plan.start_at = at.toISOString();
    }
    return plan;
  };
  return { element, fields, read, image, room, machineCount: () => picker.read().length || rooms.find((each) => each.room_id === room.input.value)?.machine_count || null };
}

/** @param {any} image */
function imageWords(image) {
  const size = image.raw_bytes ? `, ${formatBytes(image.raw_bytes)}` : "";
  return `${image.name}${size}${image.state === "available" ? "" : " (is fetched first)"}`;
}

/** @param {number} bytesPerSecond as it is typed */
function rateText(bytesPerSecond) {
  return `${(bytesPerSecond * 8) / 1e6}M`;
}

/** @param {import("./forms.js").Field} source @param {boolean} needed @returns {number | null} */
function readRate(source, needed) {
  const text = source.input.value.trim();
  if (!text && !needed) return null;
  const rate = parseRate(text);
  if (rate === null) throw fieldProblem(source.name, "That isn't a rate: write for example 800M or 1.5G.");
  return rate;
}

/**
 * Only some of a room's machines.
 * @param {HTMLSelectElement} room
 * @param {Set<string>} chosen
 * @param {AbortSignal} signal
 */
function machinePicker(room, chosen, signal) {
  const list = h("div", { class: "picker-list" });
  const summary = h("summary", {}, "All of its machines");
  const element = h("details", { class: "picker", hidden: true }, summary, list);
  const words = () => { summary.textContent = chosen.size ? `Only ${formatCount(chosen.size, "machine")}` : "All of its machines (choose some)"; };
  const load = async () => {
    element.hidden = !room.value;
    words();
    if (!room.value) return;
    const machines = await all("/machines", { room_id: room.value }, signal);
    const known = new Set(machines.map((machine) => machine.machine_id));
    for (const id of [...chosen]) if (!known.has(id)) chosen.delete(id);
    fill(list, h("fieldset", {}, h("legend", { class: "visually-hidden" }, "Only these machines"), machines.map((machine) => {
      const id = `pick-${machine.machine_id}`;
      const box = h("input", { type: "checkbox", id, checked: chosen.has(machine.machine_id) });
      box.addEventListener("change", () => {
        if (box.checked) chosen.add(machine.machine_id);
        else chosen.delete(machine.machine_id);
        words();
      });
      return h("div", { class: "check" }, box, h("label", { for: id }, machine.name));
    })));
    words();
  };
  room.addEventListener("change", () => {
    chosen.clear();
    load().catch(() => {});
  });
  if (chosen.size) element.setAttribute("open", "");
  load().catch(() => {});
  return { element, read: () => (room.value ? [...chosen] : []) };
}
