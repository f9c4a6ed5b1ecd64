/** A cast as a card of the overview: changed in place, only where something changed. */

import { h, setAttribute, setText } from "./dom.js";
import { formatDateTime, formatDuration, formatPercent, formatRate } from "./format.js";
import { badge, Figures, ProgressBar, setBadge } from "./components.js";
import { to } from "./router.js";
import { roomName } from "./store.js";
import { castBottleneckWords, castLook, hasEnded, startWords } from "./words.js";

/** @param {any} live @returns {number} what its bar shows, 0..1 */
export function castProgress(live) {
  const { cast } = live;
  if (cast.phase === "done") return 1;
  if (hasEnded(cast.phase)) return asked(cast) ? cast.complete_count / asked(cast) : 0;
  if (cast.phase === "gathering") return cast.required_count ? Math.min(1, cast.joined_count / cast.required_count) : 0;
  return cast.progress;
}

/** @param {any} live @returns {string} the words beside the bar */
export function progressWords(live) {
  const { cast } = live;
  if (cast.phase === "planned") return cast.plan.start_at ? `Starts ${formatDateTime(cast.plan.start_at)}` : "Waits for a daemon that is free";
  if (cast.phase === "gathering") return `${cast.joined_count} of ${cast.required_count || "?"} joined`;
  if (hasEnded(cast.phase) && cast.phase !== "done") return `${cast.complete_count} of ${asked(cast)} complete`;
  return formatPercent(castProgress(live));
}

/** @param {any} cast @returns {number} machines that were to get it */
function asked(cast) {
  return cast.required_count || cast.joined_count;
}

/** One running or waiting cast. */
export class CastCard {
  /** @param {any} live */
  constructor(live) {
    const { cast } = live;
    this.title = h("a", { href: to(["casts", cast.cast_id]) }, cast.plan.name || cast.image_name);
    this.subtitle = h("p", { class: "muted" }, `${cast.image_name} → ${roomName(cast.plan.room_id)}`);
    this.badge = badge(castLook(cast));
    this.bar = new ProgressBar(`Progress of ${cast.plan.name || cast.image_name}`);
    this.words = h("span", { class: "progress-words" });
    this.bottleneck = h("p", { class: "bottleneck" });
    this.figures = new Figures([["rate", "Rate"], ["eta", "To go"], ["complete", "Complete"], ["failed", "Failed"]], "compact");
    this.element = h("article", { class: "card cast-card" },
      h("div", { class: "cast-card-head" }, h("div", {}, h("h3", {}, this.title), this.subtitle), this.badge),
      h("div", { class: "progress-row" }, this.bar.element, this.words),
      this.bottleneck,
      this.figures.element);
  }

  /** @param {any} live */
  update(live) {
    const { cast } = live;
    const look = castLook(cast);
    setBadge(this.badge, look);
    setAttribute(this.element, "data-tone", look.tone);
    this.bar.set(castProgress(live), look.tone);
    setText(this.words, progressWords(live));
    const casting = cast.phase === "casting" || cast.phase === "tail";
    setText(this.bottleneck, casting && live.bottleneck ? `Limited by ${castBottleneckWords(live.bottleneck)}` : casting ? "" : `Begins ${startWords(cast.plan)}`);
    this.figures.update({
      rate: casting ? formatRate(live.achieved_bytes_per_s) : "–",
      eta: casting && live.eta_s !== null ? formatDuration(live.eta_s) : "–",
      complete: `${cast.complete_count} of ${cast.required_count || cast.joined_count}`,
      failed: String(cast.failed_count),
    });
    this.figures.element.classList.toggle("has-failed", cast.failed_count > 0);
  }
}
