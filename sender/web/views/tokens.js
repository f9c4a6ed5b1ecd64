/** Tokens with their roles: view, operate, enrol, boot. */

import { all, create, remove } from "../api.js";
import { confirmDialog, showDialog } from "../dialogs.js";
import { h, icon } from "../dom.js";
import { choices, field, form } from "../forms.js";
import { announce, showToast, showError } from "../toasts.js";
import { agoElement, dataTable, emptyState, pageHead, timeElement } from "../components.js";
import { ROLES } from "../labels.generated.js";


/**
 * @param {import("../app.js").PageContext} context
 * @returns {Promise<import("../app.js").Page>}
 */
export async function show({ signal, reload }) {
  const tokens = await all("/tokens", {}, signal);
  return {
    title: "Tokens",
    element: h("div", {},
      pageHead("Tokens", {
        lead: "Access for viewers, operators and agents.",
        actions: h("button", { type: "button", class: "button primary", onclick: () => newToken(reload) }, icon("plus"), "New token"),
      }),
      h("div", { class: "card" }, tokens.length ? dataTable("Tokens", columns(reload), tokens).element : emptyState("token", "No tokens yet."))),
  };
}

/** @param {() => void} done @returns {import("../components.js").Column[]} */
function columns(done) {
  return [
    { label: "Name", class: "main", cell: (token) => [token.name, token.expires_at && h("p", { class: "small muted phone-only" }, "until ", timeElement(token.expires_at))] },
    { label: "Role", cell: (token) => ROLES[token.role]?.text ?? token.role },
    { label: "Expires", class: "wide-only", cell: (token) => timeElement(token.expires_at, "never") },
    { label: "Last used", class: "wide-only", cell: (token) => agoElement(token.last_used_at) },
    { label: "Created", class: "wide-only", cell: (token) => [timeElement(token.created_at), ` by ${token.created_by}`] },
    { label: "Revoke", hideLabel: true, cell: (token) => h("button", { type: "button", class: "button danger-outline", onclick: () => revoke(token, done) }, icon("trash"), "Revoke", h("span", { class: "visually-hidden" }, ` ${token.name}`)) },
  ];
}

/** @param {any} token @param {() => void} done */
async function revoke(token, done) {
  const sure = await confirmDialog({ title: `Revoke ${token.name}?`, text: "Its users lose access at once. This can't be undone.", yes: "Revoke the token", danger: true });
  if (!sure) return;
  try {
    await remove(`/tokens/${encodeURIComponent(token.token_id)}`);
    showToast(`${token.name} revoked`);
    done();
  } catch (error) {
    showError(error);
  }
}

/** @param {() => void} done */
async function newToken(done) {
  const made = await showDialog("New token", (close) => {
    const name = field({ label: "Name", name: "name", required: true, hint: "Its user, as shown in the audit log.", attributes: { "data-autofocus": true, maxlength: 64 } });
    const expires = field({ label: "Expires", name: "expires_at", type: "date", hint: "Empty: never." });
    const role = choices({
      legend: "Role", name: "role", value: "view",
      options: Object.entries(ROLES).map(([value, { text, hint }]) => ({ value, label: text, hint })),
    });
    return form({
      fields: [name, expires], content: [name.element, role.element, expires.element], submit: "Create the token",
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
    const box = h("input", { type: "text", class: "secret", readonly: true, value: secret, "aria-label": "Secret of the token", "data-autofocus": true });
    box.addEventListener("focus", () => box.select());
    const copy = async () => {
      try {
        await navigator.clipboard.writeText(secret);
        announce("Copied");
        showToast("Copied", "info");
      } catch {
        box.select(); // a page on plain HTTP may not write to the clipboard
        showToast("Press Ctrl+C to copy it", "info");
      }
    };
    return [
      h("div", { class: "alert", "data-tone": "warn" }, icon("warning"), h("p", {}, "The secret is shown only once, and the daemon doesn't store it.")),
      h("div", { class: "secret-row" }, box, h("button", { type: "button", class: "button", onclick: copy }, icon("copy"), "Copy")),
      h("div", { class: "dialog-actions" }, h("button", { type: "button", class: "button primary", onclick: () => close(true) }, "I have saved it")),
    ];
  });
}
