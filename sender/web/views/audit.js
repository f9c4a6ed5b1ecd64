/** Audit: who did what, when. */

import { get } from "../api.js";
import { h, icon } from "../dom.js";
import { noticeError } from "../notices.js";
import { emptyState, pagedTable, pageHead, timeElement } from "../parts.js";

/**
 * @param {import("../app.js").PageContext} context
 * @returns {Promise<import("../app.js").Page>}
 */
export async function show({ signal }) {
  const table = await pagedTable({
    caption: "Audit",
    columns: [
      { label: "When", class: "main when", cell: (entry) => timeElement(entry.at) },
      { label: "Who", cell: (entry) => entry.actor },
      { label: "Did", cell: (entry) => h("code", {}, entry.action) },
      { label: "To", cell: (entry) => entry.subject },
      { label: "Detail", class: "wide-only", cell: (entry) => detail(entry.detail) },
    ],
    load: (cursor) => get("/audit", { cursor, limit: 50 }, signal),
    empty: () => emptyState("audit", "Nobody has changed anything yet."),
    report: noticeError,
  });
  return {
    title: "Audit",
    element: h("div", {}, pageHead("Audit", { lead: "Who did what, when.", actions: h("a", { class: "button", href: "/api/v1/audit.csv", download: "audit.csv" }, icon("download"), "As CSV") }), h("div", { class: "card" }, table)),
  };
}

/** @param {Record<string, any>} told */
function detail(told) {
  const words = Object.entries(told ?? {}).map(([name, value]) => `${name.replaceAll("_", " ")}: ${typeof value === "string" ? value : JSON.stringify(value)}`).join(", ");
  return h("span", { class: "detail", title: words }, words || "–");
}
