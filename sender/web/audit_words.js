/** An audit entry's subject and detail as people read them; the CSV and the API have every field. */

import { formatBytes, formatDateTime, formatRate } from "./format.js";
import { to } from "./router.js";

const LISTED_MAX = 3;
const ID_LETTERS = 8;
/** Kinds of subjects that have a page. @type {Record<string, string>} */
const PAGES = { cast: "casts", room: "rooms", machine: "machines" };

/** @param {string} subject `cast 1a2b3c4d` @returns {string | null} where it is shown */
export function subjectAddress(subject) {
  const [, kind, id] = /^(\S+) (\S+)$/.exec(subject) ?? [];
  return PAGES[kind] ? to([PAGES[kind], id]) : null;
}

/** @param {Record<string, any>} told @returns {string} `name: Lab 1 → Lab 2`, or what isn't empty, with what is nested */
export function detailWords(told) {
  const { from, to: after } = told;
  if (isObject(from) && isObject(after)) {
    return Object.keys(after).map((name) => `${label(name)}: ${valueWords(name, from[name])} → ${valueWords(name, after[name])}`).join(", ");
  }
  return flat(told).map(([name, value]) => `${label(name)}: ${valueWords(name, value)}`).join(", ");
}

/** @param {Record<string, any>} told @param {Record<string, any>} [around] what it is nested in @returns {[string, any][]} */
function flat(told, around = told) {
  return Object.entries(told).flatMap(([name, value]) => {
    if (isObject(value)) return flat(value, told).filter(([, inner]) => inner !== false);
    if (isEmpty(value) || (name === "image_id" && around.image_name)) return [];
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
function valueWords(name, value) {
  if (isEmpty(value)) return "nothing";
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (Array.isArray(value)) return value.length > LISTED_MAX ? `${value.length} of them` : value.map((each) => valueWords("", each)).join(" and ");
  if (isObject(value)) return JSON.stringify(value);
  if (typeof value === "number") return name.endsWith("_bytes_per_s") ? formatRate(value) : name.endsWith("_bytes") ? formatBytes(value) : name.endsWith("_s") ? `${value} s` : String(value);
  if (name.endsWith("_at") && !Number.isNaN(Date.parse(value))) return formatDateTime(value);
  return name === "image_id" ? String(value).slice(0, ID_LETTERS) : String(value);
}
