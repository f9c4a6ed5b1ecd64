/** Light, dark, or as the system says; the choice is kept in this browser. */

import { Signal } from "./store.js";
import { kept, keep } from "./preferences.js";

const DARK = window.matchMedia("(prefers-color-scheme: dark)");

/** @typedef {"auto" | "light" | "dark"} ThemeChoice */

/** What the person chose. @type {Signal<ThemeChoice>} */
export const themeChoice = new Signal(/** @type {ThemeChoice} */ (kept("theme", "auto")));

/** What is shown: charts are drawn anew when it changes. @type {Signal<"light" | "dark">} */
export const theme = new Signal(resolve());

function resolve() {
  const choice = themeChoice.value;
  if (choice === "light" || choice === "dark") return choice;
  return DARK.matches ? "dark" : "light";
}

function apply() {
  const shown = resolve();
  document.documentElement.dataset.theme = shown;
  theme.set(shown);
}

DARK.addEventListener("change", apply);
themeChoice.subscribe(apply);

/** The next of auto → light → dark. */
export function turnTheme() {
  const order = /** @type {ThemeChoice[]} */ (["auto", "light", "dark"]);
  const next = order[(order.indexOf(themeChoice.value) + 1) % order.length];
  keep("theme", next);
  themeChoice.set(next);
}
