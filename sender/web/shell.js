/** The frame of every page: header, navigation, connection state, focus. */

import { fill, h, icon, setAttribute, setIcon, setText } from "./dom.js";
import { formatTime } from "./format.js";
import { announce } from "./toasts.js";
import { server } from "./store.js";
import { themeChoice, cycleTheme } from "./theme.js";

/** @typedef {[section: string, label: string, address: string, icon: string]} NavigationEntry */

/** @type {NavigationEntry[]} */
const MAIN = [
  ["overview", "Overview", "#/", "overview"],
  ["rooms", "Rooms", "#/rooms", "room"],
  ["casts", "Casts", "#/casts", "cast"],
  ["images", "Images", "#/images", "image"],
];
/** Entries behind "More" on a phone. @type {NavigationEntry[]} */
const MORE = [
  ["schedules", "Schedules", "#/schedules", "schedule"],
  ["history", "History", "#/history", "history"],
  ["audit", "Audit", "#/audit", "audit"],
  ["tokens", "Tokens", "#/tokens", "token"],
];
const THEME_NAMES = { auto: "system", light: "light", dark: "dark" };
const THEME_ICONS = { auto: "auto", light: "sun", dark: "moon" };
const QUIET_START_MS = 1_500; // a page that has just opened needn't show "connecting" yet

/** The page's frame. */
export class Shell {
  /**
   * @param {import("./store.js").Signal<import("./events.js").Connection>} connection
   * @param {() => void} logOut
   */
  constructor(connection, logOut) {
    this.connection = connection;
    this.links = new Map();
    this.main = h("main", { id: "main", tabindex: -1 });
    this.banner = h("div", { class: "connection-banner", role: "status", hidden: true });
    this.busy = h("div", { class: "busy-bar", hidden: true, "aria-hidden": "true" });
    this.pill = h("span", { class: "connection", "data-state": "connecting" }, h("span", { class: "dot", "aria-hidden": "true" }), h("span", { class: "connection-text" }, "Connecting"));
    this.serverName = h("span", { class: "server-name" });
    this.themeIcon = icon("auto");
    this.themeButton = h("button", { type: "button", class: "icon-button", onclick: cycleTheme }, this.themeIcon);
    this.logOutButton = h("button", { type: "button", class: "icon-button", "aria-label": "Log out", title: "Log out", hidden: true, onclick: logOut }, icon("logout"));
    this.more = h("button", { type: "button", class: "nav-link more-toggle", "aria-expanded": "false", "aria-controls": "nav-more", onclick: () => this.#toggleMore() }, icon("more"), h("span", {}, "More"));
    this.moreList = h("ul", { id: "nav-more", class: "nav-list nav-more" }, MORE.map((entry) => this.#link(entry)));
    this.nav = h("nav", { class: "nav", "aria-label": "Main" },
      h("ul", { class: "nav-list" }, MAIN.map((entry) => this.#link(entry)), h("li", { class: "more-item" }, this.more)),
      this.moreList);
    this.element = h("div", { class: "shell" },
      h("header", { class: "top" },
        h("a", { class: "brand", href: "#/", "aria-label": "diskcast, overview" }, brandMark(), h("span", { class: "brand-name" }, "diskcast")),
        this.serverName, h("span", { class: "spacer" }), this.pill, this.themeButton, this.logOutButton),
      this.busy, this.nav, this.banner, this.main);

    document.getElementById("skip-link")?.addEventListener("click", (event) => {
      event.preventDefault();
      this.main.focus();
    });
    document.addEventListener("click", (event) => {
      if (!this.nav.contains(/** @type {Node} */ (event.target))) this.#toggleMore(false);
    });
    this.nav.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
      if (event.key === "Escape" && this.nav.classList.contains("open")) {
        this.#toggleMore(false);
        this.more.focus();
      }
    });
    themeChoice.follow((choice) => {
      setIcon(this.themeIcon, THEME_ICONS[choice]);
      const title = `Colours: ${THEME_NAMES[choice]}. Change`;
      setAttribute(this.themeButton, "aria-label", title);
      setAttribute(this.themeButton, "title", title);
    });
    server.follow((value) => this.#showServer(value));
    this.connectionWord = "";
    connection.subscribe((value) => this.#showConnection(value));
    window.setTimeout(() => this.#showConnection(connection.value), QUIET_START_MS);
  }

  /**
   * @param {import("./app.js").Page} page
   * @param {string} section
   * @param {boolean} first true before any navigation: the browser places the focus
   */
  mount(page, section, first) {
    this.#toggleMore(false);
    this.element.classList.toggle("bare", section === "login");
    document.title = `${page.title} · diskcast`;
    fill(this.main, page.element);
    for (const [name, link] of this.links) setAttribute(link, "aria-current", name === section ? "page" : null);
    setAttribute(this.more, "data-current", MORE.some(([name]) => name === section) ? "true" : null);
    if (first) return;
    window.scrollTo(0, 0);
    const heading = /** @type {HTMLElement | null} */ (this.main.querySelector("[data-autofocus]") ?? this.main.querySelector("h1"));
    (heading ?? this.main).focus({ preventScroll: true });
  }

  /** @param {boolean} busy */
  setBusy(busy) {
    this.busy.hidden = !busy;
    setAttribute(this.main, "aria-busy", busy ? "true" : null);
  }

  /** @param {NavigationEntry} entry */
  #link([section, label, address, iconName]) {
    const link = h("a", { class: "nav-link", href: address, onclick: () => this.#toggleMore(false) }, icon(iconName), h("span", {}, label));
    this.links.set(section, link);
    return h("li", {}, link);
  }

  #toggleMore(open = !this.nav.classList.contains("open")) {
    this.nav.classList.toggle("open", open);
    setAttribute(this.more, "aria-expanded", String(open));
  }

  /** @param {any} value */
  #showServer(value) {
    setText(this.serverName, value ? value.name : "");
    this.logOutButton.hidden = !value;
    const tokens = this.links.get("tokens").parentElement;
    tokens.hidden = Boolean(value) && value.role !== "operate";
  }

  /** @param {import("./events.js").Connection} value */
  #showConnection({ state, dataAt }) {
    if (state === this.connectionWord) return;
    const before = this.connectionWord;
    this.connectionWord = state;
    setAttribute(this.pill, "data-state", state);
    setText(this.pill.lastElementChild, { live: "Live", lost: "Connection lost", connecting: "Connecting" }[state]);
    const lost = state === "lost";
    document.documentElement.toggleAttribute("data-stale", lost);
    this.banner.hidden = !lost;
    if (lost) {
      fill(this.banner, icon("lost"), h("p", {}, h("strong", {}, "Connection lost"), dataAt ? `, data from ${formatTime(dataAt)}. ` : ". ", "Reconnecting to the daemon…"));
    } else if (before === "lost" && state === "live") {
      announce("Connected again");
    }
  }
}

function brandMark() {
  const mark = icon("cast");
  mark.classList.add("brand-mark");
  return mark;
}
