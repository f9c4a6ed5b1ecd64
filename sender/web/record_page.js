/** A page of records (history or audit): a table with filters in the address, and the same as CSV. */

import { get, queryText } from "./api.js";
import { fill, h, icon } from "./dom.js";
import { announce, showError } from "./toasts.js";
import { emptyState, errorBox, pagedTable, pageHead } from "./components.js";
import { go, to } from "./router.js";

const PAGE_LINES = 50;

/**
 * @typedef {object} RecordOptions
 * @property {string} title
 * @property {string} lead
 * @property {string} name in the address of the page and of the API: `history`
 * @property {import("./forms.js").Field[]} fields with the names of the API's filters; `since` and `until` are days
 * @property {string[]} [linked] filters without a field, set by links of other pages
 * @property {import("./components.js").Column[]} columns
 * @property {(items: any[]) => void} [seen] called with every line that is shown
 * @property {string} nothing text of an empty table
 */

/**
 * @param {RecordOptions} options
 * @param {import("./app.js").PageContext} context
 * @returns {Promise<import("./app.js").Page>}
 */
export async function recordPage({ title, lead, name, fields, linked = [], columns, seen = () => {}, nothing }, { query, signal }) {
  const names = [...fields.map((field) => field.name), ...linked];
  const readFilters = (/** @type {URLSearchParams} */ address) => Object.fromEntries(names.map((key) => [key, address.get(key) ?? ""]));
  let filters = readFilters(query);
  let turn = 0;
  const list = h("div", { class: "card" });
  const csv = h("a", { class: "button", download: `${name}.csv` }, icon("download"), "Export CSV");
  const note = h("p", { class: "filter-note" });

  const load = async () => {
    const mine = ++turn;
    const wanted = apiFilters(filters);
    csv.href = `/api/v1/${name}.csv${queryText(wanted)}`;
    const page = async (/** @type {string | null} */ cursor) => {
      const answer = await get(`/${name}`, { ...wanted, cursor, limit: PAGE_LINES }, signal);
      seen(answer.items);
      return answer;
    };
    const table = await pagedTable({ caption: title, columns, load: page, empty: () => emptyState(name, nothing), report: showError });
    if (mine === turn) fill(list, table.element);
  };
  const loadAgain = () => load().then(
    () => announce(list.querySelector("tbody tr") ? `${title}: filter applied` : nothing),
    (error) => !signal.aborted && fill(list, errorBox(error, loadAgain)));
  const showFilters = () => {
    for (const field of fields) field.input.value = filters[field.name];
    const extra = linked.filter((key) => filters[key]).map((key) => `${key.replace(/_id$/, "")} ${filters[key]}`).join(", ");
    note.hidden = names.every((key) => !filters[key]);
    fill(note, extra && `Only ${extra}. `, h("a", { href: to([name]) }, "Show all"));
  };
  const apply = () => go(to([name], { ...filters, ...Object.fromEntries(fields.map((field) => [field.name, field.input.value.trim()])) }));
  for (const field of fields) field.input.addEventListener("change", apply);

  showFilters();
  await load();
  const bar = h("form", { class: "filters", role: "search", "aria-label": title, onsubmit: (/** @type {Event} */ event) => event.preventDefault() }, fields.map((field) => field.element), note);
  return {
    title,
    element: h("div", {}, pageHead(title, { lead, actions: csv }), bar, list),
    update: (_params, address) => {
      filters = readFilters(address);
      showFilters();
      loadAgain();
      return true;
    },
  };
}

/** @param {Record<string, string>} filters @returns {Record<string, string>} filters of the API: days as instants in the time zone of this device */
function apiFilters({ since, until, ...rest }) {
  return { ...rest, since: startOfDay(since, 0), until: startOfDay(until, 1) };
}

/** @param {string} day @param {number} later days @returns {string} empty if it is no day */
function startOfDay(day, later) {
  const at = new Date(`${day}T00:00:00`);
  if (Number.isNaN(at.getTime())) return "";
  at.setDate(at.getDate() + later);
  return at.toISOString();
}
