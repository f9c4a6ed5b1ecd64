/** Uploads of images: in parts, each sent again after a broken connection. */

import { all, create, get, putPart, remove, Unreachable } from "./api.js";
import { badge, ProgressBar, setBadge } from "./components.js";
import { showDialog } from "./dialogs.js";
import { fill, h, icon, setText } from "./dom.js";
import { field, fieldProblem, form, select } from "./forms.js";
import { formatBytes, formatDuration, formatPercent, formatRate } from "./format.js";
import { sentence, UPLOAD_STATES } from "./labels.js";
import { mayOperate } from "./store.js";
import { showError, showToast } from "./toasts.js";

const PART_BYTES = 4 << 20; // the most that the daemon takes
const RETRY_MS = 2_000;
const POLL_MS = 500;
const RETRIES_MAX = 30; // a minute without a network
const BUSY_REFRESH_MS = 1_000; // uploads aren't in the live stream
const IDLE_REFRESH_MS = 10_000;
const ENDED = ["done", "failed"];
/** @type {[string, string][]} */
const FORMATS = [["", "Detect it"], ["raw", "Raw disk"], ["qcow2", "qcow2"], ["vmdk", "VMDK"], ["vhd", "VHD"], ["vhdx", "VHDX"], ["vdi", "VDI"]];

const wait = (/** @type {number} */ milliseconds) => new Promise((resolve) => window.setTimeout(resolve, milliseconds));

/** @param {any} job an upload or an export @param {number} totalBytes @returns {string} */
export function progressText(job, totalBytes) {
  return [
    `${formatPercent(job.progress)} of ${formatBytes(totalBytes)}`,
    job.rate_bytes_per_s > 0 && formatRate(job.rate_bytes_per_s),
    job.eta_s !== null && `${formatDuration(job.eta_s)} left`,
  ].filter(Boolean).join(" · ");
}

/** @param {AbortSignal} signal of the page @param {() => void} done */
export async function uploadImage(signal, done) {
  const stop = new AbortController();
  const stopped = AbortSignal.any([signal, stop.signal]);
  await showDialog("Upload an image", (close) => {
    const file = field({ label: "File", name: "file_name", type: "file", required: true, hint: "A .dci file, or a qcow2, VMDK, VHD, VHDX, VDI or raw disk, also compressed. The daemon converts it.", attributes: { "data-autofocus": true } });
    const name = field({ label: "Name", name: "name", hint: "Of a converted image. Default: the name of the file.", attributes: { maxlength: 64 } });
    const format = field({ label: "Format", name: "format", input: select({ name: "format", options: FORMATS }) });
    const bar = new ProgressBar("Upload progress");
    const words = h("span", { class: "progress-words" });
    const progress = h("div", { class: "progress-row", hidden: true }, bar.element, words);
    const show = (/** @type {any} */ upload) => {
      progress.hidden = false;
      bar.set(upload.progress);
      setText(words, `${UPLOAD_STATES[upload.state]?.label ?? upload.state}: ${progressText(upload, upload.total_bytes)}`);
    };
    return form({
      fields: [file, name, format],
      content: [file.element, name.element, format.element,
        h("p", { class: "muted small" }, "Keep this page open until the file has arrived: closing it stops the upload, and the daemon removes the part after an hour. The check and the conversion then continue without it. A restart of the daemon ends the upload."),
        progress],
      submit: "Upload",
      cancel: h("button", { type: "button", class: "button", onclick: () => close(false) }, "Cancel"),
      onsubmit: async () => {
        const source = file.input.files[0];
        const body = { file_name: source.name, total_bytes: source.size, ...(name.input.value.trim() && { name: name.input.value.trim() }), ...(format.input.value && { format: format.input.value }) };
        const upload = await create("/images/uploads", body);
        const ended = await send(upload, source, stopped, show);
        if (ended.state === "failed") throw fieldProblem("file_name", ended.problem);
        close(true);
        showToast(`${source.name} is in the library`);
        done();
      },
    });
  });
  stop.abort();
}

/**
 * @param {any} upload @param {File} source @param {AbortSignal} signal
 * @param {(upload: any) => void} show
 * @returns {Promise<any>} the ended upload
 */
async function send(upload, source, signal, show) {
  const path = `/images/uploads/${upload.upload_id}`;
  let failures = 0;
  while (!ENDED.includes(upload.state)) {
    if (signal.aborted) {
      if (upload.state === "receiving") remove(path).catch(() => {}); // the daemon removes an idle upload by itself
      throw new Error("The upload was cancelled.");
    }
    try {
      show(upload);
      if (upload.state === "receiving") {
        const start = upload.received_bytes;
        upload = await putPart(`${path}/content?offset=${start}`, source.slice(start, start + PART_BYTES), signal);
      } else {
        await wait(POLL_MS);
        upload = await get(path, {}, signal);
      }
      failures = 0;
    } catch (error) {
      if (signal.aborted) continue;
      failures += 1;
      if (!(error instanceof Unreachable) || failures > RETRIES_MAX) throw error;
      await wait(RETRY_MS);
    }
  }
  return upload;
}

/**
 * Creates the list of uploads, of this page and of others; it is hidden while there is none.
 * @param {AbortSignal} signal of the page @param {() => void} onImage called when an upload has become an image
 */
export function uploadList(signal, onImage) {
  const items = h("ul", { class: "job-list", role: "list" });
  const element = h("section", { class: "card upload-list", "aria-labelledby": "h-uploads", hidden: true }, h("div", { class: "section-head" }, h("h2", { id: "h-uploads" }, "Uploads")), items);
  /** @type {Map<string, {state: string, update: (upload: any) => void, element: HTMLElement}>} */
  let rows = new Map();
  const draw = (/** @type {any[]} */ uploads) => {
    element.hidden = uploads.length === 0;
    const arrived = uploads.some((each) => each.state === "done" && rows.has(each.upload_id) && rows.get(each.upload_id)?.state !== "done");
    const before = rows;
    rows = new Map(uploads.map((upload) => [upload.upload_id, before.get(upload.upload_id) ?? uploadRow(upload, refresh)]));
    for (const upload of uploads) rows.get(upload.upload_id)?.update(upload);
    if ([...before.keys()].join() !== [...rows.keys()].join()) fill(items, [...rows.values()].map((row) => row.element));
    if (arrived) onImage();
    return uploads.some((each) => !ENDED.includes(each.state));
  };
  const refresh = async () => {
    try {
      return draw((await all("/images/uploads", {}, signal)).reverse());
    } catch {
      return false; // the next refresh shows it; the shell says that the daemon is unavailable
    }
  };
  const tick = async () => {
    const busy = await refresh();
    if (!signal.aborted) window.setTimeout(tick, busy ? BUSY_REFRESH_MS : IDLE_REFRESH_MS);
  };
  tick();
  return { element, refresh };
}

/** @param {any} first @param {() => void} done */
function uploadRow(first, done) {
  const state = badge(UPLOAD_STATES[first.state] ?? UPLOAD_STATES.receiving);
  const bar = new ProgressBar(`Progress of ${first.file_name}`);
  const words = h("span", { class: "progress-words" });
  const progress = h("div", { class: "progress-row" }, bar.element, words);
  const problem = h("div");
  const clear = async () => {
    try {
      await remove(`/images/uploads/${first.upload_id}`);
    } catch (error) {
      showError(error);
    }
    done();
  };
  const button = h("button", { type: "button", class: "button small" }, "Remove");
  button.addEventListener("click", clear);
  const row = {
    state: "",
    element: h("li", {}, h("div", { class: "job-head" }, h("span", { class: "break" }, first.file_name), state, h("span", { class: "muted small" }, `by ${first.created_by}`), mayOperate() && button), progress, problem),
    update: (/** @type {any} */ upload) => {
      setBadge(state, UPLOAD_STATES[upload.state] ?? UPLOAD_STATES.receiving);
      progress.hidden = ENDED.includes(upload.state);
      bar.set(upload.progress);
      setText(words, progressText(upload, upload.total_bytes));
      button.hidden = !ENDED.includes(upload.state) && upload.state !== "receiving";
      setText(button, upload.state === "receiving" ? "Stop" : "Clear");
      if (row.state !== upload.state) fill(problem, upload.problem && h("div", { class: "alert", "data-tone": "bad" }, icon("warning"), h("p", {}, sentence(upload.problem))));
      row.state = upload.state;
    },
  };
  return row;
}
