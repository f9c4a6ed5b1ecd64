/** Schedules: recurring casts. */

import { all, change, create, remove } from "../api.js";
import { confirmDialog, showDialog } from "../dialogs.js";
import { h, icon } from "../dom.js";
import { field, form, select } from "../forms.js";
import { referenceOf } from "../image_text.js";
import { localTimeZone } from "../format.js";
import { showToast, showError } from "../toasts.js";
import { emptyState, pageHead, timeElement } from "../components.js";
import { planFields, readChoices } from "../plan_fields.js";
import { to } from "../router.js";
import { mayOperate, roomName } from "../store.js";
import { sentence } from "../labels.js";

/** @type {[string, string][]} */
const DAYS = [["*", "every day"], ["1-5", "Monday to Friday"], ["1", "Mondays"], ["2", "Tuesdays"], ["3", "Wednesdays"], ["4", "Thursdays"], ["5", "Fridays"], ["6", "Saturdays"], ["0", "Sundays"]];

/** @param {string} cron @returns {{day: [string, string], time: string} | null} null for unusual cron lines */
function usualTime(cron) {
  const match = /^(\d{1,2}) (\d{1,2}) \* \* (\S+)$/.exec(cron.trim());
  const day = match && DAYS.find(([key]) => key === match[3]);
  return match && day ? { day, time: `${match[2].padStart(2, "0")}:${match[1].padStart(2, "0")}` } : null;
}

/** @param {string} cron @returns {string} as text for usual cron lines, otherwise unchanged */
function cronText(cron) {
  const usual = usualTime(cron);
  return usual ? `${usual.day[1]} at ${usual.time}` : cron;
}

/**
 * @param {import("../app.js").PageContext} context
 * @returns {Promise<import("../app.js").Page>}
 */
export async function show({ signal, reload }) {
  const [schedules, { images, rooms }] = await Promise.all([all("/schedules", {}, signal), readChoices(signal)]);
  const names = new Map(images.map((image) => [image.image_id, referenceOf(image)]));
  return {
    title: "Schedules",
    element: h("div", {},
      pageHead("Schedules", { actions: mayOperate() && h("button", { type: "button", class: "button primary", onclick: () => editSchedule(null, images, rooms, signal, reload) }, icon("plus"), "New schedule") }),
      schedules.length
        ? h("ul", { class: "schedule-cards", role: "list" }, schedules.map((schedule) => scheduleCard(schedule, names, () => editSchedule(schedule, images, rooms, signal, reload), reload)))
        : emptyState("schedule", "No schedules yet.", h("p", {}, "A schedule casts an image to a room repeatedly, such as every night or every Friday."))),
  };
}

/** @param {any} schedule @param {Map<string, string>} names @param {() => void} edit @param {() => void} done */
function scheduleCard(schedule, names, edit, done) {
  const toggle = async () => {
    try {
      await change(pathOf(schedule), { enabled: !schedule.enabled });
      showToast(schedule.enabled ? `${schedule.name} disabled` : `${schedule.name} enabled`);
      done();
    } catch (error) {
      showError(error);
    }
  };
  const drop = async () => {
    if (!(await confirmDialog({ title: `Remove ${schedule.name}?`, text: "It creates no more casts. Its previous casts stay in history.", yes: "Remove the schedule", danger: true }))) return;
    try {
      await remove(pathOf(schedule));
      showToast(`${schedule.name} removed`);
      done();
    } catch (error) {
      showError(error);
    }
  };
  const follows = schedule.plan.latest_of;
  const image = follows ? `${follows}@latest` : (names.get(schedule.plan.image_id) ?? schedule.plan.image_id.slice(0, 8));
  return h("li", { class: "card schedule-card", "data-tone": schedule.enabled ? "busy" : "off" },
    h("div", { class: "schedule-head" }, h("div", {}, h("h2", {}, schedule.name), h("p", { class: "muted" }, `${image} → ${roomName(schedule.plan.room_id)}`)),
      mayOperate() ? h("button", { type: "button", class: "switch", role: "switch", "aria-checked": String(schedule.enabled), onclick: toggle, "aria-label": `${schedule.name} enabled` }, h("span", { class: "switch-knob" })) : h("span", { class: "muted" }, schedule.enabled ? "on" : "off")),
    schedule.problem && h("div", { class: "alert", "data-tone": "bad" }, icon("warning"), h("p", {}, sentence(schedule.problem))),
    h("dl", { class: "pairs" },
      pair("Image", follows ? `The newest version of ${follows}` : `Always ${image}`),
      pair("When", [cronText(schedule.cron), h("span", { class: "muted" }, ` · ${schedule.time_zone}`)]),
      pair("Next", schedule.enabled ? [timeElement(schedule.next_at), schedule.next_at && schedule.time_zone !== localTimeZone() && h("span", { class: "muted" }, ` · ${localTimeZone()}`)] : "disabled"),
      schedule.last_cast_id && pair("Last cast", h("a", { href: to(["casts", schedule.last_cast_id]) }, schedule.last_cast_id))),
    mayOperate() && h("div", { class: "actions" }, h("button", { type: "button", class: "button", onclick: edit }, icon("edit"), "Edit"), h("button", { type: "button", class: "button", onclick: drop }, icon("trash"), "Remove")));
}

/** @param {any} schedule */
const pathOf = (schedule) => `/schedules/${encodeURIComponent(schedule.schedule_id)}`;

/** @param {string} label @param {any} value */
function pair(label, value) {
  return h("div", {}, h("dt", {}, label), h("dd", {}, value));
}

/** @param {any} known null for a new schedule @param {any[]} images @param {any[]} rooms @param {AbortSignal} signal @param {() => void} done */
async function editSchedule(known, images, rooms, signal, done) {
  await showDialog(known ? `Edit ${known.name}` : "New schedule", (close) => {
    const usual = known ? usualTime(known.cron) : { day: DAYS[1], time: "22:00" };
    const title = field({ label: "Name", name: "name", required: true, value: known?.name, hint: "For example Friday refresh.", attributes: { "data-autofocus": true, maxlength: 64 } });
    const day = field({ label: "Day", name: "day", input: select({ name: "day", options: [...DAYS, ["cron", "cron expression"]], value: usual?.day[0] ?? "cron" }) });
    const time = field({ label: "Time", name: "time", type: "time", value: usual?.time ?? "22:00", required: true });
    const cron = field({ label: "Cron expression", name: "cron", hint: "Five fields: minute, hour, day of month, month, day of week.", value: known?.cron ?? "0 22 * * 1-5", attributes: { spellcheck: "false" } });
    const zone = field({ label: "Time zone", name: "time_zone", required: true, value: known?.time_zone ?? localTimeZone(), hint: "For example Europe/Berlin.", attributes: { spellcheck: "false" } });
    const showKind = () => {
      cron.element.hidden = day.input.value !== "cron";
      time.element.hidden = day.input.value === "cron";
    };
    showKind();
    day.input.addEventListener("change", showKind);
    const preset = known ? { image: known.plan.latest_of ? `${known.plan.latest_of}@latest` : known.plan.image_id, room: known.plan.room_id ?? "", plan: known.plan } : {};
    const plan = planFields({ images, rooms, preset, timed: false, signal });
    return form({
      fields: [title, day, time, cron, zone, ...plan.fields],
      content: [title.element, h("div", { class: "field-row" }, day.element, time.element, cron.element, zone.element), plan.element],
      submit: known ? "Save" : "Create the schedule",
      cancel: h("button", { type: "button", class: "button", onclick: () => close(false) }, "Cancel"),
      onsubmit: async () => {
        const [hour, minute] = time.input.value.split(":").map(Number);
        const line = day.input.value === "cron" ? cron.input.value.trim() : `${minute} ${hour} * * ${day.input.value}`;
        const { start_at: _, ...rest } = plan.read();
        const wanted = { name: title.input.value.trim(), cron: line, time_zone: zone.input.value.trim(), plan: rest };
        if (known) await change(pathOf(known), wanted);
        else await create("/schedules", { ...wanted, enabled: true });
        close(true);
        showToast(known ? "Schedule saved" : "Schedule created");
        done();
      },
    });
  });
}
