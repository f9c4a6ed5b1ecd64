/** Labels of states, bottlenecks and events. Their texts come from sender/labels.py by way of labels.generated.js. */

import { BOTTLENECKS, CAPTURE_STATES as CAPTURE_LABELS, CAST_BOTTLENECKS, CAST_PHASES, ENROLMENT_STATES as ENROLMENT_LABELS, EXIT_CODE_ADVICE, EXPORT_STATES as EXPORT_LABELS, IMAGE_STATES as IMAGE_LABELS, MACHINE_STATES as MACHINE_LABELS, PAUSED, PREFLIGHT_GRADES as PREFLIGHT_LABELS, PROBLEM_KINDS, STATE_ADVICE, STATE_REASONS, UPLOAD_STATES as UPLOAD_LABELS } from "./labels.generated.js";

/** @typedef {{label: string, icon: string, tone: string, order: number}} StateLabel */

/** @type {Record<string, string>} */
const MACHINE_ICONS = {
  failed: "failed", lost: "lost", absent: "lost", dropped: "dropped", slow: "slow", tail: "slow", receiving: "receiving",
  joined: "joined", assigned: "assigned", complete: "complete", capturing: "image", booting: "refresh", waking: "sun", idle: "idle", offline: "offline",
};
/** @type {Record<string, string>} */
const PHASE_ICONS = {
  planned: "schedule", gathering: "joined", casting: "cast", tail: "slow", done: "complete", failed: "failed",
  cancelled: "dropped", paused: "pause",
};
/** @type {Record<string, string>} */
const IMAGE_ICONS = { available: "complete", remote: "download", fetching: "receiving", damaged: "failed", gone: "none" };
/** @type {Record<string, string>} */
const CAPTURE_ICONS = { planned: "schedule", uploading: "receiving", proving: "receiving", complete: "complete", failed: "failed", cancelled: "dropped" };
/** @type {Record<string, string>} */
const UPLOAD_ICONS = { receiving: "receiving", waiting: "schedule", checking: "receiving", unpacking: "receiving", packing: "receiving", done: "complete", failed: "failed" };
/** @type {Record<string, string>} */
const EXPORT_ICONS = { waiting: "schedule", converting: "receiving", done: "complete", failed: "failed" };
/** @type {Record<string, string>} */
const ENROLMENT_ICONS = { new: "none", waiting: "warning", approved: "joined", enrolled: "complete", blocked: "dropped" };
/** @type {Record<string, string>} */
const PREFLIGHT_ICONS = { ok: "complete", unknown: "none", warn: "warning", refuse: "failed" };
const UNKNOWN = { icon: "info", tone: "calm", order: 50 };

/**
 * @param {Record<string, {text: string, tone: string}>} labels
 * @param {Record<string, string>} icons
 * @returns {Record<string, StateLabel>} in the order of `labels`
 */
function withIcons(labels, icons) {
  return Object.fromEntries(Object.entries(labels).map(([state, { text, tone }], order) => [state, { label: text, icon: icons[state] ?? "info", tone, order }]));
}

/** Machine states, those that need attention first. */
export const MACHINE_STATES = withIcons(MACHINE_LABELS, MACHINE_ICONS);
export const PHASES = withIcons({ ...CAST_PHASES, paused: PAUSED }, PHASE_ICONS);
export const IMAGE_STATES = withIcons(IMAGE_LABELS, IMAGE_ICONS);
export const UPLOAD_STATES = withIcons(UPLOAD_LABELS, UPLOAD_ICONS);
export const EXPORT_STATES = withIcons(EXPORT_LABELS, EXPORT_ICONS);
export const CAPTURE_STATES = withIcons(CAPTURE_LABELS, CAPTURE_ICONS);

const PREFLIGHT_GRADES = withIcons(PREFLIGHT_LABELS, PREFLIGHT_ICONS);
const ENROLMENT_STATES = withIcons(ENROLMENT_LABELS, ENROLMENT_ICONS);

const ENDED = new Set(["done", "failed", "cancelled"]);
const LIVE = new Set(["gathering", "casting", "tail"]);
const RECEIVING = new Set(["receiving", "slow", "tail", "capturing"]);

/** @param {string} state @returns {StateLabel} */
export function machineLabel(state) {
  return MACHINE_STATES[state] ?? { label: state, ...UNKNOWN };
}

/** @param {string} grade of a check of the preflight @returns {StateLabel} */
export function preflightLabel(grade) {
  return PREFLIGHT_GRADES[grade] ?? { label: grade, ...UNKNOWN };
}

/** @param {string} state of a machine's enrolment @returns {StateLabel} */
export function enrolmentLabel(state) {
  return ENROLMENT_STATES[state] ?? { label: state, ...UNKNOWN };
}

/** @param {any} cast @returns {StateLabel} the label of its phase, or "Paused" */
export function castLabel(cast) {
  if (cast.paused && LIVE.has(cast.phase)) return PHASES.paused;
  return PHASES[cast.phase] ?? { label: cast.phase, ...UNKNOWN };
}

/** @param {string} phase */
export const hasEnded = (phase) => ENDED.has(phase);
/** @param {string} phase */
export const isLive = (phase) => LIVE.has(phase);
/** @param {string} state @returns {boolean} true while data arrives: rate, loss and bottleneck are meaningful */
export const isMoving = (state) => RECEIVING.has(state);
/** @param {string} state */
export const needsAttention = (state) => MACHINE_STATES[state]?.tone === "bad";

/** @param {string} bottleneck a cause that a machine reports @returns {string} empty if there is none */
export function bottleneckText(bottleneck) {
  if (!bottleneck || bottleneck === "none") return "";
  return BOTTLENECKS[bottleneck] ?? bottleneck;
}

/** @param {string} bottleneck text that the daemon reports for a cast @returns {string} */
export const castBottleneckText = (bottleneck) => CAST_BOTTLENECKS[bottleneck] ?? bottleneck;

/**
 * The reason why a machine isn't complete, and the next step.
 * @param {string} state
 * @param {string} error
 * @param {number | null} [exitCode]
 * @returns {{reason: string, advice: string} | null} null if nothing is wrong
 */
export function explainState(state, error, exitCode = null) {
  const advice = (exitCode !== null && EXIT_CODE_ADVICE[exitCode]) || STATE_ADVICE[state] || "";
  const reason = sentence(error) || (STATE_REASONS[state] ?? "");
  return reason ? { reason, advice } : null;
}

/** @param {string} text @returns {string} with a capital and a full stop */
export function sentence(text) {
  const trimmed = (text ?? "").trim();
  if (!trimmed) return "";
  const capital = trimmed[0].toUpperCase() + trimmed.slice(1);
  return /[.!?)]$/.test(capital) ? capital : `${capital}.`;
}

/** @type {Record<string, string>} */
const EVENT_ICONS = {
  receiver_joined: "joined",
  receiver_completed: "complete",
  receiver_failed: "failed",
  receiver_lost: "lost",
  receiver_returned: "refresh",
  receiver_slow: "slow",
  receiver_recovered: "receiving",
  receiver_demoted: "slow",
  receiver_dropped: "dropped",
  casting_started: "play",
  gathering_timed_out: "warning",
  main_group_finished: "complete",
  cast_ended: "stop",
  cast_failed: "failed",
  machine_failed: "failed",
  machine_revoked: "dropped",
  begun_by_hand: "play",
  wake_started: "sun",
  wake_ended: "sun",
  machine_not_awake: "lost",
  paused: "pause",
  resumed: "play",
  taken_over: "refresh",
  cancelled: "stop",
};

/** @param {string} kind of an event @returns {string} */
export const eventIcon = (kind) => EVENT_ICONS[kind] ?? "info";

/** @param {string} kind @returns {string} */
export function eventTone(kind) {
  if (/failed|lost|dropped|revoked|timed_out|not_awake/.test(kind)) return "bad";
  if (/slow|demoted|paused|cancelled/.test(kind)) return "warn";
  if (/completed|finished|ended|recovered/.test(kind)) return "good";
  return "calm";
}

/** @param {string} kind */
export const problemLabel = (kind) => PROBLEM_KINDS[kind] ?? kind;

/** @param {any} plan @returns {string} the condition that starts the data */
export function startText(plan) {
  if (plan.start === "manual") return "when an operator starts it";
  const condition = plan.wait_for === null ? "all machines have joined" : `${plan.wait_for} ${plan.wait_for === 1 ? "machine has" : "machines have"} joined`;
  const limit = plan.max_wait_s === null ? "" : `, or after ${Math.round(plan.max_wait_s / 60)} min`;
  return `when ${condition}${limit}`;
}
