/** Captures of a machine's disk: plan one, watch it, cancel it. */

import { create, get, post } from "./api.js";
import { badge, ProgressBar, setBadge, timeElement } from "./components.js";
import { confirmDialog, showDialog } from "./dialogs.js";
import { fill, h, icon, setText } from "./dom.js";
import { field, form } from "./forms.js";
import { formatBytes, formatDuration, formatPercent, formatRate } from "./format.js";
import { CAPTURE_STATES } from "./labels.js";
import { mayOperate } from "./store.js";
import { showError, showToast } from "./toasts.js";

const REFRESH_MS = 2_000; // captures aren't in the live stream
const ENDED = ["complete", "failed", "cancelled"];

/**
 * Creates the part of a machine's panel about captures of its disk. It refreshes while it is on the page.
 * @param {any} machine its record
 */
export function captureSection(machine) {
  const state = badge(CAPTURE_STATES.planned);
  const about = h("p", { class: "muted small" });
  const problem = h("div");
  const bar = new ProgressBar(`Progress of the capture of ${machine.name}`);
  const text = h("span", { class: "progress-words" });
  const progress = h("div", { class: "progress-row" }, bar.element, text);
  const actions = h("span", { class: "actions" });
  const row = h("div", { hidden: true }, h("div", { class: "enrolment-row" }, state, about), problem, progress);
  const section = h("section", { class: "enrolment", "aria-label": "Captures of the disk" },
    h("h3", {}, "Image of this disk"), row, h("div", { class: "enrolment-row" }, h("span", { class: "spacer" }), actions));
  let shown = "";

  const draw = (/** @type {any} */ capture) => {
    const label = CAPTURE_STATES[capture?.state] ?? CAPTURE_STATES.planned;
    row.hidden = !capture;
    if (capture) {
      setBadge(state, label);
      const share = capture.raw_bytes ? capture.done_bytes / capture.raw_bytes : 0;
      const running = capture.state === "uploading" || capture.state === "proving";
      progress.hidden = !running;
      bar.set(share, label.tone);
      setText(text, [`${formatPercent(share)} of ${formatBytes(capture.raw_bytes)}`, `${formatBytes(capture.uploaded_bytes)} uploaded`, capture.rate_bytes_per_s > 0 && formatRate(capture.rate_bytes_per_s), capture.eta_s !== null && `${formatDuration(capture.eta_s)} left`].filter(Boolean).join(" · "));
    }
    const key = `${capture?.capture_id} ${capture?.state} ${capture?.error}`;
    if (key === shown) return;
    shown = key;
    if (capture) {
      fill(about, capture.plan.name, " · ", timeElement(capture.ended_at ?? capture.created_at));
      fill(problem, capture.error && h("div", { class: "alert", "data-tone": "bad" }, icon("warning"), h("p", {}, capture.error)),
        capture.state === "planned" && h("p", { class: "muted small" }, "Boot the machine over the network: its agent makes the image."));
    }
    const open = Boolean(capture) && !ENDED.includes(capture.state);
    fill(actions, mayOperate() && (open ? cancelButton(capture, refresh) : h("button", { type: "button", class: "button", onclick: () => planCapture(machine, refresh) }, icon("image"), "Capture")));
  };
  const refresh = async () => {
    try {
      const found = await get("/captures", { machine_id: machine.machine_id, limit: 1 });
      draw(found.items[0] ?? null);
    } catch {
      // The next refresh shows it; the shell says that the daemon is unavailable.
    }
  };
  const tick = async () => {
    await refresh();
    window.setTimeout(() => section.isConnected && tick(), REFRESH_MS);
  };
  tick();
  return section;
}

/** @param {any} capture @param {() => void} done */
function cancelButton(capture, done) {
  return h("button", { type: "button", class: "button", onclick: async () => {
    const sure = await confirmDialog({ title: `Cancel the capture of ${capture.machine_name}?`, text: "Everything that was uploaded is removed. The machine's disk isn't changed.", yes: "Cancel the capture", danger: true });
    if (!sure) return;
    try {
      await post(`/captures/${capture.capture_id}/cancel`);
      showToast(`Capture of ${capture.machine_name} cancelled`);
    } catch (error) {
      showError(error);
    }
    done();
  } }, "Cancel the capture");
}

/** @param {any} machine @param {() => void} done */
async function planCapture(machine, done) {
  await showDialog(`Capture ${machine.name}`, (close) => {
    const name = field({ label: "Name of the image", name: "name", required: true, hint: "The same name again makes a new version, and uploads only new blocks.", attributes: { "data-autofocus": true, maxlength: 64 } });
    const source = field({ label: "Disk", name: "source", value: "auto", required: true, hint: "auto: the only disk of the machine. Otherwise a path such as /dev/nvme0n1." });
    const every = h("input", { type: "checkbox", name: "every_byte" });
    return form({
      fields: [name, source],
      content: [
        h("p", {}, "The machine boots the live system over the network. Its disk is read, and not changed."),
        name.element, source.element,
        h("label", { class: "check" }, every, " Keep free space too, for evidence"),
      ],
      submit: "Capture",
      cancel: h("button", { type: "button", class: "button", onclick: () => close(false) }, "Cancel"),
      onsubmit: async () => {
        await create(`/machines/${encodeURIComponent(machine.machine_id)}/capture`, { name: name.input.value.trim(), source: source.input.value.trim(), every_byte: /** @type {HTMLInputElement} */ (every).checked });
        close(true);
        showToast(`Capture of ${machine.name} planned`);
        done();
      },
    });
  });
}
