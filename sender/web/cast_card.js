/** A cast as a card of the overview, updated in place. */

import { h, setAttribute, setText } from "./dom.js";
import { formatDateTime, formatDuration, formatPercent, formatRate } from "./format.js";
import { badge, Figures, ProgressBar, setBadge } from "./components.js";
import { to } from "./router.js";
import { roomName } from "./store.js";
import { castBottleneckText, castLabel, hasEnded, startText } from "./labels.js";

/** @param {any} live @returns {number} the value of its progress bar, 0..1 */
export function castProgress(live) {
  const { cast } = live;
  if (cast.phase === "done") return 1;
  if (hasEnded(cast.phase)) return targetCount(cast) ? cast.complete_count / targetCount(cast) : 0;
  if (cast.phase === "gathering") return cast.required_count ? Math.min(1, cast.joined_count / cast.required_count) : 0;
  return cast.progress;
}

/** @param {any} live @returns {string} the text beside the bar */
export function progressText(live) {
  const { cast } = live;
  if (cast.phase === "planned") return cast.plan.start_at ? `Starts ${formatDateTime(cast.plan.start_at)}` : "Waiting for a free daemon";
  if (cast.phase === "gathering") return `${cast.joined_count} of ${cast.required_count || "?"} joined`;
  if (hasEnded(cast.phase) && cast.phase !== "done") return `${cast.complete_count} of ${targetCount(cast)} complete`;
  return formatPercent(castProgress(live));
}

/** @param {any} cast @returns {number} machines of the cast */
function targetCount(cast) {
  return cast.required_count || cast.joined_count;
}

/** A running or waiting cast. */
export class CastCard {
  /** @param {any} live */
  constructor(live) {
    const { cast } = live;
    this.title = h("a", { href: to(["casts", cast.cast_id]) }, cast.plan.name || cast.image_name);
    this.subtitle = h("p", { class: "muted" }, `${cast.image_name} → ${roomName(cast.plan.room_id)}`);
    this.badge = badge(castLabel(cast));
    this.bar = new ProgressBar(`Progress of ${cast.plan.name || cast.image_name}`);
    this.text = h("span", { class: "progress-words" });
    this.bottleneck = h("p", { class: "bottleneck" });
    this.figures = new Figures([["rate", "Rate"], ["eta", "ETA"], ["complete", "Complete"], ["failed", "Failed"]], "compact");
    this.element = h("article", { class: "card cast-card" },
      h("div", { class: "cast-card-head" }, h("div", {}, h("h3", {}, this.title), this.subtitle), this.badge),
      h("div", { class: "progress-row" }, this.bar.element, this.text),
      this.bottleneck,
      this.figures.element);
  }

  /** @param {any} live */
  update(live) {
    const { cast } = live;
    const phaseLabel = castLabel(cast);
    setBadge(this.badge, phaseLabel);
    setAttribute(this.element, "data-tone", phaseLabel.tone);
    this.bar.set(castProgress(live), phaseLabel.tone);
    setText(this.text, progressText(live));
    const casting = cast.phase === "casting" || cast.phase === "tail";
    setText(this.bottleneck, casting && live.bottleneck ? `Bottleneck: ${castBottleneckText(live.bottleneck)}` : casting ? "" : `Starts ${startText(cast.plan)}`);
    this.figures.update({
      rate: casting ? formatRate(live.achieved_bytes_per_s) : "–",
      eta: casting && live.eta_s !== null ? formatDuration(live.eta_s) : "–",
      complete: `${cast.complete_count} of ${cast.required_count || cast.joined_count}`,
      failed: String(cast.failed_count),
    });
    this.figures.element.classList.toggle("has-failed", cast.failed_count > 0);
  }
}
