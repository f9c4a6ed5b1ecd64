/** States, phases and errors in plain words: what it is, how it looks, and what to do about it. */

/** @typedef {{label: string, icon: string, tone: string, order: number}} Look */

/** A machine's states, those that need somebody first. @type {Record<string, Look>} */
export const MACHINE_STATES = {
  failed: { label: "Failed", icon: "failed", tone: "bad", order: 0 },
  lost: { label: "Lost", icon: "lost", tone: "bad", order: 1 },
  dropped: { label: "Dropped", icon: "dropped", tone: "bad", order: 2 },
  slow: { label: "Slow", icon: "slow", tone: "warn", order: 3 },
  tail: { label: "Straggler", icon: "slow", tone: "warn", order: 4 },
  receiving: { label: "Receiving", icon: "receiving", tone: "busy", order: 5 },
  joined: { label: "Joined", icon: "joined", tone: "soft", order: 6 },
  assigned: { label: "Assigned", icon: "assigned", tone: "soft", order: 7 },
  complete: { label: "Complete", icon: "complete", tone: "good", order: 8 },
  idle: { label: "Ready", icon: "idle", tone: "calm", order: 9 },
  offline: { label: "Offline", icon: "offline", tone: "off", order: 10 },
};

/** @type {Record<string, Look>} */
export const PHASES = {
  planned: { label: "Planned", icon: "schedule", tone: "calm", order: 0 },
  gathering: { label: "Gathering", icon: "joined", tone: "soft", order: 1 },
  casting: { label: "Casting", icon: "cast", tone: "busy", order: 2 },
  tail: { label: "Finishing stragglers", icon: "slow", tone: "warn", order: 3 },
  done: { label: "Done", icon: "complete", tone: "good", order: 4 },
  failed: { label: "Failed", icon: "failed", tone: "bad", order: 5 },
  cancelled: { label: "Cancelled", icon: "dropped", tone: "calm", order: 6 },
  paused: { label: "Paused", icon: "pause", tone: "warn", order: 7 },
};

/** @type {Record<string, Look>} */
export const IMAGE_STATES = {
  available: { label: "Available", icon: "complete", tone: "good", order: 0 },
  remote: { label: "Not fetched yet", icon: "download", tone: "calm", order: 1 },
  fetching: { label: "Fetching", icon: "receiving", tone: "busy", order: 2 },
  damaged: { label: "Damaged", icon: "failed", tone: "bad", order: 3 },
  gone: { label: "Gone", icon: "none", tone: "off", order: 4 },
};

const ENDED = new Set(["done", "failed", "cancelled"]);
const LIVE = new Set(["gathering", "casting", "tail"]);
const IN_TROUBLE = new Set(["failed", "lost", "dropped"]);
const MOVING = new Set(["receiving", "slow", "tail"]);

/** @param {string} state @returns {Look} */
export function machineLook(state) {
  return MACHINE_STATES[state] ?? { label: state, icon: "info", tone: "calm", order: 50 };
}

/** @param {any} cast @returns {Look} its phase, or that it is paused */
export function castLook(cast) {
  if (cast.paused && LIVE.has(cast.phase)) return PHASES.paused;
  return PHASES[cast.phase] ?? { label: cast.phase, icon: "info", tone: "calm", order: 50 };
}

/** @param {string} phase */
export const hasEnded = (phase) => ENDED.has(phase);
/** @param {string} phase */
export const isLive = (phase) => LIVE.has(phase);
/** @param {string} state whether bytes come in: its rate, loss and bottleneck mean something */
export const isMoving = (state) => MOVING.has(state);
/** @param {string} state */
export const inTrouble = (state) => IN_TROUBLE.has(state);

/** @type {Record<string, string>} */
const BOTTLENECKS = {
  network: "what reaches it",
  socket: "its processor (socket)",
  decode: "its processor",
  disk: "its disk",
  source: "the sender's disk",
  sender: "the sender's processor",
  ceiling: "the rate limit",
};

/** @param {string} bottleneck as a machine says it @returns {string} empty if nothing limits it */
export function bottleneckWords(bottleneck) {
  if (!bottleneck || bottleneck === "none") return "";
  return BOTTLENECKS[bottleneck] ?? bottleneck;
}

/** The command line's words of what limits a cast, where they would puzzle somebody on another machine. @type {Record<string, string>} */
const CAST_BOTTLENECKS = {
  "--rate": "the rate that was chosen",
  "--max-rate": "the highest rate that was chosen",
  "this machine's processor": "the sender's processor",
  "nothing (climbing or idle)": "nothing: the rate still climbs",
};

/** @param {string} bottleneck as the daemon says it of a cast @returns {string} */
export const castBottleneckWords = (bottleneck) => CAST_BOTTLENECKS[bottleneck] ?? bottleneck;

/** What to do after an agent's exit code: docs/reference/exit-codes.md says what each means. @type {Record<number, string>} */
const AFTER_EXIT_CODE = {
  11: "Look at the machine's network interface and cable, then start it again.",
  22: "Pack or fetch the image again, then cast it again.",
  24: "Leave the image file alone while it is cast, then cast it again.",
  30: "Look at the machine's disk settings. Nothing was written to it.",
  31: "Use a machine with a larger disk, or an image of a smaller one. Nothing was written.",
  32: "Choose another target disk for this machine. Nothing was written.",
  33: "Unmount what uses the disk, or start the machine from the network, then cast again. Nothing was written.",
  34: "Start the machine from the network or a stick, so that its disk is free. Nothing was written.",
  35: "Take the write protection off its disk, then cast again. Nothing was written.",
  36: "Say which of its disks is meant with --target on its agent, then cast again. Nothing was written.",
  37: "Use an image made for disks like this one. Nothing was written.",
  38: "The image is on the disk and verified. Run the agent's fit step again, or look at the disk's size.",
  41: "Look at the machine's network and the switch's multicast settings, then cast again.",
  42: "Look at the network between sender and machine, then cast again: what is verified is kept.",
  43: "Cast again when you are ready: what is verified is kept.",
  44: "See what the cast says of its end, mend that, and cast again: what is verified is kept.",
  45: "Look at what the cast says of this machine; its agent may be too old.",
  47: "Cast again to this machine alone, or choose “finish them afterwards” for slow machines.",
  50: "Its disk failed to read or write. Look at its health (smartctl) and its cable; replace it if this comes again.",
  51: "Its disk gave back other bytes than were written. Don't trust it: replace the disk, then cast again.",
};

/** @type {Record<string, string>} */
const AFTER_STATE = {
  failed: "Mend what it names, then cast again to this machine: what its disk already holds is kept.",
  lost: "See whether it is switched on and its network cable is in. If it comes back while the cast runs, it goes on by itself.",
  dropped: "It was too slow for the others. Cast again to this machine alone, or choose “finish them afterwards” for slow machines.",
  slow: "Nothing yet: if it stays slow, the cast deals with it as it was told to.",
  tail: "Nothing: it is finished after the others, at its own rate.",
};

/** @type {Record<string, string>} */
const WITHOUT_ERROR = {
  failed: "It failed without saying why.",
  lost: "Nothing is heard from it any more.",
  dropped: "The cast gave it up because it was too slow.",
};

/**
 * Why a machine isn't complete, and what to do.
 * @param {string} state
 * @param {string} error
 * @param {number | null} [exitCode]
 * @returns {{reason: string, mend: string} | null} null if there is nothing to say
 */
export function trouble(state, error, exitCode = null) {
  const mend = (exitCode !== null && AFTER_EXIT_CODE[exitCode]) || AFTER_STATE[state] || "";
  if (inTrouble(state)) return { reason: sentence(error) || WITHOUT_ERROR[state], mend };
  if (state === "slow" || state === "tail") return { reason: sentence(error) || (state === "slow" ? "It falls behind the group." : "It is much slower than the group, which doesn't wait for it."), mend };
  if (error) return { reason: sentence(error), mend };
  return null;
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
  begun_by_hand: "play",
  paused: "pause",
  resumed: "play",
  taken_over: "refresh",
  cancelled: "stop",
};

/** @param {string} kind of a cast's event @returns {string} */
export const eventIcon = (kind) => EVENT_ICONS[kind] ?? "info";

/** @param {string} kind @returns {string} */
export function eventTone(kind) {
  if (/failed|lost|dropped|timed_out/.test(kind)) return "bad";
  if (/slow|demoted|paused|cancelled/.test(kind)) return "warn";
  if (/completed|finished|ended|recovered/.test(kind)) return "good";
  return "calm";
}

/** @type {Record<string, string>} */
const PROBLEM_KINDS = { database: "Database", library: "Image library", cast: "Cast", disk: "Disk", clock: "Clock" };

/** @param {string} kind */
export const problemWords = (kind) => PROBLEM_KINDS[kind] ?? kind;

/** @param {any} plan @returns {string} what begins its data */
export function startWords(plan) {
  if (plan.start === "manual") return "when somebody says so";
  const who = plan.wait_for === null ? "everybody has joined" : `${plan.wait_for} ${plan.wait_for === 1 ? "machine has" : "machines have"} joined`;
  const longest = plan.max_wait_s === null ? "" : `, at the latest after ${Math.round(plan.max_wait_s / 60)} min`;
  return `when ${who}${longest}`;
}
