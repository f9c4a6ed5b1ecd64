/** The preflight of a cast: the matrix machine by check, with reasons and fixes. */

import { post } from "./api.js";
import { badge, dataTable } from "./components.js";
import { h, icon } from "./dom.js";
import { formatCount } from "./format.js";
import { preflightLabel, sentence } from "./labels.js";

const REASONS_MAX = 60; // several per machine; the command line has all of them

/**
 * @typedef {object} Preflight
 * @property {string} image_name
 * @property {boolean} image_known
 * @property {string} problem
 * @property {number} refused_count
 * @property {number} warned_count
 * @property {{machine_id: string, name: string, grade: string, checks: {subject: string, grade: string, reason: string, fix: string}[]}[]} machines
 */

/**
 * @param {{image: string, room_id: string | null, machine_ids: string[]}} plan
 * @returns {Promise<Preflight>}
 */
export function askPreflight({ image, room_id, machine_ids }) {
  return post("/casts/preflight", { image, room_id, machine_ids });
}

/** @param {Preflight} found @returns {boolean} every machine is refused */
export const nobodyFits = (found) => found.machines.length > 0 && found.refused_count === found.machines.length;

/** @param {Preflight} found @returns {HTMLElement} the matrix of the machines that don't simply fit, with their reasons */
export function preflightElement(found) {
  const shown = found.machines.filter((machine) => ["refuse", "warn"].includes(machine.grade));
  const rest = found.machines.length - shown.length;
  if (!shown.length) return h("p", { class: "muted" }, found.machines.length ? "The preflight found nothing against these machines." : "The preflight knows no machine of this cast yet.");
  const subjects = found.machines[0].checks.map((check) => check.subject);
  const columns = [
    { label: "Machine", cell: (/** @type {any} */ machine) => machine.name },
    ...subjects.map((subject, index) => ({
      label: sentence(subject).replace(/\.$/, ""),
      cell: (/** @type {any} */ machine) => badge(preflightLabel(machine.checks[index].grade)),
    })),
  ];
  const reasons = shown.flatMap((machine) => machine.checks
    .filter((check) => ["refuse", "warn"].includes(check.grade))
    .map((check) => ({ machine, check })));
  return h("div", { class: "preflight" },
    h("p", {}, summary(found)),
    dataTable("Preflight", columns, shown).element,
    rest ? h("p", { class: "muted" }, `${formatCount(rest, "other machine")} without refusals or warnings.`) : null,
    h("ul", { class: "preflight-reasons" }, reasons.slice(0, REASONS_MAX).map(({ machine, check }) =>
      h("li", {}, h("strong", {}, `${machine.name}, ${check.subject}: `), `${check.reason}.`, check.fix && ` ${sentence(check.fix)}`))),
    reasons.length > REASONS_MAX ? h("p", { class: "muted" }, `And ${formatCount(reasons.length - REASONS_MAX, "more reason")}: see diskcast casts preflight.`) : null,
    found.image_known ? null : h("div", { class: "alert", "data-tone": "warn" }, icon("warning"), h("p", {}, "Only the image's size was checked: its contents aren't known yet.")));
}

/** @param {Preflight} found */
function summary({ refused_count: refused, warned_count: warned }) {
  return [
    refused ? `${formatCount(refused, "machine")} ${refused === 1 ? "doesn't" : "don't"} fit the image and will be left out; nothing is written there.` : "",
    warned ? `${formatCount(warned, "machine")} ${warned === 1 ? "has" : "have"} warnings.` : "",
  ].filter(Boolean).join(" ");
}
