/** Short messages about results and errors, and announcements for screen readers. */

import { h, icon } from "./dom.js";
import { errorText } from "./components.js";

const GONE_AFTER_MS = 10_000; // enough to read two lines; errors stay until closed
const SPOKEN_EVERY_MS = 3_000; // a busy cast must not talk without pauses
const SHOWN_MAX = 4;

/** @type {string[]} */
let waiting = [];
let timer = 0;

/**
 * @param {string} text
 * @param {"good" | "bad" | "info"} [tone]
 */
export function showToast(text, tone = "good") {
  const holder = /** @type {HTMLElement} */ (document.getElementById("notices"));
  const element = h("div", { class: "notice", "data-tone": tone, role: tone === "bad" ? "alert" : "status" },
    icon(tone === "bad" ? "warning" : tone === "good" ? "complete" : "info"),
    h("p", {}, text),
    h("button", { type: "button", class: "icon-button", "aria-label": "Close this message", onclick: () => element.remove() }, icon("close")));
  holder.append(element);
  while (holder.childElementCount > SHOWN_MAX) holder.firstElementChild?.remove();
  if (tone !== "bad") window.setTimeout(() => element.remove(), GONE_AFTER_MS);
}

/** @param {unknown} error */
export function showError(error) {
  if (error instanceof DOMException && error.name === "AbortError") return;
  showToast(errorText(error), "bad");
}

/** Announces a text to screen readers, several in a row as one. @param {string} text */
export function announce(text) {
  waiting.push(text);
  if (timer) return;
  timer = window.setTimeout(speak, 100);
}

function speak() {
  const holder = /** @type {HTMLElement} */ (document.getElementById("announcer"));
  holder.textContent = waiting.length > 3 ? `${waiting.slice(-3).join(". ")}, and ${waiting.length - 3} more` : waiting.join(". ");
  waiting = [];
  timer = window.setTimeout(() => {
    timer = 0;
    if (waiting.length) speak();
  }, SPOKEN_EVERY_MS);
}
