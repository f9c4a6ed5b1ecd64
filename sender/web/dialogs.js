/** Questions before something is done that can't be undone. The browser's own dialog keeps the focus inside. */

import { freshId, h, icon } from "./dom.js";

/**
 * Shows a dialog until it is closed; the focus returns to where it was.
 * @param {string} title
 * @param {(close: (value: any) => void) => any} content
 * @returns {Promise<any>} what `close` was given; undefined after Escape
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
    const gone = () => dialog.close();
    window.addEventListener("hashchange", gone);
    dialog.addEventListener("close", () => {
      window.removeEventListener("hashchange", gone);
      dialog.remove();
      resolve(result);
    });
    document.body.append(dialog);
    dialog.showModal();
    /** @type {HTMLElement | null} */ (dialog.querySelector("[data-autofocus]"))?.focus();
  });
}

/**
 * @param {{title: string, text: any, yes: string, no?: string, danger?: boolean}} options
 * @returns {Promise<boolean>}
 */
export async function confirmDialog({ title, text, yes, no = "Keep it as it is", danger = false }) {
  const answer = await showDialog(title, (close) => [
    h("div", { class: "dialog-text" }, text),
    h("div", { class: "dialog-actions" },
      h("button", { type: "button", class: "button", "data-autofocus": danger, onclick: () => close(false) }, no),
      h("button", { type: "button", class: danger ? "button danger" : "button primary", "data-autofocus": !danger, onclick: () => close(true) }, yes)),
  ]);
  return answer === true;
}
