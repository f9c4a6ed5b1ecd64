/** A cast: how far it is, what limits it, its machines, its charts, what happened; and its buttons. */

import { get, post } from "../api.js";
import { castProgress, progressWords } from "../cast_card.js";
import { CastMachines } from "../cast_machines.js";
import { castCharts } from "../charts.js";
import { confirmDialog } from "../dialogs.js";
import { fill, h, icon, setAttribute, setText } from "../dom.js";
import { formatBytes, formatDateTime, formatDuration, formatRate, formatTime } from "../format.js";
import { inNextFrame } from "../render_queue.js";
import { announce, notice, noticeError } from "../toasts.js";
import { badge, Figures, pageHead, ProgressBar, section, setBadge } from "../components.js";
import { to } from "../router.js";
import { mayOperate, roomName } from "../store.js";
import { castBottleneckWords, castLook, eventIcon, eventTone, hasEnded, inTrouble, isLive, sentence, startWords } from "../words.js";

const EVENTS_MAX = 1_000; // the newest are shown; history has all

/**
 * @param {import("../app.js").PageContext} context
 * @returns {Promise<import("../app.js").Page>}
 */
export async function show({ params, signal, live: stream }) {
  const path = `/casts/${encodeURIComponent(params.cast)}`;
  const [first, timeline, records] = await Promise.all([
    get(`${path}/live`, {}, signal),
    get(`${path}/timeline`, {}, signal),
    get(`${path}/machines`, { limit: 500 }, signal),
  ]);
  let { live } = first;
  let points = timeline.points;
  const title = live.cast.plan.name || live.cast.image_name;

  const head = castHead(live);
  const charts = castCharts(signal);
  const chartSection = section("Charts", { class: "card" }, h("div", { class: "charts" }, charts.elements));
  const drawCharts = () => {
    chartSection.hidden = !points.some((/** @type {any} */ point) => point.progress > 0 || point.rate_bytes_per_s > 0);
    charts.update(points);
  };
  const machines = new CastMachines(signal);
  const events = eventList();
  const buttons = castButtons(path, (cast) => {
    live = { ...live, cast };
    head.update(live);
    buttons.update(cast);
  });

  const readRecords = () => get(`${path}/machines`, { limit: 500 }, signal).then(({ items }) => machines.setRecords(items), noticeError);
  let troubled = 0;
  const follow = (/** @type {any} */ data) => {
    if (data.cast_id !== params.cast) return;
    const before = live.cast;
    live = data.live;
    points = data.full ? data.points : points.concat(data.points);
    if (data.machines.length || data.full) machines.update(data.machines, data.full);
    if (data.full) events.reset(data.events);
    else events.add(data.events);
    if (data.points.length || data.full) drawCharts();
    inNextFrame(head, () => {
      head.update(live);
      buttons.update(live.cast);
    });
    if (before.phase !== live.cast.phase) {
      announce(`${title}: ${castLook(live.cast).label}`);
      if (hasEnded(live.cast.phase)) readRecords();
    }
    const now = live.cast.failed_count;
    if (now > troubled) {
      for (const machine of data.machines) if (!data.full && inTrouble(machine.state)) announce(`${machine.name} is in trouble: ${machine.error || machine.state}`);
      readRecords();
    }
    troubled = now;
  };
  stream.on("cast", follow, signal);

  head.update(live);
  buttons.update(live.cast);
  machines.update(first.machines, true);
  machines.setRecords(records.items);
  events.reset(timeline.events);
  drawCharts();
  troubled = live.cast.failed_count;

  const { cast } = live;
  const element = h("div", {},
    pageHead(title, {
      back: ["#/casts", "Casts"],
      lead: ["Image ", h("strong", {}, cast.image_name), " → ", cast.plan.room_id ? h("a", { href: to(["rooms", cast.plan.room_id]) }, roomName(cast.plan.room_id)) : "whoever joins", h("span", { class: "muted" }, ` · cast ${cast.cast_id}`)],
      actions: buttons.element,
    }),
    head.element,
    section("Machines", {}, machines.element),
    chartSection,
    h("div", { class: "two-columns" },
      section("What happened", {}, events.element),
      section("Its plan", {}, planList(cast))));
  return { title, element, topics: [`cast:${params.cast}`] };
}

/** @param {any} first */
function castHead(first) {
  const state = badge(castLook(first.cast));
  const bar = new ProgressBar("Progress of the cast");
  const words = h("span", { class: "progress-words big" });
  const line = h("p", { class: "bottleneck" });
  const reason = h("div");
  let reasonShown = "";
  const figures = new Figures([["rate", "Rate"], ["eta", "To go"], ["elapsed", "Elapsed"], ["complete", "Complete"], ["failed", "Failed"], ["sent", "Sent"]]);
  const element = h("div", { class: "card cast-head" }, h("div", { class: "cast-head-row" }, state, line), reason, h("div", { class: "progress-row" }, bar.element, words), figures.element);
  const update = (/** @type {any} */ live) => {
    const { cast } = live;
    const look = castLook(cast);
    setBadge(state, look);
    setAttribute(element, "data-tone", look.tone);
    bar.set(castProgress(live), look.tone);
    setText(words, progressWords(live));
    setText(line, lineWords(live));
    const moving = cast.phase === "casting" || cast.phase === "tail";
    figures.update({
      rate: moving ? formatRate(live.achieved_bytes_per_s) : cast.seconds > 0 ? formatRate(cast.bytes_sent / cast.seconds) : "",
      eta: moving && live.eta_s !== null ? formatDuration(live.eta_s) : "",
      elapsed: live.elapsed_s || cast.seconds ? formatDuration(live.elapsed_s || cast.seconds) : "",
      complete: `${cast.complete_count} of ${cast.required_count || cast.joined_count}`,
      failed: String(cast.failed_count),
      sent: cast.bytes_sent ? formatBytes(cast.bytes_sent) : "",
    });
    figures.element.classList.toggle("has-failed", cast.failed_count > 0);
    const key = hasEnded(cast.phase) ? `${cast.phase}${cast.reason}${cast.failed_count}` : "";
    if (key !== reasonShown) {
      reasonShown = key;
      fill(reason, key && endBox(cast, look));
    }
  };
  return { element, update };
}

/** @param {any} live @returns {string} what goes on, in one line */
function lineWords(live) {
  const { cast } = live;
  if (cast.paused) return "No data flows until it is resumed; machines keep what they have.";
  if (cast.phase === "planned") return cast.plan.start_at ? `Gathers from ${formatDateTime(cast.plan.start_at)}, then begins ${startWords(cast.plan)}` : "Waits for a daemon that is free";
  if (cast.phase === "gathering") return `Begins ${startWords(cast.plan)}`;
  if (isLive(cast.phase)) return [`Pass ${live.pass_index + 1}`, live.bottleneck && `limited by ${castBottleneckWords(live.bottleneck)}`].filter(Boolean).join(" · ");
  return cast.ended_at ? `Ended ${formatDateTime(cast.ended_at)}` : "";
}

/** @param {any} cast @param {import("../words.js").Look} look how it ended, and what can be done about it */
function endBox(cast, look) {
  const left = (cast.required_count || cast.joined_count) - cast.complete_count;
  const words = cast.phase === "done" ? "Every machine verified every byte." : sentence(cast.reason) || look.label;
  const again = cast.phase !== "done" && mayOperate() && h("a", { class: "button", href: to(["new-cast"], { again: cast.cast_id }) }, icon("refresh"), left > 0 ? "Cast again to those that lack it" : "Cast again");
  return h("div", { class: "alert end-box", "data-tone": look.tone }, icon(look.icon), h("div", {}, h("p", {}, words), again));
}

/**
 * @param {string} path
 * @param {(cast: any) => void} done
 */
function castButtons(path, done) {
  const element = h("div", { class: "actions" });
  let shown = "";
  /** @type {any} */
  let current = null;
  const run = (/** @type {string} */ command, /** @type {string} */ said) => async (/** @type {Event} */ event) => {
    const button = /** @type {HTMLButtonElement} */ (event.currentTarget);
    button.disabled = true;
    try {
      done(await post(`${path}/${command}`));
      announce(said);
    } catch (error) {
      noticeError(error);
    } finally {
      button.disabled = false;
    }
  };
  const cancel = async () => {
    const sure = await confirmDialog({
      title: "Cancel this cast?",
      text: ["It ends for all its machines at once. Those that aren't complete yet hold an unfinished disk that doesn't start; a later cast of the same image goes on with what they have."],
      yes: "Cancel the cast", no: "Let it go on", danger: true,
    });
    if (!sure) return;
    try {
      done(await post(`${path}/cancel`));
      notice("The cast is being cancelled", "info");
    } catch (error) {
      noticeError(error);
    }
  };
  const update = (/** @type {any} */ cast) => {
    current = cast;
    const key = `${cast.phase}${cast.paused}`;
    if (key === shown) return;
    shown = key;
    const focused = element.contains(document.activeElement);
    fill(element, mayOperate() && [
      current.phase === "gathering" && h("button", { type: "button", class: "button primary", onclick: run("start", "Begins") }, icon("play"), "Begin now"),
      isLive(current.phase) && current.phase !== "gathering" && !current.paused && h("button", { type: "button", class: "button", onclick: run("pause", "Paused") }, icon("pause"), "Pause"),
      isLive(current.phase) && current.paused && h("button", { type: "button", class: "button primary", onclick: run("resume", "Resumed") }, icon("play"), "Resume"),
      !hasEnded(current.phase) && h("button", { type: "button", class: "button danger-outline", onclick: cancel }, icon("stop"), "Cancel cast"),
      hasEnded(current.phase) && h("a", { class: "button", href: to(["history"], { cast_id: cast.cast_id }) }, icon("history"), "Its record"),
    ]);
    if (focused) /** @type {HTMLElement | null} */ (element.querySelector("button, a"))?.focus();
  };
  return { element, update };
}

function eventList() {
  const list = h("ol", { class: "events", reversed: true });
  const none = h("p", { class: "muted" }, "Nothing yet.");
  const element = h("div", { class: "events-scroll", tabindex: 0, role: "region", "aria-label": "Events, newest first" }, none, list);
  const add = (/** @type {any[]} */ events) => {
    if (!events.length) return;
    const fragment = document.createDocumentFragment();
    for (const event of [...events].reverse()) {
      fragment.append(h("li", { "data-tone": eventTone(event.kind) }, icon(eventIcon(event.kind)),
        h("time", { datetime: event.at, title: formatDateTime(event.at) }, formatTime(event.at)), h("span", {}, event.text)));
    }
    list.prepend(fragment);
    while (list.childElementCount > EVENTS_MAX) list.lastElementChild?.remove();
    none.hidden = true;
  };
  const reset = (/** @type {any[]} */ events) => {
    list.replaceChildren();
    none.hidden = false;
    add(events);
  };
  return { element, add, reset };
}

/** @param {any} cast */
function planList(cast) {
  const { plan } = cast;
  const slow = { wait: "the others wait for them", demote: "they are finished afterwards", drop: "they are given up" }[/** @type {"wait"} */ (plan.slow)];
  const rows = [
    ["Image", `${cast.image_name} (${formatBytes(cast.raw_bytes)})`],
    ["Machines", plan.machine_ids.length ? `${plan.machine_ids.length} chosen ones` : plan.room_id ? "all of the room" : "whoever joins"],
    ["Begins", startWords(plan)],
    ["Rate", plan.rate_bytes_per_s ? `fixed at ${formatRate(plan.rate_bytes_per_s)}` : plan.rate_max_bytes_per_s ? `automatic, at most ${formatRate(plan.rate_max_bytes_per_s)}` : "automatic"],
    ["Other traffic", plan.share && "keeps its share"],
    ["Slow machines", slow],
    ["Created", [`${formatDateTime(cast.created_at)} by ${cast.created_by} · `, h("a", { href: to(["audit"], { subject: `cast ${cast.cast_id}` }) }, "who did what")]],
    ["Daemon", cast.owner],
    ["Group", cast.group && `${cast.group}, port ${cast.port}`],
    ["Daemon's runs", cast.run_count > 1 && String(cast.run_count)],
  ].filter(([, value]) => value);
  return h("dl", { class: "pairs" }, rows.map(([label, value]) => h("div", {}, h("dt", {}, label), h("dd", {}, value))));
}
