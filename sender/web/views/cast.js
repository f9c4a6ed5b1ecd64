/** A cast: progress, bottleneck, machines, charts, events, commands. */

import { get, post } from "../api.js";
import { castProgress, progressText } from "../cast_card.js";
import { CastMachines } from "../cast_machines.js";
import { castCharts } from "../charts.js";
import { confirmDialog } from "../dialogs.js";
import { fill, h, icon, setAttribute, setText } from "../dom.js";
import { formatBytes, formatDateTime, formatDuration, formatRate, formatTime } from "../format.js";
import { inNextFrame } from "../render_queue.js";
import { announce, showToast, showError } from "../toasts.js";
import { badge, Figures, pageHead, ProgressBar, section, setBadge } from "../components.js";
import { to } from "../router.js";
import { mayOperate, roomName } from "../store.js";
import { SLOW_POLICIES } from "../labels.generated.js";
import { castBottleneckText, castLabel, eventIcon, eventTone, hasEnded, needsAttention, isLive, sentence, startText } from "../labels.js";

const EVENTS_MAX = 1_000; // the latest are shown; the API has all

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

  const readRecords = () => get(`${path}/machines`, { limit: 500 }, signal).then(({ items }) => machines.setRecords(items), showError);
  let failedBefore = 0;
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
      announce(`${title}: ${castLabel(live.cast).label}`);
      if (hasEnded(live.cast.phase)) readRecords();
    }
    const now = live.cast.failed_count;
    if (now > failedBefore) {
      for (const machine of data.machines) if (!data.full && needsAttention(machine.state)) announce(`${machine.name} failed: ${machine.error || machine.state}`);
      readRecords();
    }
    failedBefore = now;
  };
  stream.on("cast", follow, signal);

  head.update(live);
  buttons.update(live.cast);
  machines.update(first.machines, true);
  machines.setRecords(records.items);
  events.reset(timeline.events);
  drawCharts();
  failedBefore = live.cast.failed_count;

  const { cast } = live;
  const element = h("div", {},
    pageHead(title, {
      back: ["#/casts", "Casts"],
      lead: ["Image ", h("strong", {}, cast.image_name), " → ", cast.plan.room_id ? h("a", { href: to(["rooms", cast.plan.room_id]) }, roomName(cast.plan.room_id)) : "any machine", h("span", { class: "muted" }, ` · cast ${cast.cast_id}`)],
      actions: buttons.element,
    }),
    head.element,
    section("Machines", {}, machines.element),
    chartSection,
    h("div", { class: "two-columns" },
      section("Events", {}, events.element),
      section("Plan", {}, planList(cast))));
  return { title, element, topics: [`cast:${params.cast}`] };
}

/** @param {any} first */
function castHead(first) {
  const state = badge(castLabel(first.cast));
  const bar = new ProgressBar("Progress of the cast");
  const percent = h("span", { class: "progress-words big" });
  const line = h("p", { class: "bottleneck" });
  const reason = h("div");
  let reasonShown = "";
  const figures = new Figures([["rate", "Rate"], ["eta", "ETA"], ["elapsed", "Elapsed"], ["complete", "Complete"], ["failed", "Failed"], ["sent", "Sent"]]);
  const element = h("div", { class: "card cast-head" }, h("div", { class: "cast-head-row" }, state, line), reason, h("div", { class: "progress-row" }, bar.element, percent), figures.element);
  const update = (/** @type {any} */ live) => {
    const { cast } = live;
    const phaseLabel = castLabel(cast);
    setBadge(state, phaseLabel);
    setAttribute(element, "data-tone", phaseLabel.tone);
    bar.set(castProgress(live), phaseLabel.tone);
    setText(percent, progressText(live));
    setText(line, statusText(live));
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
      fill(reason, key && endBox(cast, phaseLabel));
    }
  };
  return { element, update };
}

/** @param {any} live @returns {string} its status in one line */
function statusText(live) {
  const { cast } = live;
  if (cast.paused) return "Paused: machines keep their verified blocks.";
  if (cast.phase === "planned") return cast.plan.start_at ? `Gathers from ${formatDateTime(cast.plan.start_at)}, then starts ${startText(cast.plan)}` : "Waiting for a free daemon";
  if (cast.phase === "gathering") return `Starts ${startText(cast.plan)}`;
  if (isLive(cast.phase)) return [`Pass ${live.pass_index + 1}`, live.bottleneck && `bottleneck: ${castBottleneckText(live.bottleneck)}`].filter(Boolean).join(" · ");
  return cast.ended_at ? `Ended ${formatDateTime(cast.ended_at)}` : "";
}

/** Creates the result of an ended cast, with a link to retry it. @param {any} cast @param {import("../labels.js").StateLabel} phaseLabel */
function endBox(cast, phaseLabel) {
  const left = (cast.required_count || cast.joined_count) - cast.complete_count;
  const text = cast.phase === "done" ? "Every machine verified every byte." : sentence(cast.reason) || phaseLabel.label;
  const again = cast.phase !== "done" && mayOperate() && h("a", { class: "button", href: to(["new-cast"], { again: cast.cast_id }) }, icon("refresh"), left > 0 ? "Cast again to incomplete machines" : "Cast again");
  return h("div", { class: "alert end-box", "data-tone": phaseLabel.tone }, icon(phaseLabel.icon), h("div", {}, h("p", {}, text), again));
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
  const run = (/** @type {string} */ command, /** @type {string} */ announcement) => async (/** @type {Event} */ event) => {
    const button = /** @type {HTMLButtonElement} */ (event.currentTarget);
    button.disabled = true;
    try {
      done(await post(`${path}/${command}`));
      announce(announcement);
    } catch (error) {
      showError(error);
    } finally {
      button.disabled = false;
    }
  };
  const cancel = async () => {
    const sure = await confirmDialog({
      title: "Cancel this cast?",
      text: ["It ends for all machines at once. Incomplete machines keep an unfinished disk that doesn't boot; a later cast of the same image continues from there."],
      yes: "Cancel the cast", no: "Continue the cast", danger: true,
    });
    if (!sure) return;
    try {
      done(await post(`${path}/cancel`));
      showToast("Cancelling the cast", "info");
    } catch (error) {
      showError(error);
    }
  };
  const update = (/** @type {any} */ cast) => {
    current = cast;
    const key = `${cast.phase}${cast.paused}`;
    if (key === shown) return;
    shown = key;
    const focused = element.contains(document.activeElement);
    fill(element, mayOperate() && [
      current.phase === "gathering" && h("button", { type: "button", class: "button primary", onclick: run("start", "Started") }, icon("play"), "Start now"),
      isLive(current.phase) && current.phase !== "gathering" && !current.paused && h("button", { type: "button", class: "button", onclick: run("pause", "Paused") }, icon("pause"), "Pause"),
      isLive(current.phase) && current.paused && h("button", { type: "button", class: "button primary", onclick: run("resume", "Resumed") }, icon("play"), "Resume"),
      !hasEnded(current.phase) && h("button", { type: "button", class: "button danger-outline", onclick: cancel }, icon("stop"), "Cancel cast"),
      hasEnded(current.phase) && h("a", { class: "button", href: to(["history"], { cast_id: cast.cast_id }) }, icon("history"), "History"),
    ]);
    if (focused) /** @type {HTMLElement | null} */ (element.querySelector("button, a"))?.focus();
  };
  return { element, update };
}

function eventList() {
  const list = h("ol", { class: "events", reversed: true });
  const none = h("p", { class: "muted" }, "No events yet.");
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
  const rows = [
    ["Image", `${cast.image_name} (${formatBytes(cast.raw_bytes)})`],
    ["Machines", plan.machine_ids.length ? `${plan.machine_ids.length} selected` : plan.room_id ? "all of the room" : "none"],
    ["Starts", startText(plan)],
    ["Rate", plan.rate_bytes_per_s ? `fixed at ${formatRate(plan.rate_bytes_per_s)}` : plan.rate_max_bytes_per_s ? `automatic, at most ${formatRate(plan.rate_max_bytes_per_s)}` : "automatic"],
    ["Other traffic", plan.share && "shares the link"],
    ["Encryption", plan.encrypt && "AES-256-GCM on the network"],
    ["Wake-on-LAN", plan.wake && "before the machines gather"],
    ["Slow machines", SLOW_POLICIES[plan.slow]?.text ?? plan.slow],
    ["Created", [`${formatDateTime(cast.created_at)} by ${cast.created_by} · `, h("a", { href: to(["audit"], { subject: `cast ${cast.cast_id}` }) }, "audit log")]],
    ["Daemon", cast.owner],
    ["Group", cast.group && `${cast.group}, port ${cast.port}`],
    ["Runs", cast.run_count > 1 && String(cast.run_count)],
  ].filter(([, value]) => value);
  return h("dl", { class: "pairs" }, rows.map(([label, value]) => h("div", {}, h("dt", {}, label), h("dd", {}, value))));
}
