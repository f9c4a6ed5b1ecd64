/** Entry point of the dashboard: session, current page, live stream. */

import { all, call, get, post, Unreachable } from "./api.js";
import { fill, h } from "./dom.js";
import { LiveStream } from "./events.js";
import { loadIcons } from "./icons.js";
import { announce, showError } from "./toasts.js";
import { errorBox, errorText, pageHead, refreshAgo } from "./components.js";
import { match } from "./router.js";
import { ROUTES } from "./routes.js";
import { Shell } from "./shell.js";
import { overview, roomNames, server } from "./store.js";

const RETRY_MS = 5_000; // while a daemon starts, or its database is unavailable
const LOAD_ALL_AFTER_MS = 1_000; // the first page comes first
const AGO_EVERY_MS = 15_000; // "2 min ago" is never off by a minute

/**
 * Context of a page.
 * @typedef {object} PageContext
 * @property {Record<string, string>} params of its address
 * @property {URLSearchParams} query
 * @property {AbortSignal} signal aborted when the page is left: ends its requests, listeners and timers
 * @property {LiveStream} live
 * @property {() => void} reload rebuilds the page
 */

/**
 * A page.
 * @typedef {object} Page
 * @property {string} title
 * @property {HTMLElement} element
 * @property {string} [failure] the error text, of a page that couldn't be shown
 * @property {string[]} [topics] topics of live data
 * @property {(params: Record<string, string>, query: URLSearchParams) => boolean} [update] shows another address
 *   without a rebuild; false if it can't
 */

const live = new LiveStream(() => showLogin());
const shell = new Shell(live.connection, logOut);

/** @type {{page: Page, controller: AbortController, route: any} | null} */
let current = null;
let turn = 0;

/** @type {string | undefined} of a link that didn't log in */
let loginProblem;

live.on("overview", (data) => overview.set(data));

/** Shows the page of the address. @param {boolean} [rebuild] even if it is shown already */
async function show(rebuild = false) {
  const place = match(ROUTES, window.location.hash) ?? { route: ROUTES[ROUTES.length - 1], params: {}, query: new URLSearchParams(), path: "" };
  const known = current?.route;
  const same = known && (known === place.route || (known.family !== undefined && known.family === place.route.family));
  if (!rebuild && current && same && current.page.update?.(place.params, place.query)) return;
  const mine = ++turn;
  const controller = new AbortController();
  const context = { params: place.params, query: place.query, signal: controller.signal, live, reload: () => show(true) };
  shell.setBusy(true);
  /** @type {Page} */
  let page;
  try {
    if (!server.value) await connect();
    const view = await place.route.load();
    page = await view.show(context);
  } catch (error) {
    if (mine !== turn) return;
    if (/** @type {any} */ (error).status === 401) {
      shell.setBusy(false);
      await showLogin();
      return;
    }
    const title = /** @type {any} */ (error).status === 404 ? "Not found" : "Error";
    const failure = errorText(error);
    page = { title, failure, element: h("div", {}, pageHead(title), errorBox(error, () => show(true))) };
    if (error instanceof Unreachable || /** @type {any} */ (error).status === 503) window.setTimeout(() => mine === turn && show(true), RETRY_MS);
    if (current?.route === place.route && current.page.failure === failure) {
      controller.abort();
      shell.setBusy(false); // unchanged: nothing moves, and no second announcement
      return;
    }
  }
  if (mine !== turn) {
    controller.abort();
    return;
  }
  const first = current === null;
  current?.controller.abort();
  current = { page, controller, route: place.route };
  shell.setBusy(false);
  shell.mount(page, place.route.section ?? "", first);
  if (server.value) live.open(page.topics ?? []);
  if (first) window.setTimeout(loadAll, LOAD_ALL_AFTER_MS);
}

/** Preloads the scripts of all pages: navigation is instant, and works while the daemon is unavailable. */
function loadAll() {
  for (const route of ROUTES) route.load().catch(() => {});
}

/** Reads the daemon's description, the role of this session, and the names of rooms. */
async function connect() {
  server.set(await get("/server"));
  for (const room of await all("/rooms").catch(() => [])) roomNames.set(room.room_id, room.name);
}

/** Logs in with the one-time code of a link, and removes it from the address. @returns {Promise<string | undefined>} the problem */
async function redeemCode() {
  const code = /^#login=(.+)$/.exec(window.location.hash)?.[1];
  if (!code) return undefined;
  window.history.replaceState(null, "", window.location.pathname);
  try {
    await post("/session", { code });
  } catch (error) {
    return errorText(error);
  }
  return undefined;
}

/** Shows the page of the address, after logging in if the address has a code. */
async function enter() {
  loginProblem = await redeemCode();
  await show(true);
}

async function showLogin() {
  turn += 1;
  live.close();
  server.set(null);
  overview.set(null);
  current?.controller.abort();
  const controller = new AbortController();
  const view = await import("./views/login.js");
  const page = await view.show({ signal: controller.signal, entered: () => show(true), problem: loginProblem });
  loginProblem = undefined;
  current = { page, controller, route: null };
  shell.mount(page, "login", false);
}

async function logOut() {
  try {
    await call("DELETE", "/session");
  } catch (error) {
    showError(error);
    return;
  }
  announce("Logged out");
  await showLogin();
}

window.addEventListener("hashchange", () => {
  if (window.location.hash.startsWith("#login=")) enter();
  else if (server.value || current?.route) show();
});
window.addEventListener("unhandledrejection", (event) => {
  if (event.reason instanceof DOMException && event.reason.name === "AbortError") event.preventDefault();
});
fill(/** @type {HTMLElement} */ (document.getElementById("shell")), shell.element);
loadIcons();
window.setInterval(refreshAgo, AGO_EVERY_MS);
enter();
