/** A room as a grid of tiles. An update touches only changed tiles, visible ones first. */

import { h, icon, setAttribute, setIcon, setText } from "./dom.js";
import { formatDuration, formatLoss, formatPercent, formatRate } from "./format.js";
import { inNextFrame } from "./render_queue.js";
import { Viewport } from "./viewport.js";
import { isMoving, bottleneckText, machineLabel } from "./labels.js";

const RESORT_MS = 2_000; // tiles that move too often can't be read, nor tapped
const NATURAL = new Intl.Collator("en", { numeric: true, sensitivity: "base" });

/** @typedef {"name" | "position" | "state"} SortKey */

/** @type {Record<SortKey, (a: any, b: any) => number>} */
const ORDERS = {
  name: (a, b) => NATURAL.compare(a.name, b.name),
  position: (a, b) => Number(!a.position) - Number(!b.position) || NATURAL.compare(a.position, b.position) || NATURAL.compare(a.name, b.name),
  state: (a, b) => machineLabel(a.state).order - machineLabel(b.state).order || NATURAL.compare(a.name, b.name),
};

/** @param {any} machine @returns {string} */
export const machineKey = (machine) => machine.machine_id ?? `?${machine.name}`;

/** One machine. */
class Tile {
  /** @param {any} machine @param {string} address */
  constructor(machine, address) {
    this.machine = machine;
    this.icon = icon("idle");
    this.name = h("span", { class: "tile-name" });
    this.state = h("span", { class: "tile-state" });
    this.percent = h("span", { class: "tile-percent" });
    this.fill = h("span", { class: "tile-fill" });
    this.rate = h("span", { class: "tile-rate" });
    this.loss = h("span", { class: "tile-loss" });
    this.detail = h("span", { class: "tile-detail" });
    this.link = h("a", { class: "tile-link", href: address, tabindex: -1 },
      h("span", { class: "tile-head" }, this.icon, this.name),
      h("span", { class: "tile-line" }, this.state, this.percent),
      h("span", { class: "tile-bar", "aria-hidden": "true" }, this.fill),
      h("span", { class: "tile-line tile-figures" }, this.rate, this.loss),
      this.detail);
    this.element = h("li", { class: "tile" }, this.link);
    this.permille = -1;
    this.visible = false;
    this.drawn = /** @type {any} */ (null);
    this.draw();
  }

  /** @param {any} machine */
  update(machine) {
    const urgent = machine.state !== this.drawn.state;
    this.machine = machine;
    if (urgent || this.visible) this.draw();
  }

  get stale() {
    return this.drawn !== this.machine;
  }

  /** Draws the latest update. */
  draw() {
    const { machine } = this;
    this.drawn = machine;
    const stateLabel = machineLabel(machine.state);
    setAttribute(this.element, "data-tone", stateLabel.tone);
    setAttribute(this.element, "data-state", machine.state);
    setIcon(this.icon, stateLabel.icon);
    setText(this.name, machine.name);
    setText(this.state, stateLabel.label);
    setText(this.percent, percentText(machine));
    const moving = isMoving(machine.state);
    setText(this.rate, moving ? formatRate(machine.rate_bytes_per_s) : "");
    setText(this.loss, moving ? `loss ${formatLoss(machine.loss)}` : "");
    setText(this.detail, detailText(machine));
    const permille = hasProgress(machine) ? Math.round((machine.state === "complete" ? 1 : machine.progress) * 1000) : 0;
    if (permille !== this.permille) {
      this.permille = permille;
      this.fill.style.transform = `scaleX(${permille / 1000})`;
    }
  }
}

/** @param {any} machine */
function hasProgress(machine) {
  return machine.progress > 0 && machine.state !== "idle" && machine.state !== "offline";
}

/** @param {any} machine */
function percentText(machine) {
  return hasProgress(machine) && machine.state !== "complete" ? formatPercent(machine.progress) : "";
}

/** @param {any} machine @returns {string} the last line of the tile */
function detailText(machine) {
  if (isMoving(machine.state)) {
    // The network is the usual bottleneck and not worth a line.
    const bottleneck = machine.bottleneck === "network" ? "" : bottleneckText(machine.bottleneck);
    if (bottleneck) return `bottleneck: ${bottleneck}`;
    return machine.eta_s === null ? "" : `ETA ${formatDuration(machine.eta_s)}`;
  }
  return machine.error || machine.position || machine.address || "";
}

/** The grid. */
export class MachineGrid {
  /**
   * @param {string} label
   * @param {(machine: any) => string} address target of a tile's link
   * @param {AbortSignal} signal aborted when the page is left
   */
  constructor(label, address, signal) {
    this.address = address;
    this.viewport = new Viewport(signal);
    /** @type {Map<string, Tile>} */
    this.tiles = new Map();
    /** @type {Map<string, any>} */
    this.pending = new Map();
    this.pendingFull = false;
    /** @type {Set<string>} */
    this.states = new Set();
    this.text = "";
    /** @type {SortKey} */
    this.sort = "position";
    /** @type {string | null} */
    this.activeKey = null;
    this.sortedAt = -Infinity;
    this.resortTimer = 0;
    /** @type {() => void} */
    this.onchange = () => {};
    this.element = h("ul", { class: "tiles", role: "list", "aria-label": label });
    this.element.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => this.#keydown(event));
    this.element.addEventListener("focusin", (/** @type {FocusEvent} */ event) => {
      const tile = [...this.tiles.values()].find((candidate) => candidate.link === event.target);
      if (tile) this.#activate(machineKey(tile.machine));
    });
  }

  /**
   * @param {any[]} machines
   * @param {boolean} full true if these are all machines
   */
  update(machines, full) {
    if (full) {
      this.pending.clear();
      this.pendingFull = true;
    }
    for (const machine of machines) this.pending.set(machineKey(machine), machine);
    inNextFrame(this, () => this.apply());
  }

  /** Applies pending updates. */
  apply() {
    let membersChanged = false;
    let orderMayChange = false;
    if (this.pendingFull) {
      for (const [key, tile] of this.tiles) {
        if (this.pending.has(key)) continue;
        tile.element.remove();
        this.tiles.delete(key);
        this.viewport.remove(tile);
        membersChanged = true;
      }
    }
    for (const [key, machine] of this.pending) {
      const tile = this.tiles.get(key);
      if (tile) {
        orderMayChange ||= ORDERS[this.sort](tile.machine, machine) !== 0;
        tile.update(machine);
        this.#filterTile(tile);
      } else {
        const added = new Tile(machine, this.address(machine));
        this.tiles.set(key, added);
        this.viewport.add(added);
        this.#filterTile(added);
        membersChanged = true;
      }
    }
    this.pending.clear();
    this.pendingFull = false;
    this.viewport.drawHidden();
    if (membersChanged) this.#order();
    else if (orderMayChange) this.#orderSoon();
    if (membersChanged || this.activeKey === null) this.#keepOneTabStop();
    this.onchange();
  }

  /** @param {SortKey} sort */
  setSort(sort) {
    this.sort = sort;
    this.#order();
  }

  /** @param {Set<string>} states empty: all @param {string} text */
  setFilter(states, text) {
    this.states = states;
    this.text = text.trim().toLowerCase();
    for (const tile of this.tiles.values()) this.#filterTile(tile);
    this.#keepOneTabStop();
  }

  /** @returns {Map<string, number>} machines by state */
  counts() {
    const counts = new Map();
    for (const { machine } of this.tiles.values()) counts.set(machine.state, (counts.get(machine.state) ?? 0) + 1);
    return counts;
  }

  /** @returns {number} tiles that pass the filter */
  get shownCount() {
    let count = 0;
    for (const tile of this.tiles.values()) count += tile.element.hidden ? 0 : 1;
    return count;
  }

  /** @returns {any[]} all machines with their latest state */
  machines() {
    return [...this.tiles.values()].map((tile) => tile.machine);
  }

  /** @param {string} key focuses a tile, e.g. when its panel is closed */
  focus(key) {
    const tile = this.tiles.get(key);
    if (!tile || tile.element.hidden) return;
    this.#activate(key);
    tile.link.focus();
  }

  /** @param {string | null} key marks the machine with the open panel */
  select(key) {
    for (const [candidate, tile] of this.tiles) setAttribute(tile.link, "aria-current", candidate === key ? "true" : null);
  }

  /** @param {Tile} tile */
  #filterTile(tile) {
    const { machine } = tile;
    const fitsState = this.states.size === 0 || this.states.has(machine.state);
    const fitsText = !this.text || `${machine.name} ${machine.position} ${machine.address}`.toLowerCase().includes(this.text);
    const hidden = !(fitsState && fitsText);
    if (tile.element.hidden !== hidden) tile.element.hidden = hidden;
  }

  #orderSoon() {
    const wait = this.sortedAt + RESORT_MS - performance.now();
    if (wait <= 0) this.#order();
    else if (!this.resortTimer) this.resortTimer = window.setTimeout(() => this.#order(), wait);
  }

  #order() {
    window.clearTimeout(this.resortTimer);
    this.resortTimer = 0;
    this.sortedAt = performance.now();
    const focused = document.activeElement;
    const compare = ORDERS[this.sort];
    const sorted = [...this.tiles.values()].sort((a, b) => compare(a.machine, b.machine));
    let next = null;
    for (let index = sorted.length - 1; index >= 0; index -= 1) {
      const { element } = sorted[index];
      // Move only elements that are out of place.
      if (element.parentNode !== this.element || element.nextSibling !== next) this.element.insertBefore(element, next);
      next = element;
    }
    if (focused instanceof HTMLElement && focused !== document.activeElement && this.element.contains(focused)) focused.focus({ preventScroll: true });
  }

  /** @param {string} key */
  #activate(key) {
    if (key === this.activeKey) return;
    const before = this.activeKey === null ? undefined : this.tiles.get(this.activeKey);
    before?.link.setAttribute("tabindex", "-1");
    this.tiles.get(key)?.link.setAttribute("tabindex", "0");
    this.activeKey = key;
  }

  /** Keeps the grid a single stop of the Tab key; arrow keys move inside. */
  #keepOneTabStop() {
    const active = this.activeKey === null ? undefined : this.tiles.get(this.activeKey);
    if (active && !active.element.hidden) return;
    const first = this.#visible()[0];
    if (first) this.#activate(machineKey(first.machine));
    else if (!active) this.activeKey = null;
  }

  /** @returns {Tile[]} in the order of the page */
  #visible() {
    const byElement = new Map([...this.tiles.values()].map((tile) => [tile.element, tile]));
    return /** @type {Tile[]} */ ([...this.element.children].map((element) => byElement.get(element)).filter((tile) => tile && !tile.element.hidden));
  }

  /** @param {KeyboardEvent} event */
  #keydown(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || this.activeKey === null) return;
    const visible = this.#visible();
    const from = visible.findIndex((tile) => machineKey(tile.machine) === this.activeKey);
    if (from < 0) return;
    const top = visible[0].element.offsetTop;
    let columns = visible.findIndex((tile) => tile.element.offsetTop !== top);
    if (columns < 1) columns = visible.length;
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns, Home: -from, End: visible.length - 1 - from };
    const step = steps[/** @type {keyof typeof steps} */ (event.key)];
    if (step === undefined) return;
    event.preventDefault();
    const target = visible[from + step];
    if (target) this.focus(machineKey(target.machine));
  }
}
