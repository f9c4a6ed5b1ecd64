/** Form fields of a cast's plan, for new casts and schedules: image, room, start condition, rate. */

import { all } from "./api.js";
import { fill, h } from "./dom.js";
import { referenceOf } from "./image_text.js";
import { choices, field, fieldProblem, select } from "./forms.js";
import { formatBytes, formatCount, parseRate, localTimeZone } from "./format.js";
import { SLOW_POLICIES, START_MODES } from "./labels.generated.js";
import { roomNames } from "./store.js";

/**
 * @param {AbortSignal} signal
 * @returns {Promise<{images: any[], rooms: any[]}>} the options
 */
export async function readChoices(signal) {
  const [images, rooms] = await Promise.all([all("/images", {}, signal), all("/rooms", {}, signal)]);
  for (const room of rooms) roomNames.set(room.room_id, room.name);
  return { images: images.filter((image) => ["available", "remote", "fetching"].includes(image.state)), rooms };
}

/**
 * @param {{images: any[], rooms: any[], preset: {image?: string, room?: string, machines?: string[], plan?: any}, timed: boolean, signal: AbortSignal}} options
 *   timed: offer a start time (a schedule has its own)
 */
export function planFields({ images, rooms, preset, timed, signal }) {
  const given = preset.plan ?? {};
  const image = field({
    label: "Image", name: "image", required: true,
    input: select({ name: "image", required: true, value: preset.image ?? (images.length === 1 ? images[0].image_id : ""), options: [["", "Choose an image"], ...(timed ? [] : newestOptions(images)), ...images.map((each) => /** @type {[string, string]} */ ([each.image_id, imageText(each)]))] }),
  });
  const room = field({
    label: "Room", name: "room_id",
    input: select({ name: "room_id", value: preset.room ?? (rooms.length === 1 ? rooms[0].room_id : ""), required: true, options: [["", "Choose a room"], ...rooms.map((each) => /** @type {[string, string]} */ ([each.room_id, `${each.name || each.room_id} (${formatCount(each.machine_count, "machine")})`]))] }),
  });
  const name = field({ label: timed ? "Name" : "Name of the casts", name: "name", value: given.name ?? "", hint: "Optional. Default: the name of the image.", attributes: { maxlength: 64 } });
  const picker = machinePicker(room.input, new Set(preset.machines ?? given.machine_ids ?? []), signal);

  const waitFor = field({ label: "Required machines", name: "wait_for", type: "number", value: given.wait_for ?? "", hint: "Empty: all machines of the room.", attributes: { min: 1, max: 1024, inputmode: "numeric" } });
  const maxWait = field({ label: "Start anyway after (minutes)", name: "max_wait_s", type: "number", value: given.max_wait_s === null ? "" : (given.max_wait_s ?? 300) / 60, hint: "Empty: no time limit.", attributes: { min: 0.1, max: 1440, step: "any", inputmode: "decimal" } });
  const startAt = field({ label: "Time", name: "start_at", type: "datetime-local", hint: `In this device's time zone, ${localTimeZone()}.` });
  const start = choices({
    legend: "Start", name: "start", value: given.start ?? "joined",
    options: [
      { value: "joined", label: START_MODES.joined.text, hint: START_MODES.joined.hint, more: h("div", { class: "field-row" }, waitFor.element, maxWait.element) },
      { value: "manual", label: START_MODES.manual.text, hint: START_MODES.manual.hint },
      ...(timed ? [{ value: "at", label: "At a set time", hint: "Machines gather from that time on; data starts when they have joined.", more: startAt.element }] : []),
    ],
  });

  const rate = field({ label: "Rate", name: "rate_bytes_per_s", hint: "Bits per second, e.g. 800M. Loss doesn't change it.", value: given.rate_bytes_per_s ? rateText(given.rate_bytes_per_s) : "" });
  const ceiling = field({ label: "Maximum", name: "rate_max_bytes_per_s", hint: "Bits per second, e.g. 900M. Empty: no limit.", value: given.rate_max_bytes_per_s ? rateText(given.rate_max_bytes_per_s) : "" });
  const pace = choices({
    legend: "Rate", name: "pace", value: given.rate_bytes_per_s ? "fixed" : "automatic",
    options: [
      { value: "automatic", label: "Automatic", hint: "As fast as network and disks allow.", more: ceiling.element },
      { value: "fixed", label: "Fixed", more: rate.element },
    ],
  });
  const share = h("input", { type: "checkbox", name: "share", id: "plan-share", checked: Boolean(given.share) });
  const encrypt = h("input", { type: "checkbox", name: "encrypt", id: "plan-encrypt", checked: Boolean(given.encrypt) });
  const wake = h("input", { type: "checkbox", name: "wake", id: "plan-wake", checked: Boolean(given.wake) });
  const plain = h("input", { type: "checkbox", name: "plain", id: "plan-plain", checked: Boolean(given.plain) });
  const below = field({ label: "Slow below (percent of the group's rate)", name: "slow_below", type: "number", value: Math.round((given.slow_below ?? 0.3) * 100), attributes: { min: 1, max: 90 } });
  const slowFor = field({ label: "for (seconds)", name: "slow_for_s", type: "number", value: given.slow_for_s ?? 10, attributes: { min: 0.5, max: 3600, step: "any" } });
  const slow = choices({
    legend: "A machine that is much slower than the others", name: "slow", value: given.slow ?? "demote",
    options: Object.entries(SLOW_POLICIES).map(([value, { text, hint }]) => ({ value, label: text, hint })),
  });

  const element = [
    h("div", { class: "field-row" }, image.element, room.element),
    picker.element,
    name.element,
    start.element,
    h("div", { class: "check" }, wake, h("label", { for: "plan-wake" }, "Wake the machines first, by Wake-on-LAN")),
    h("details", { class: "advanced" }, h("summary", {}, "More options: rate, encryption, slow machines"),
      h("div", { class: "advanced-body" }, pace.element,
        h("div", { class: "check" }, share, h("label", { for: "plan-share" }, "Share the link with other traffic")),
        h("div", { class: "check" }, encrypt, h("label", { for: "plan-encrypt" }, "Encrypt the data on the network")),
        h("div", { class: "check" }, plain, h("label", { for: "plan-plain" }, "Cast the image as it is, without the settings of single machines")),
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
      encrypt: encrypt.checked,
      wake: wake.checked,
      plain: plain.checked,
      slow: slow.read(),
      slow_below: Number(below.input.value) / 100,
      slow_for_s: Number(slowFor.input.value),
    });
    if (mode === "at") {
      const at = new Date(startAt.input.value);
      if (!startAt.input.value || Number.isNaN(at.getTime())) throw fieldProblem("start_at", "Choose a day and a time.");
      if (at.getTime() < Date.now()) throw fieldProblem("start_at", "That time is in the past. Choose a future time.");
      plan.start_at = at.toISOString();
    }
    return plan;
  };
  return { element, fields, read, image, room, machineCount: () => picker.read().length || rooms.find((each) => each.room_id === room.input.value)?.machine_count || null };
}

/** @param {any[]} images @returns {[string, string][]} a schedule's choices that follow the newest version of a name */
function newestOptions(images) {
  return images.filter((image) => image.latest).map((image) => [`${image.name}@latest`, `${image.name}: always the newest version`]);
}

/** @param {any} image */
function imageText(image) {
  const size = image.raw_bytes ? `, ${formatBytes(image.raw_bytes)}` : "";
  return `${referenceOf(image)}${size}${image.state === "available" ? "" : " (will be fetched first)"}`;
}

/** @param {number} bytesPerSecond as it is typed */
function rateText(bytesPerSecond) {
  return `${(bytesPerSecond * 8) / 1e6}M`;
}

/** @param {import("./forms.js").Field} source @param {boolean} required @returns {number | null} */
function readRate(source, required) {
  const text = source.input.value.trim();
  if (!text && !required) return null;
  const rate = parseRate(text);
  if (rate === null) throw fieldProblem(source.name, "Not a rate: write for example 800M or 1.5G.");
  return rate;
}

/**
 * Picks some machines of a room.
 * @param {HTMLSelectElement} room
 * @param {Set<string>} chosen
 * @param {AbortSignal} signal
 */
function machinePicker(room, chosen, signal) {
  const list = h("div", { class: "picker-list" });
  const summary = h("summary", {}, "All machines of the room");
  const element = h("details", { class: "picker", hidden: true }, summary, list);
  const showCount = () => { summary.textContent = chosen.size ? `Only ${formatCount(chosen.size, "machine")}` : "All machines of the room (choose some)"; };
  const load = async () => {
    element.hidden = !room.value;
    showCount();
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
        showCount();
      });
      return h("div", { class: "check" }, box, h("label", { for: id }, machine.name));
    })));
    showCount();
  };
  room.addEventListener("change", () => {
    chosen.clear();
    load().catch(() => {});
  });
  if (chosen.size) element.setAttribute("open", "");
  load().catch(() => {});
  return { element, read: () => (room.value ? [...chosen] : []) };
}
