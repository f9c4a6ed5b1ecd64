/** Subject and detail of audit entries as text; CSV and API have every field. */

import { formatBytes, formatDateTime, formatRate } from "./format.js";
import { to } from "./router.js";

const LISTED_MAX = 3;
const ID_LETTERS = 8;
/** Kinds of subjects that have a page. @type {Record<string, string>} */
const PAGES = { cast: "casts", room: "rooms", machine: "machines" };

/** @param {string} subject `cast 1a2b3c4d` @returns {string | null} the address of its page */
export function subjectAddress(subject) {
  const [, kind, id] = /^(\S+) (\S+)$/.exec(subject) ?? [];
  return PAGES[kind] ? to([PAGES[kind], id]) : null;
}

/** @param {Record<string, any>} detail @returns {string} `name: Lab 1 → Lab 2`, or all values that aren't empty */
export function detailText(detail) {
  const { from, to: after } = detail;
  if (isObject(from) && isObject(after)) {
    return Object.keys(after).map((name) => `${label(name)}: ${valueText(name, from[name])} → ${valueText(name, after[name])}`).join(", ");
  }
  return flat(detail).map(([name, value]) => `${label(name)}: ${valueText(name, value)}`).join(", ");
}

/** @param {Record<string, any>} detail @param {Record<string, any>} [parent] the object around it @returns {[string, any][]} */
function flat(detail, parent = detail) {
  return Object.entries(detail).flatMap(([name, value]) => {
    if (isObject(value)) return flat(value, detail).filter(([, inner]) => inner !== false);
    if (isEmpty(value) || (name === "image_id" && parent.image_name)) return [];
    return [/** @type {[string, any]} */ ([name, value])];
  });
}

/** @param {any} value */
const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
/** @param {any} value */
const isEmpty = (value) => value === null || value === undefined || value === "" || (Array.isArray(value) && !value.length);
/** @param {string} name */
const label = (name) => name.replace(/_bytes(_per_s)?$/, "").replace(/_(id|at|s)$/, "").replaceAll("_", " ");

/** @param {string} name @param {any} value @returns {string} */
function valueText(name, value) {
  if (isEmpty(value)) return "none";
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (Array.isArray(value)) return value.length > LISTED_MAX ? `${value.length} items` : value.map((each) => valueText("", each)).join(" and ");
  if (isObject(value)) return JSON.stringify(value);
  if (typeof value === "number") return name.endsWith("_bytes_per_s") ? formatRate(value) : name.endsWith("_bytes") ? formatBytes(value) : name.endsWith("_s") ? `${value} s` : String(value);
  if (name.endsWith("_at") && !Number.isNaN(Date.parse(value))) return formatDateTime(value);
  return name === "image_id" ? String(value).slice(0, ID_LETTERS) : String(value);
}
