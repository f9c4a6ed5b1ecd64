/** The panel of one machine: identity, state, problem with advice, and history. */

import { all, change, get } from "./api.js";
import { showDialog } from "./dialogs.js";
import { fill, h, icon, setText } from "./dom.js";
import { field, form, select } from "./forms.js";
import { formatBytes, formatDuration, formatLoss, formatPercent, formatRate } from "./format.js";
import { showToast } from "./toasts.js";
import { agoElement, badge, emptyState, Figures, ProgressBar, setBadge, timeElement } from "./components.js";
import { bootSection } from "./machine_boots.js";
import { captureSection } from "./machine_captures.js";
import { enrolmentSection } from "./machine_enrolment.js";
import { to } from "./router.js";
import { mayOperate, roomName, roomNames } from "./store.js";
import { wakeButton } from "./waking.js";
import { isMoving, bottleneckText, machineLabel, explainState } from "./labels.js";

const HISTORY_SHOWN = 20;

/** The panel of a machine. */
export class MachinePanel {
  /**
   * @param {any} machine its record
   * @param {any[]} history its lines, newest first
   * @param {{level: "h1" | "h2", close?: () => void, changed: () => void}} options
   */
  constructor(machine, history, { level, close, changed }) {
    this.machine = machine;
    this.history = history;
    this.badge = badge(machineLabel("offline"));
    this.problem = h("div");
    this.problemShown = "";
    this.bar = new ProgressBar(`Progress of ${machine.name}`);
    this.percent = h("span", { class: "progress-words" });
    this.progress = h("div", { class: "progress-row", hidden: true }, this.bar.element, this.percent);
    this.cast = h("p", { class: "panel-cast" });
    this.castShown = "";
    this.figures = new Figures([["rate", "Rate"], ["loss", "Loss"], ["eta", "ETA"], ["bottleneck", "Bottleneck"]], "compact");
    this.seen = h("span");
    this.seenNow = /** @type {boolean | null} */ (null);
    this.heading = h(level, { tabindex: -1, class: "panel-title" }, machine.name);
    this.element = h("div", { class: "panel-content" },
      h("div", { class: "panel-head" },
        h("div", {}, this.heading, h("p", { class: "muted" }, [machine.position, roomName(machine.room_id)].filter((text, index) => text && (index === 0 || machine.room_id)).join(" · "))),
        h("div", { class: "actions" },
          mayOperate() && machine.macs.length > 0 && wakeButton("Wake", `Wake ${machine.name}?`, { machine_ids: [machine.machine_id] }),
          mayOperate() && h("button", { type: "button", class: "button", onclick: () => editMachine(machine, changed) }, icon("edit"), "Edit"),
          close && h("button", { type: "button", class: "icon-button", "aria-label": "Close", onclick: close }, icon("close")))),
      h("div", { class: "panel-state" }, this.badge, this.cast),
      this.problem, this.progress, this.figures.element,
      enrolmentSection(machine, changed),
      bootSection(machine, changed),
      captureSection(machine),
      h("h3", {}, "Identity"), identity(machine, this.seen),
      inventory(machine),
      h("h3", {}, "History"), historyList(history));
    this.update(null);
  }

  /** @param {any} live its LiveMachine; null without a live stream */
  update(live) {
    const last = this.history[0];
    const state = live?.state ?? (last && last.state !== "assigned" ? last.state : "offline");
    const stateLabel = machineLabel(state);
    setBadge(this.badge, stateLabel);
    const here = Boolean(live?.online);
    if (here !== this.seenNow) {
      // The record is as old as this panel, so a machine that has just gone offline was seen now.
      fill(this.seen, here ? "now (online)" : agoElement(this.seenNow ? new Date().toISOString() : this.machine.last_seen_at));
      this.seenNow = here;
    }
    const castId = live?.cast_id ?? null;
    const castKey = `${castId}`;
    if (castKey !== this.castShown) {
      this.castShown = castKey;
      fill(this.cast, castId && ["in cast ", h("a", { href: to(["casts", castId]) }, castId)]);
    }
    const line = this.history.find((candidate) => candidate.cast_id === castId) ?? (live ? null : last);
    const problem = explainState(state, live?.error || (line?.error ?? ""), line?.exit_code ?? null);
    const key = JSON.stringify(problem);
    if (key !== this.problemShown) {
      this.problemShown = key;
      fill(this.problem, problem && problemAlert(problem, stateLabel));
    }
    const busy = Boolean(live) && live.progress > 0 && state !== "idle" && state !== "offline";
    this.progress.hidden = !busy;
    this.figures.element.hidden = !busy || !isMoving(state);
    if (busy) {
      this.bar.set(state === "complete" ? 1 : live.progress, stateLabel.tone);
      setText(this.percent, formatPercent(state === "complete" ? 1 : live.progress));
      this.figures.update({
        rate: formatRate(live.rate_bytes_per_s),
        loss: formatLoss(live.loss),
        eta: live.eta_s === null ? "" : formatDuration(live.eta_s),
        bottleneck: bottleneckText(live.bottleneck) || "none",
      });
    }
  }
}

/**
 * Reads a machine and the start of its history.
 * @param {string} machineId
 * @param {AbortSignal} signal
 * @returns {Promise<[machine: any, history: any[]]>}
 */
export async function readMachine(machineId, signal) {
  const path = `/machines/${encodeURIComponent(machineId)}`;
  const [machine, history] = await Promise.all([get(path, {}, signal), get(`${path}/history`, { limit: HISTORY_SHOWN }, signal)]);
  return [machine, history.items];
}

/** @param {{reason: string, advice: string}} problem @param {import("./labels.js").StateLabel} stateLabel */
export function problemAlert(problem, stateLabel) {
  return h("div", { class: "alert", "data-tone": stateLabel.tone }, icon(stateLabel.icon),
    h("div", {}, h("p", { class: "trouble-reason" }, h("strong", {}, problem.reason)), problem.advice && h("p", { class: "trouble-advice" }, h("span", { class: "advice-label" }, "What to do: "), problem.advice)));
}

/** @param {any} machine @param {Node} seen */
function identity(machine, seen) {
  const rows = [
    ["Hardware addresses", machine.macs.join(", ")],
    ["Serial number", machine.serial],
    ["Asset tag", machine.asset_tag],
    ["Firmware UUID", machine.uuid],
    ["Address", machine.address],
    ["Agent", machine.agent_version],
    ["Last seen", seen],
    ["Note", machine.note],
  ];
  return pairs(rows.filter(([, value]) => value));
}

/** @param {any[][]} rows */
function pairs(rows) {
  return h("dl", { class: "pairs" }, rows.map(([label, value]) => h("div", {}, h("dt", {}, label), h("dd", {}, value))));
}

/** @param {any} machine */
function inventory(machine) {
  const rows = Object.entries(machine.inventory ?? {}).map(([name, value]) => {
    const text = typeof value === "string" ? value : JSON.stringify(value);
    return [name.replaceAll("_", " "), /_bytes$/.test(name) && /^\d+$/.test(text) ? formatBytes(Number(text)) : text];
  });
  if (!rows.length) return null;
  return h("details", { class: "inventory" }, h("summary", {}, "Inventory"), pairs(rows));
}

/** @param {any[]} history */
function historyList(history) {
  if (!history.length) return emptyState("history", "No casts yet.");
  return h("ul", { class: "history-list", role: "list" }, history.map((line) => h("li", {},
    badge(machineLabel(line.state)),
    h("div", {},
      h("a", { href: to(["casts", line.cast_id]) }, line.image_name || line.cast_name),
      h("p", { class: "muted small" }, timeElement(line.ended_at ?? line.joined_at), line.seconds > 0 && ` · ${formatDuration(line.seconds)}`, line.bytes_verified > 0 && ` · ${formatBytes(line.bytes_verified)} verified`, line.patch_id && " · customised"),
      line.error && h("p", { class: "small bad-text" }, line.error)))));
}

/** @param {any} machine @param {() => void} changed */
async function editMachine(machine, changed) {
  for (const room of await all("/rooms").catch(() => [])) roomNames.set(room.room_id, room.name);
  await showDialog(`Edit ${machine.name}`, (close) => {
    const rooms = /** @type {[string, string][]} */ ([["", "No room"], ...[...roomNames].map(([id, name]) => [id, name || id])]);
    const fields = [
      field({ label: "Name", name: "name", value: machine.name, required: true, attributes: { "data-autofocus": true, maxlength: 64 } }),
      field({ label: "Room", name: "room_id", input: select({ name: "room_id", options: rooms, value: machine.room_id ?? "" }) }),
      field({ label: "Position", name: "position", value: machine.position, hint: "For people, e.g. row 2, seat 5." }),
      field({ label: "Note", name: "note", value: machine.note }),
    ];
    const [name, room, position, note] = fields;
    return form({
      fields, content: fields.map((each) => each.element), submit: "Save",
      cancel: h("button", { type: "button", class: "button", onclick: () => close(false) }, "Cancel"),
      onsubmit: async () => {
        await change(`/machines/${encodeURIComponent(machine.machine_id)}`, {
          name: name.input.value.trim(), room_id: room.input.value || null, position: position.input.value.trim(), note: note.input.value.trim(),
        });
        close(true);
        showToast(`${name.input.value.trim()} saved`);
        changed();
      },
    });
  });
}
