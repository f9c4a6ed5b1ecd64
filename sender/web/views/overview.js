/** The overview: running casts, problems, recent casts. */

import { get } from "../api.js";
import { CastCard } from "../cast_card.js";
import { fill, h, icon } from "../dom.js";
import { formatDuration } from "../format.js";
import { inNextFrame } from "../render_queue.js";
import { agoElement, badge, dataTable, emptyState, Figures, pageHead, section, timeElement } from "../components.js";
import { to } from "../router.js";
import { mayOperate, overview, roomName, server } from "../store.js";
import { castLabel, hasEnded, problemLabel } from "../labels.js";

/**
 * @param {import("../app.js").PageContext} context
 * @returns {Promise<import("../app.js").Page>}
 */
export async function show({ signal }) {
  if (!overview.value) overview.set(await firstSnapshot(signal));
  const figures = new Figures([["casts", "Running casts"], ["online", "Machines online"], ["problems", "Problems"], ["version", "Daemon"]], "headline");
  const problems = h("div", { class: "problems" });
  const current = h("div", { class: "cast-cards" });
  const recent = h("div");
  /** @type {Map<string, CastCard>} */
  const cards = new Map();
  let recentShown = "";
  let problemsShown = "";

  const draw = () => {
    if (signal.aborted || !overview.value) return;
    const { casts, machines_online: online, machines_total: total, problems: known } = overview.value;
    const running = casts.filter((/** @type {any} */ live) => !hasEnded(live.cast.phase));
    const ended = casts.filter((/** @type {any} */ live) => hasEnded(live.cast.phase));
    figures.update({
      casts: String(running.length),
      online: `${online} of ${total}`,
      problems: known.length ? String(known.length) : "None",
      version: server.value ? `diskcast ${server.value.version}` : "",
    });
    figures.element.classList.toggle("has-problems", known.length > 0);
    const problemKey = JSON.stringify(known);
    if (problemKey !== problemsShown) {
      problemsShown = problemKey;
      fill(problems, known.map(problemBox));
    }
    drawCards(current, cards, running);
    const recentKey = JSON.stringify(ended.map((/** @type {any} */ live) => live.cast));
    if (recentKey !== recentShown || !recent.firstChild) {
      recentShown = recentKey;
      fill(recent, ended.length ? recentTable(ended) : emptyState("history", "No ended casts yet."));
    }
  };
  overview.follow(() => inNextFrame(figures, draw), signal);
  draw();

  const element = h("div", {},
    pageHead("Overview", { actions: newCastLink() }),
    problems,
    figures.element,
    section("Running casts", { class: "plain" }, current),
    section("Recent casts", { actions: h("a", { class: "text-link", href: "#/casts" }, "All casts", icon("next")) }, recent));
  return { title: "Overview", element };
}

/** Reads the first snapshot, before the live stream has one. @param {AbortSignal} signal */
async function firstSnapshot(signal) {
  const description = server.value ?? (await get("/server", {}, signal));
  return { casts: [], machines_online: description.machines_online, machines_total: description.machines_total, problems: description.problems };
}

/** Creates a link to a new cast, for operators. @param {Record<string, any>} [query] @param {string} [text] */
export function newCastLink(query, text = "New cast") {
  return mayOperate() && h("a", { class: "button primary", href: to(["new-cast"], query) }, icon("plus"), text);
}

/** @param {any} problem */
function problemBox(problem) {
  return h("div", { class: "alert", "data-tone": "bad" }, icon("warning"),
    h("div", {}, h("p", {}, h("strong", {}, `${problemLabel(problem.kind)}: `), problem.text),
      h("p", { class: "muted small" }, "Since ", timeElement(problem.since))));
}

/**
 * @param {HTMLElement} holder
 * @param {Map<string, CastCard>} cards
 * @param {any[]} running
 */
function drawCards(holder, cards, running) {
  const wanted = new Set(running.map((live) => live.cast.cast_id));
  for (const [id, card] of cards) {
    if (!wanted.has(id)) {
      card.element.remove();
      cards.delete(id);
    }
  }
  if (!running.length) {
    if (!holder.querySelector(".empty")) {
      fill(holder, emptyState("cast", "No running casts.", mayOperate() && h("p", {}, "Choose an image and a room to start one.")));
    }
    return;
  }
  holder.querySelector(".empty")?.remove();
  running.forEach((live, index) => {
    let card = cards.get(live.cast.cast_id);
    if (!card) {
      card = new CastCard(live);
      cards.set(live.cast.cast_id, card);
    }
    card.update(live);
    if (holder.children[index] !== card.element) holder.insertBefore(card.element, holder.children[index] ?? null);
  });
}

/** @param {any[]} ended */
function recentTable(ended) {
  return dataTable("Recent casts", castColumns(), ended.map((live) => live.cast)).element;
}

/** Returns the columns of a list of casts. @returns {import("../components.js").Column[]} */
export function castColumns() {
  return [
    { label: "Cast", class: "main", cell: (cast) => h("a", { href: to(["casts", cast.cast_id]) }, cast.plan.name || cast.image_name) },
    { label: "Room", cell: (cast) => (cast.plan.room_id ? h("a", { href: to(["rooms", cast.plan.room_id]) }, roomName(cast.plan.room_id)) : "–") },
    { label: "Result", live: true, cell: (cast) => badge(castLabel(cast)) },
    { label: "Machines", class: "number", live: true, cell: (cast) => machinesText(cast) },
    { label: "Took", class: "number wide-only", live: true, cell: (cast) => (cast.seconds ? formatDuration(cast.seconds) : "–") },
    { label: "Time", class: "wide-only", live: true, cell: (cast) => whenElement(cast) },
  ];
}

/** @param {any} cast */
function whenElement(cast) {
  const at = cast.ended_at ?? cast.casting_at ?? cast.plan.start_at ?? cast.created_at;
  return new Date(at) > new Date() ? ["at ", timeElement(at)] : agoElement(at);
}

/** @param {any} cast */
function machinesText(cast) {
  const text = `${cast.complete_count} of ${cast.required_count || cast.joined_count}`;
  return cast.failed_count ? [text, h("span", { class: "bad-text" }, ` · ${cast.failed_count} failed`)] : text;
}
