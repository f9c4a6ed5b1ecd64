/** Exports of an image: its disk as a download, and files of other formats that the daemon makes. */

import { all, create, remove } from "./api.js";
import { badge, ProgressBar, section, setBadge, timeElement } from "./components.js";
import { fill, h, icon, setText } from "./dom.js";
import { formatBytes } from "./format.js";
import { fileAddress, referenceOf } from "./image_text.js";
import { progressText } from "./image_upload.js";
import { EXPORT_STATES, sentence } from "./labels.js";
import { showError } from "./toasts.js";

const BUSY_REFRESH_MS = 1_000; // exports aren't in the live stream
const IDLE_REFRESH_MS = 10_000;
const ENDED = ["done", "failed"];
/** @type {[format: string, label: string][]} */
const CONVERTED = [["qcow2", "qcow2"], ["vmdk", "VMDK"], ["vhdx", "VHDX"], ["vdi", "VDI"]];
/** @type {[format: string, label: string][]} */
const STREAMED = [["raw.zst", "Raw, compressed"], ["raw", "Raw"]];

/** @param {any} image @param {AbortSignal} signal of the page */
export function exportSection(image, signal) {
  const items = h("ul", { class: "job-list", role: "list", "aria-live": "polite" });
  /** @type {Map<string, {update: (job: any) => void, element: HTMLElement}>} */
  let rows = new Map();
  let timer = 0;
  const refresh = async () => {
    window.clearTimeout(timer);
    let busy = false;
    try {
      const jobs = (await all("/images/exports", {}, signal)).filter((each) => each.image_id === image.image_id);
      const before = rows;
      rows = new Map(jobs.map((job) => [job.export_id, before.get(job.export_id) ?? exportRow(job, image, refresh)]));
      for (const job of jobs) rows.get(job.export_id)?.update(job);
      if ([...before.keys()].join() !== [...rows.keys()].join()) fill(items, [...rows.values()].map((row) => row.element));
      busy = jobs.some((job) => !ENDED.includes(job.state));
    } catch {
      // The next refresh shows it; the shell says that the daemon is unavailable.
    }
    if (!signal.aborted) timer = window.setTimeout(refresh, busy ? BUSY_REFRESH_MS : IDLE_REFRESH_MS);
  };
  const convert = (/** @type {string} */ format) => async () => {
    try {
      await create(`/images/${encodeURIComponent(image.image_id)}/exports`, { format });
      refresh();
    } catch (error) {
      showError(error);
    }
  };
  refresh();
  return section("Export", {},
    h("p", { class: "muted" }, "For other programs. A raw disk is downloaded at once; free space is zeros. The daemon makes the other files, one after the other, and keeps each for a day."),
    h("div", { class: "actions export-formats" },
      STREAMED.map(([format, label]) => h("a", { class: "button", href: fileAddress(image.image_id, format), download: `${referenceOf(image)}.${format}` }, icon("download"), label)),
      CONVERTED.map(([format, label]) => h("button", { type: "button", class: "button", onclick: convert(format) }, label))),
    items);
}

/** @param {any} first @param {any} image @param {() => void} done */
function exportRow(first, image, done) {
  const state = badge(EXPORT_STATES[first.state] ?? EXPORT_STATES.waiting);
  const bar = new ProgressBar(`Progress of ${first.file_name}`);
  const words = h("span", { class: "progress-words" });
  const progress = h("div", { class: "progress-row" }, bar.element, words);
  const result = h("span");
  const problem = h("div");
  let shown = "";
  const clear = async () => {
    try {
      await remove(`/images/exports/${first.export_id}`);
    } catch (error) {
      showError(error);
    }
    done();
  };
  const button = h("button", { type: "button", class: "button", onclick: clear }, "Stop");
  return {
    element: h("li", {}, h("div", { class: "job-head" }, h("span", { class: "break" }, first.file_name), state, result, button), progress, problem),
    update: (/** @type {any} */ job) => {
      setBadge(state, EXPORT_STATES[job.state] ?? EXPORT_STATES.waiting);
      progress.hidden = job.state !== "converting";
      bar.set(job.progress);
      setText(words, progressText(job, image.raw_bytes));
      const key = `${job.state} ${job.expires_at}`;
      if (key === shown) return;
      shown = key;
      setText(button, job.state === "done" ? "Delete" : job.state === "failed" ? "Clear" : "Stop");
      fill(result, job.state === "done" && [h("a", { href: `/api/v1/images/exports/${job.export_id}/file`, download: job.file_name }, `Download (${formatBytes(job.file_bytes)})`), h("span", { class: "muted small" }, " until ", timeElement(job.expires_at))]);
      fill(problem, job.problem && h("div", { class: "alert", "data-tone": "bad" }, icon("warning"), h("p", {}, sentence(job.problem))));
    },
  };
}
