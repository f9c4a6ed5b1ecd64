/** Tokens: who may look, operate, or enrol machines. */

import { all, create, remove } from "../api.js";
import { confirmDialog, showDialog } from "../dialogs.js";
import { h, icon } from "../dom.js";
import { choices, field, form } from "../forms.js";
import { announce, notice, noticeError } from "../toasts.js";
import { agoElement, dataTable, emptyState, pageHead, timeElement } from "../components.js";
import { server } from "../store.js";

/** @type {Record<string, string>} */
const ROLES = { view: "View", operate: "Operate", enrol: "Enrol" };

/**
 * @param {import("../app.js").PageContext} context
 * @returns {Promise<import("../app.js").Page>}
 */
export async function show({ signal, reload }) {
  const tokens = await all("/tokens", {}, signal);
  const open = server.value.auth === "open";
  return {
    title: "Tokens",
    element: h("div", {},
      pageHead("Tokens", {
        lead: open ? "This daemon listens on this machine only and asks nobody for a token. One that others reach demands them." : "Who may look, operate, or check machines in.",
        actions: h("button", { type: "button", class: "button primary", onclick: () => newToken(reload) }, icon("plus"), "New token"),
      }),
      h("div", { class: "card" }, tokens.length ? dataTable("Tokens", columns(reload), tokens).element : emptyState("token", "There is no token yet."))),
  };
}

/** @param {() => void} done @returns {import("../components.js").Column[]} */
function columns(done) {
  return [
    { label: "Name", class: "main", cell: (token) => [token.name, token.expires_at && h("p", { class: "small muted phone-only" }, "until ", timeElement(token.expires_at))] },
    { label: "Role", cell: (token) => ROLES[token.role] ?? token.role },
    { label: "Expires", class: "wide-only", cell: (token) => timeElement(token.expires_at, "never") },
    { label: "Last used", class: "wide-only", cell: (token) => agoElement(token.last_used_at) },
    { label: "Created", class: "wide-only", cell: (token) => [timeElement(token.created_at), ` by ${token.created_by}`] },
    { label: "Revoke", hideLabel: true, cell: (token) => h("button", { type: "button", class: "button danger-outline", onclick: () => revoke(token, done) }, icon("trash"), "Revoke", h("span", { class: "visually-hidden" }, ` ${token.name}`)) },
  ];
}

/** @param {any} token @param {() => void} done */
async function revoke(token, done) {
  const sure = await confirmDialog({ title: `Revoke ${token.name}?`, text: "Whoever uses it is locked out at once. It can't be taken back.", yes: "Revoke the token", danger: true });
  if (!sure) return;
  try {
    await remove(`/tokens/${encodeURIComponent(token.token_id)}`);
    notice(`${token.name} is revoked`);
    done();
  } catch (error) {
    noticeError(error);
  }
}

/** @param {() => void} done */
async function newToken(done) {
  const made = await showDialog("New token", (close) => {
    const name = field({ label: "Name", name: "name", required: true, hint: "Who or what uses it: it stands in audit.", attributes: { "data-autofocus": true, maxlength: 64 } });
    const expires = field({ label: "Expires", name: "expires_at", type: "date", hint: "Empty: never." });
    const role = choices({
      legend: "Role", name: "role", value: "view",
      options: [
        { value: "view", label: "View", hint: "Sees everything, changes nothing." },
        { value: "operate", label: "Operate", hint: "Sees and changes everything." },
        { value: "enrol", label: "Enrol", hint: "For agents: checks a machine in and gets its cast, nothing else." },
      ],
    });
    return form({
      fields: [name, expires], content: [name.element, role.element, expires.element], submit: "Make the token",
      cancel: h("button", { type: "button", class: "button", onclick: () => close(null) }, "Cancel"),
      onsubmit: async () => {
        const at = expires.input.value ? new Date(`${expires.input.value}T23:59:59`).toISOString() : null;
        close(await create("/tokens", { name: name.input.value.trim(), role: role.read(), expires_at: at }));
      },
    });
  });
  if (!made) return;
  await showSecret(made);
  done();
}

/** @param {{token: any, secret: string}} made */
async function showSecret({ token, secret }) {
  await showDialog(`Token ${token.name}`, (close) => {
    const box = h("input", { type: "text", class: "secret", readonly: true, value: secret, "aria-label": "The token's secret", "data-autofocus": true });
    box.addEventListener("focus", () => box.select());
    const copy = async () => {
      try {
        await navigator.clipboard.writeText(secret);
        announce("Copied");
        notice("Copied", "info");
      } catch {
        box.select(); // a page on plain HTTP may not write to the clipboard: the person does
        notice("Press Ctrl+C to copy it", "info");
      }
    };
    return [
      h("div", { class: "alert", "data-tone": "warn" }, icon("warning"), h("p", {}, "This is shown once. Nobody can read it again, not even the daemon.")),
      h("div", { class: "secret-row" }, box, h("button", { type: "button", class: "button", onclick: copy }, icon("copy"), "Copy")),
      h("div", { class: "dialog-actions" }, h("button", { type: "button", class: "button primary", onclick: () => close(true) }, "I have kept it")),
    ];
  });
}
