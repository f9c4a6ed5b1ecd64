/** Sizes, rates and times in the format of the command line (protocol/shared/units.py is the same in Python). */

/** @param {number} count @returns {string} `1.5 GiB` */
export function formatBytes(count) {
  let value = count;
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (Math.abs(value) < 1024) return `${value.toFixed(unit === "B" ? 0 : 1)} ${unit}`;
    value /= 1024;
  }
  return `${value.toFixed(2)} TiB`;
}

/** @param {number} bytesPerSecond @returns {string} `941 Mbit/s`: bits per second, as usual for networks */
export function formatRate(bytesPerSecond) {
  let value = bytesPerSecond * 8;
  for (const unit of ["bit/s", "kbit/s", "Mbit/s"]) {
    if (Math.abs(value) < 1000) return `${value.toFixed(0)} ${unit}`;
    value /= 1000;
  }
  return `${value.toFixed(2)} Gbit/s`;
}

/** @param {number} seconds @returns {string} `4.2 s`, `3:05` or `1:02:03` */
export function formatDuration(seconds) {
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  const second = String(whole % 60).padStart(2, "0");
  return hours ? `${hours}:${String(minutes).padStart(2, "0")}:${second}` : `${minutes}:${second}`;
}

/**
 * Formats a share as percent; less than the whole never reads as 100 %.
 * @param {number} share 0..1
 * @param {number} [digits]
 */
export function formatPercent(share, digits = 0) {
  const step = 10 ** -digits;
  let percent = Number((share * 100).toFixed(digits));
  if (share < 1 && percent >= 100) percent = 100 - step;
  return `${percent.toFixed(digits)}%`;
}

/** @param {number} share 0..1 @returns {string} `0%`, `0.04%`, `12%` */
export function formatLoss(share) {
  const percent = share * 100;
  if (percent <= 0) return "0%";
  if (percent < 0.01) return "<0.01%";
  return `${percent.toFixed(percent < 1 ? 2 : percent < 10 ? 1 : 0)}%`;
}

const TIME = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const DATE = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", year: "numeric" });
const SHORT_TIME = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });

/** @param {string | Date} at @returns {string} `12:03:45`, in the viewer's time zone */
export function formatTime(at) {
  return TIME.format(new Date(at));
}

/** @param {string | Date} at @returns {string} `21 Nov 2026, 12:03` */
export function formatDateTime(at) {
  const date = new Date(at);
  return `${DATE.format(date)}, ${SHORT_TIME.format(date)}`;
}

/** @returns {string} the viewer's time zone, in which times are shown: `Europe/Berlin` */
export const localTimeZone = () => Intl.DateTimeFormat().resolvedOptions().timeZone;

/**
 * @param {string | Date} at
 * @param {Date} [now]
 * @returns {string} `just now`, `5 min ago`, `3 h ago`, then the date
 */
export function formatAgo(at, now = new Date()) {
  const seconds = (now.getTime() - new Date(at).getTime()) / 1000;
  if (seconds < 60) return "just now";
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ago`;
  return formatDateTime(at);
}

/**
 * @param {number} count
 * @param {string} one
 * @param {string} [many]
 * @returns {string} `1 machine`, `4 machines`
 */
export function formatCount(count, one, many = `${one}s`) {
  return `${count} ${count === 1 ? one : many}`;
}

/**
 * Parses a rate as people type it.
 * @param {string} text `800M`, `1.5 Gbit/s`
 * @returns {number | null} bytes per second; null if it isn't a rate
 */
export function parseRate(text) {
  const match = /^(\d+(?:\.\d+)?)\s*([kKMG]?)(?:bit(?:\/s)?|bps)?$/.exec(text.trim());
  if (!match || Number(match[1]) === 0) return null;
  const factor = { "": 1, k: 1e3, K: 1e3, M: 1e6, G: 1e9 }[match[2]] ?? 1;
  return (Number(match[1]) * factor) / 8;
}
