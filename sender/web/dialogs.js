/** Dialogs and confirmations. The browser's own dialog element keeps the focus inside. */

import { freshId, h, icon } from "./dom.js";

/**
 * Shows a dialog until it is closed; the focus then returns to its previous element.
 * @param {string} title
 * @param {(close: (value: any) => void) => any} content
 * @returns {Promise<any>} the argument of `close`; undefined after Escape
 */
export function showDialog(title, content) {
  return new Promise((resolve) => {
    const id = freshId("dialog");
    /** @type {any} */
    let result;
    const dialog = h("dialog", { "aria-labelledby": id, class: "dialog" });
    const close = (/** @type {any} */ value) => {
      result = value;
      dialog.close();
    };
    dialog.append(
      h("div", { class: "dialog-head" }, h("h2", { id }, title),
        h("button", { type: "button", class: "icon-button", "aria-label": "Close", onclick: () => close(undefined) }, icon("close"))),
      h("div", { class: "dialog-body" }, content(close)),
    );
    const closeDialog = () => dialog.close();
    window.addEventListener("hashchange", closeDialog);
    dialog.addEventListener("close", () => {
      window.removeEventListener("hashchange", closeDialog);
      dialog.remove();
      resolve(result);
    });
    document.body.append(dialog);
    dialog.showModal();
    /** @type {HTMLElement | null} */ (dialog.querySelector("[data-autofocus]"))?.focus();
  });
}

/**
 * @param {{title: string, text: any, yes: string, no?: string, danger?: boolean, consent?: string}} options
 *   consent: a statement to tick before `yes` can be pressed
 * @returns {Promise<boolean>}
 */
export async function confirmDialog({ title, text, yes, no = "Keep", danger = false, consent = "" }) {
  const answer = await showDialog(title, (close) => {
    const accept = h("button", { type: "button", class: danger ? "button danger" : "button primary", "data-autofocus": !danger && !consent, disabled: Boolean(consent), onclick: () => close(true) }, yes);
    const id = freshId("consent");
    const box = h("input", { type: "checkbox", id, onchange: () => { accept.disabled = !box.checked; } });
    return [
      h("div", { class: "dialog-text" }, text),
      consent ? h("div", { class: "check" }, box, h("label", { for: id }, consent)) : null,
      h("div", { class: "dialog-actions" },
        h("button", { type: "button", class: "button", "data-autofocus": danger || Boolean(consent), onclick: () => close(false) }, no),
        accept),
    ];
  });
  return answer === true;
}
