/** The machines of a cast as a table, failed ones first with their reason. Rows are updated in place. */

import { append, h, setAttribute, setText } from "./dom.js";
import { formatBytes, formatLoss, formatPercent, formatRate } from "./format.js";
import { inNextFrame } from "./render_queue.js";
import { machineKey } from "./machine_grid.js";
import { badge, ProgressBar, setBadge } from "./components.js";
import { to } from "./router.js";
import { Viewport } from "./viewport.js";
import { bottleneckText, machineLabel, explainState } from "./labels.js";

const REORDER_MS = 2_000; // rows that move too often can't be read
const NATURAL = new Intl.Collator("en", { numeric: true, sensitivity: "base" });
const COLUMNS = [["Machine", "main"], ["State", ""], ["Progress", "progress-cell"], ["Rate", "number wide-only"], ["Loss", "number wide-only"], ["Bottleneck", "wide-only"], ["Verified", "number wide-only"]];

class Row {
  /** @param {any} machine */
  constructor(machine) {
    const address = machine.machine_id ? to(["machines", machine.machine_id]) : null;
    this.machine = machine;
    this.badge = badge(machineLabel(machine.state));
    this.bar = new ProgressBar(`Progress of ${machine.name}`);
    this.percent = h("span", { class: "progress-words" });
    this.cells = { rate: cell("number wide-only"), loss: cell("number wide-only"), bottleneck: cell("wide-only"), verified: cell("number wide-only") };
    this.verified = h("span");
    this.customised = h("p", { class: "small muted", hidden: true }, "customised");
    append(this.cells.verified, [this.verified, this.customised]);
    this.element = h("tr", {},
      h("th", { scope: "row", class: "main" }, address ? h("a", { href: address }, machine.name) : machine.name),
      h("td", {}, this.badge),
      h("td", { class: "progress-cell" }, h("div", { class: "progress-row" }, this.bar.element, this.percent)),
      Object.values(this.cells));
    this.reason = h("p", { class: "row-reason" });
    this.advice = h("p", { class: "row-advice" });
    this.reasonRow = h("tr", { class: "reason-row", hidden: true }, h("td", { colspan: COLUMNS.length }, this.reason, this.advice));
    this.record = /** @type {any} */ (null);
    this.visible = false;
    this.drawn = /** @type {any} */ (null);
  }

  /** @param {any} live @param {any} record its CastMachine, if there is one yet */
  update(live, record) {
    const urgent = !this.drawn || this.drawn.state !== live.state || record !== this.record;
    this.machine = live;
    this.record = record;
    if (urgent || this.visible) this.draw();
  }

  get stale() {
    return this.drawn !== this.machine;
  }

  /** Draws the latest update. */
  draw() {
    const { machine: live, record } = this;
    this.drawn = live;
    const stateLabel = machineLabel(live.state);
    setBadge(this.badge, stateLabel);
    const progress = live.state === "complete" ? 1 : live.progress;
    this.bar.set(progress, stateLabel.tone);
    setText(this.percent, formatPercent(progress));
    setText(this.cells.rate, live.rate_bytes_per_s > 0 ? formatRate(live.rate_bytes_per_s) : "–");
    setText(this.cells.loss, formatLoss(live.loss));
    setText(this.cells.bottleneck, bottleneckText(live.bottleneck) || "–");
    setText(this.verified, record && record.bytes_verified > 0 ? formatBytes(record.bytes_verified) : "–");
    const plain = !(live.customised || record?.patch_id);
    if (this.customised.hidden !== plain) this.customised.hidden = plain;
    const problem = explainState(live.state, live.error || record?.error || "", record?.exit_code ?? null);
    const hidden = problem === null;
    if (this.reasonRow.hidden !== hidden) this.reasonRow.hidden = hidden;
    setAttribute(this.element, "data-reason", problem ? "true" : null);
    setAttribute(this.reasonRow, "data-tone", stateLabel.tone);
    if (problem) {
      setText(this.reason, problem.reason);
      setText(this.advice, problem.advice && `What to do: ${problem.advice}`);
    }
  }
}

/** @param {string} className */
function cell(className) {
  return h("td", { class: className });
}

/** The table. */
export class CastMachines {
  /** @param {AbortSignal} signal aborted when the page is left */
  constructor(signal) {
    /** @type {Map<string, Row>} */
    this.rows = new Map();
    /** @type {Map<string, any>} */
    this.live = new Map();
    /** @type {Map<string, any>} */
    this.records = new Map();
    this.orderedAt = -Infinity;
    this.timer = 0;
    this.viewport = new Viewport(signal);
    this.body = h("tbody");
    this.none = h("p", { class: "muted" }, "No machine has joined.");
    this.table = h("div", { class: "table-scroll machines-scroll", tabindex: 0, role: "region", "aria-label": "Machines of this cast", hidden: true },
      h("table", { class: "machines-table" }, h("caption", { class: "visually-hidden" }, "Machines of this cast"),
        h("thead", {}, h("tr", {}, COLUMNS.map(([label, className]) => h("th", { scope: "col", class: className }, label)))), this.body));
    this.element = h("div", {}, this.none, this.table);
  }

  /** @param {any[]} machines LiveMachine @param {boolean} full */
  update(machines, full) {
    if (full) this.live.clear();
    for (const machine of machines) this.live.set(machineKey(machine), machine);
    inNextFrame(this, () => this.#draw());
  }

  /** @param {any[]} records CastMachine: the lines of history, with exit codes */
  setRecords(records) {
    this.records = new Map(records.map((record) => [machineKey(record), record]));
    // An ended cast has no live state, only its records.
    for (const [key, record] of this.records) {
      if (!this.live.has(key)) this.live.set(key, { ...record, eta_s: null });
    }
    inNextFrame(this, () => this.#draw());
  }

  #draw() {
    let changed = false;
    this.none.hidden = this.live.size > 0;
    this.table.hidden = this.live.size === 0;
    for (const [key, row] of this.rows) {
      if (this.live.has(key)) continue;
      row.element.remove();
      row.reasonRow.remove();
      this.rows.delete(key);
      this.viewport.remove(row);
    }
    for (const [key, machine] of this.live) {
      let row = this.rows.get(key);
      if (!row) {
        row = new Row(machine);
        this.rows.set(key, row);
        this.viewport.add(row);
        changed = true;
      } else if (row.machine.state !== machine.state) {
        changed = true;
      }
      row.update(machine, this.records.get(key));
    }
    this.viewport.drawHidden();
    if (!changed) return;
    const wait = this.orderedAt + REORDER_MS - performance.now();
    if (wait <= 0) this.#order();
    else if (!this.timer) this.timer = window.setTimeout(() => this.#order(), wait);
    for (const row of this.rows.values()) {
      if (!row.element.isConnected) append(this.body, [row.element, row.reasonRow]);
    }
  }

  #order() {
    window.clearTimeout(this.timer);
    this.timer = 0;
    this.orderedAt = performance.now();
    const sorted = [...this.rows.values()].sort((a, b) => machineLabel(a.machine.state).order - machineLabel(b.machine.state).order || NATURAL.compare(a.machine.name, b.machine.name));
    const focused = document.activeElement;
    let next = null;
    for (const row of sorted.reverse()) {
      if (row.reasonRow.parentNode !== this.body || row.reasonRow.nextSibling !== next) this.body.insertBefore(row.reasonRow, next);
      if (row.element.nextSibling !== row.reasonRow) this.body.insertBefore(row.element, row.reasonRow);
      next = row.element;
    }
    if (focused instanceof HTMLElement && focused !== document.activeElement && this.body.contains(focused)) focused.focus({ preventScroll: true });
  }
}
