/** Components of many pages: badges, progress bars, figures, headings, empty states, errors. */

import { ApiProblem } from "./api.js";
import { append, h, icon, setAttribute, setIcon, setText } from "./dom.js";
import { formatAgo, formatDateTime, formatPercent } from "./format.js";
import { sentence } from "./labels.js";

/** @typedef {import("./labels.js").StateLabel} StateLabel */

/**
 * Creates a badge: a state as icon and text, with colour as a hint.
 * @param {StateLabel} label
 * @returns {HTMLElement}
 */
export function badge(label) {
  return h("span", { class: "badge", "data-tone": label.tone }, icon(label.icon), h("span", {}, label.label));
}

/** @param {Element} element created by `badge` @param {StateLabel} label */
export function setBadge(element, label) {
  setAttribute(element, "data-tone", label.tone);
  setIcon(/** @type {Element} */ (element.firstElementChild), label.icon);
  setText(/** @type {Element} */ (element.lastElementChild), label.label);
}

/** A progress bar, with its value for screen readers in whole percent. */
export class ProgressBar {
  /** @param {string} label */
  constructor(label) {
    this.bar = h("div", { class: "progress-fill" });
    this.element = h("div", {
      class: "progress", role: "progressbar", "aria-label": label, "aria-valuemin": 0, "aria-valuemax": 100,
    }, this.bar);
    this.shown = -1;
    this.set(0);
  }

  /** @param {number} share @param {string} [tone] */
  set(share, tone = "busy") {
    setAttribute(this.element, "data-tone", tone);
    const rounded = Math.round(share * 1000);
    if (rounded === this.shown) return;
    this.shown = rounded;
    this.bar.style.transform = `scaleX(${rounded / 1000})`;
    setAttribute(this.element, "aria-valuenow", String(Math.floor(rounded / 10)));
    setAttribute(this.element, "aria-valuetext", formatPercent(share));
  }
}

/**
 * Figures with labels: `update({rate: "812 Mbit/s"})`.
 */
export class Figures {
  /** @param {[key: string, label: string][]} labels @param {string} [className] */
  constructor(labels, className = "") {
    /** @type {Record<string, HTMLElement>} */
    this.values = {};
    this.element = h("dl", { class: `figures ${className}` });
    for (const [key, label] of labels) {
      this.values[key] = h("dd", {}, "–");
      this.element.append(h("div", { class: `figure figure-${key}` }, h("dt", {}, label), this.values[key]));
    }
  }

  /** @param {Record<string, string>} values */
  update(values) {
    for (const [key, value] of Object.entries(values)) setText(this.values[key], value || "–");
  }
}

/**
 * Creates the heading of a page, with its actions.
 * @param {string} title
 * @param {{back?: [string, string], actions?: any, lead?: any}} [options] back: address and text
 */
export function pageHead(title, { back, actions, lead } = {}) {
  return h("header", { class: "page-head" },
    back && h("a", { class: "back-link", href: back[0] }, icon("back"), back[1]),
    h("div", { class: "page-head-row" },
      h("h1", { tabindex: -1, id: "page-title" }, title),
      actions && h("div", { class: "actions" }, actions)),
    lead && h("div", { class: "lead" }, lead));
}

/**
 * Creates a section with a heading.
 * @param {string} title
 * @param {{class?: string, actions?: any, id?: string}} options
 * @param {...any} children
 */
export function section(title, options, ...children) {
  const id = options.id ?? `h-${title.toLowerCase().replace(/[^a-z]+/g, "-")}`;
  return h("section", { class: options.class ?? "card", "aria-labelledby": id },
    h("div", { class: "section-head" }, h("h2", { id }, title), options.actions && h("div", { class: "actions" }, options.actions)),
    children);
}

/** @param {string} iconName @param {string} title @param {...any} more */
export function emptyState(iconName, title, ...more) {
  return h("div", { class: "empty" }, icon(iconName), h("p", { class: "empty-title" }, title), more.length > 0 && h("div", { class: "empty-more" }, more));
}

/** @param {unknown} error @returns {string} for people */
export function errorText(error) {
  if (error instanceof ApiProblem) {
    const fields = error.errors.map(({ field, message }) => `${field}: ${message}`).join("; ");
    return fields && !error.message.includes(fields) ? `${error.message} (${fields})` : error.message;
  }
  return error instanceof Error ? error.message : String(error);
}

/**
 * Creates an error message with a retry button.
 * @param {unknown} error
 * @param {() => void} [again]
 */
export function errorBox(error, again) {
  const request = error instanceof ApiProblem && error.requestId;
  return h("div", { class: "alert", "data-tone": "bad", role: "alert" }, icon("warning"),
    h("div", {},
      h("p", {}, sentence(errorText(error))),
      request && h("p", { class: "muted small" }, "Request id in the log: ", h("code", {}, request)),
      again && h("button", { type: "button", class: "button", onclick: again }, icon("refresh"), "Try again")));
}

/**
 * @param {string | null} at
 * @param {string} [missing]
 */
export function timeElement(at, missing = "–") {
  return at ? h("time", { datetime: at }, formatDateTime(at)) : missing;
}

/**
 * Creates a relative time; `refreshAgo` keeps it current while the page is open.
 * @param {string | null} at
 * @param {string} [missing]
 */
export function agoElement(at, missing = "never") {
  return at ? h("time", { datetime: at, title: formatDateTime(at), "data-ago": true }, formatAgo(at)) : missing;
}

/** Updates every `agoElement` of the page. */
export function refreshAgo() {
  for (const element of document.querySelectorAll("time[data-ago]")) setText(element, formatAgo(/** @type {HTMLTimeElement} */ (element).dateTime));
}

/**
 * @typedef {object} Column
 * @property {string} label
 * @property {(item: any) => any} cell text or elements
 * @property {string} [class] `number`, `wide-only`, `main`
 * @property {boolean} [hideLabel] the heading is only for screen readers
 * @property {boolean} [live] what it changes: `redraw` updates it
 */

/**
 * Creates a table that scrolls sideways on a phone, also by keyboard.
 * @param {string} caption
 * @param {Column[]} columns
 * @param {any[]} items
 * @param {(item: any) => string} [key] by which `redraw` finds an item
 */
export function dataTable(caption, columns, items, key) {
  const body = h("tbody");
  /** @type {Map<string, HTMLTableRowElement>} */
  const rows = new Map();
  const element = h("div", { class: "table-scroll", tabindex: 0, role: "region", "aria-label": caption },
    h("table", {},
      h("caption", { class: "visually-hidden" }, caption),
      h("thead", {}, h("tr", {}, columns.map((column) =>
        h("th", { scope: "col", class: column.class }, column.hideLabel ? h("span", { class: "visually-hidden" }, column.label) : column.label)))),
      body));
  const add = (/** @type {any[]} */ more) => {
    const fragment = document.createDocumentFragment();
    for (const item of more) {
      const row = h("tr", {}, columns.map((column, index) =>
        index === 0 ? h("th", { scope: "row", class: column.class }, column.cell(item)) : h("td", { class: column.class }, column.cell(item))));
      if (key) rows.set(key(item), row);
      fragment.append(row);
    }
    append(body, [fragment]);
  };
  /** @param {any} item with its current values @returns {boolean} true if the table contains it */
  const redraw = (item) => {
    const row = key && rows.get(key(item));
    if (!row) return false;
    columns.forEach((column, index) => {
      if (!column.live) return;
      const fresh = h("td", {}, column.cell(item));
      if (fresh.textContent !== row.cells[index].textContent) row.cells[index].replaceChildren(...fresh.childNodes);
    });
    return true;
  };
  add(items);
  return { element, add, redraw };
}

/**
 * Creates a table that loads page by page.
 * @param {{caption: string, columns: Column[], load: (cursor: string | null) => Promise<{items: any[], next_cursor: string | null}>, empty: () => Node, report: (error: unknown) => void, key?: (item: any) => string}} options
 * @returns {Promise<{element: HTMLElement, redraw: (item: any) => boolean}>}
 */
export async function pagedTable({ caption, columns, load, empty, report, key }) {
  const first = await load(null);
  if (!first.items.length) return { element: /** @type {HTMLElement} */ (empty()), redraw: () => false };
  const table = dataTable(caption, columns, first.items, key);
  let cursor = first.next_cursor;
  const more = h("button", { type: "button", class: "button more-button", hidden: !cursor }, "Show more");
  more.addEventListener("click", async () => {
    more.disabled = true;
    try {
      const page = await load(cursor);
      table.add(page.items);
      cursor = page.next_cursor;
      more.hidden = !cursor;
    } catch (error) {
      report(error);
    } finally {
      more.disabled = false;
    }
  });
  return { element: h("div", {}, table.element, more), redraw: table.redraw };
}
