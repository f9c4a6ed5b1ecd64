/** The colour theme: light, dark, or that of the system; the choice is stored in this browser. */

import { Signal } from "./store.js";
import { getPreference, setPreference } from "./preferences.js";

const DARK = window.matchMedia("(prefers-color-scheme: dark)");

/** @typedef {"auto" | "light" | "dark"} ThemeChoice */

/** The chosen theme. @type {Signal<ThemeChoice>} */
export const themeChoice = new Signal(/** @type {ThemeChoice} */ (getPreference("theme", "auto")));

/** The theme in effect: charts are redrawn when it changes. @type {Signal<"light" | "dark">} */
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

/** Selects the next of auto → light → dark. */
export function cycleTheme() {
  const order = /** @type {ThemeChoice[]} */ (["auto", "light", "dark"]);
  const next = order[(order.indexOf(themeChoice.value) + 1) % order.length];
  setPreference("theme", next);
  themeChoice.set(next);
}
