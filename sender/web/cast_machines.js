/** The machines of a cast as a table, those in trouble first with their reason. Rows are changed in place. */

import { append, h, setAttribute, setText } from "./dom.js";
import { formatBytes, formatLoss, formatPercent, formatRate } from "./format.js";
import { inNextFrame } from "./render_queue.js";
import { machineKey } from "./machine_grid.js";
import { badge, ProgressBar, setBadge } from "./components.js";
import { to } from "./router.js";
import { Sight } from "./viewport.js";
import { bottleneckWords, machineLook, trouble } from "./words.js";

const REORDER_MS = 2_000; // rows that jump about can't be read
const NATURAL = new Intl.Collator("en", { numeric: true, sensitivity: "base" });
const COLUMNS = [["Machine", "main"], ["State", ""], ["Progress", "progress-cell"], ["Rate", "number wide-only"], ["Loss", "number wide-only"], ["Limited by", "wide-only"], ["Verified", "number wide-only"]];

class Row {
  /** @param {any} machine */
  constructor(machine) {
    const address = machine.machine_id ? to(["machines", machine.machine_id]) : null;
    this.machine = machine;
    this.badge = badge(machineLook(machine.state));
    this.bar = new ProgressBar(`Progress of ${machine.name}`);
    this.percent = h("span", { class: "progress-words" });
    this.cells = { rate: cell("number wide-only"), loss: cell("number wide-only"), bottleneck: cell("wide-only"), verified: cell("number wide-only") };
    this.element = h("tr", {},
      h("th", { scope: "row", class: "main" }, address ? h("a", { href: address }, machine.name) : machine.name),
      h("td", {}, this.badge),
      h("td", { class: "progress-cell" }, h("div", { class: "progress-row" }, this.bar.element, this.percent)),
      Object.values(this.cells));
    this.reason = h("p", { class: "row-reason" });
    this.mend = h("p", { class: "row-mend" });
    this.reasonRow = h("tr", { class: "reason-row", hidden: true }, h("td", { colspan: COLUMNS.length }, this.reason, this.mend));
    this.record = /** @type {any} */ (null);
    this.inSight = false;
    this.drawn = /** @type {any} */ (null);
  }

  /** @param {any} live @param {any} record its CastMachine, if there is one yet */
  update(live, record) {
    const urgent = !this.drawn || this.drawn.state !== live.state || record !== this.record;
    this.machine = live;
    this.record = record;
    if (urgent || this.inSight) this.draw();
  }

  get stale() {
    return this.drawn !== this.machine;
  }

  /** Shows what it was told last. */
  draw() {
    const { machine: live, record } = this;
    this.drawn = live;
    const look = machineLook(live.state);
    setBadge(this.badge, look);
    const progress = live.state === "complete" ? 1 : live.progress;
    this.bar.set(progress, look.tone);
    setText(this.percent, formatPercent(progress));
    setText(this.cells.rate, live.rate_bytes_per_s > 0 ? formatRate(live.rate_bytes_per_s) : "–");
    setText(this.cells.loss, formatLoss(live.loss));
    setText(this.cells.bottleneck, bottleneckWords(live.bottleneck) || "–");
    setText(this.cells.verified, record && record.bytes_verified > 0 ? formatBytes(record.bytes_verified) : "–");
    const told = trouble(live.state, live.error || record?.error || "", record?.exit_code ?? null);
    const hidden = told === null;
    if (this.reasonRow.hidden !== hidden) this.reasonRow.hidden = hidden;
    setAttribute(this.element, "data-reason", told ? "true" : null);
    setAttribute(this.reasonRow, "data-tone", look.tone);
    if (told) {
      setText(this.reason, told.reason);
      setText(this.mend, told.mend && `What to do: ${told.mend}`);
    }
  }
}

/** @param {string} className */
function cell(className) {
  return h("td", { class: className });
}

/** The table. */
export class CastMachines {
  /** @param {AbortSignal} signal the page is left */
  constructor(signal) {
    /** @type {Map<string, Row>} */
    this.rows = new Map();
    /** @type {Map<string, any>} */
    this.live = new Map();
    /** @type {Map<string, any>} */
    this.records = new Map();
    this.orderedAt = -Infinity;
    this.timer = 0;
    this.sight = new Sight(signal);
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

  /** @param {any[]} records CastMachine: what history keeps, with exit codes */
  setRecords(records) {
    this.records = new Map(records.map((record) => [machineKey(record), record]));
    // Nobody runs an ended cast: its account is all there is.
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
      this.sight.remove(row);
    }
    for (const [key, machine] of this.live) {
      let row = this.rows.get(key);
      if (!row) {
        row = new Row(machine);
        this.rows.set(key, row);
        this.sight.add(row);
        changed = true;
      } else if (row.machine.state !== machine.state) {
        changed = true;
      }
      row.update(machine, this.records.get(key));
    }
    this.sight.drawUnseen();
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
    const sorted = [...this.rows.values()].sort((a, b) => machineLook(a.machine.state).order - machineLook(b.machine.state).order || NATURAL.compare(a.machine.name, b.machine.name));
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
