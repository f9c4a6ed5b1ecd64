/** The audit log: actor, action, subject and time of every change. */

import { detailText, subjectAddress } from "../audit_text.js";
import { h } from "../dom.js";
import { field } from "../forms.js";
import { timeElement } from "../components.js";
import { recordPage } from "../record_page.js";
import { to } from "../router.js";

const OFFERED_MAX = 200;

/**
 * @param {import("../app.js").PageContext} context
 * @returns {Promise<import("../app.js").Page>}
 */
export async function show(context) {
  const who = offered({ label: "Actor", name: "actor", hint: "Name of a token or a daemon." });
  const subject = offered({ label: "Subject", name: "subject", hint: "As in the table: cast 1a2b3c4d." });
  return recordPage({
    title: "Audit",
    lead: "Every change with actor and time.",
    name: "audit",
    fields: [who.field, subject.field, field({ label: "From", name: "since", type: "date" }), field({ label: "Until", name: "until", type: "date" })],
    columns: columns(),
    seen: (entries) => {
      who.offer(entries.map((entry) => entry.actor));
      subject.offer(entries.map((entry) => entry.subject));
    },
    nothing: "No matching entries.",
  }, context);
}

/** Creates a field that suggests values of the table. @param {{label: string, name: string, hint: string}} options */
function offered({ label, name, hint }) {
  const list = h("datalist", { id: `offered-${name}` });
  const made = field({ label, name, type: "search", hint, attributes: { list: list.id, maxlength: 200, spellcheck: "false" } });
  made.element.append(list);
  /** @type {Set<string>} */
  const known = new Set();
  const offer = (/** @type {string[]} */ values) => {
    for (const value of values) {
      if (known.has(value) || known.size >= OFFERED_MAX) continue;
      known.add(value);
      list.append(h("option", { value }));
    }
  };
  return { field: made, offer };
}

/** @returns {import("../components.js").Column[]} */
function columns() {
  return [
    { label: "Time", class: "when", cell: (entry) => timeElement(entry.at) },
    { label: "Actor", class: "wide-only", cell: actorLink },
    { label: "Action", cell: (entry) => [h("code", {}, entry.action), h("div", { class: "phone-only" }, h("p", { class: "small" }, subject(entry), " by ", actorLink(entry)), detail(entry, null))] },
    { label: "Subject", class: "wide-only nowrap", cell: subject },
    { label: "Detail", class: "wide-only", cell: (entry) => detail(entry, "–") },
  ];
}

/** @param {any} entry returns a link to all entries of its actor */
function actorLink(entry) {
  return h("a", { class: "quiet-link", href: to(["audit"], { actor: entry.actor }) }, entry.actor);
}

/** @param {any} entry */
function subject(entry) {
  const address = subjectAddress(entry.subject);
  return address ? h("a", { href: address }, entry.subject) : entry.subject;
}

/** @param {any} entry @param {string | null} nothing */
function detail(entry, nothing) {
  const text = detailText(entry.detail ?? {}) || nothing;
  return text && h("span", { class: "detail" }, text);
}
