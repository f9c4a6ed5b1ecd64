/** Pruning: a preview of the images that a policy deletes, and the deletion of exactly these. */

import { get, post } from "./api.js";
import { dataTable, errorText } from "./components.js";
import { confirmDialog, showDialog } from "./dialogs.js";
import { fill, h } from "./dom.js";
import { field, form } from "./forms.js";
import { formatBytes, formatCount } from "./format.js";
import { referenceOf } from "./image_text.js";
import { KEEP_REASONS } from "./labels.generated.js";
import { showError, showToast } from "./toasts.js";

/** @param {() => void} done */
export async function pruneImages(done) {
  /** @type {any} */
  let shown = null;
  const chosen = await showDialog("Prune old images", (close) => {
    const last = field({ label: "Newest versions to keep of each name", name: "keep_last", type: "number", value: 3, required: true, attributes: { min: 1, max: 1000, inputmode: "numeric", "data-autofocus": true } });
    const days = field({ label: "Keep images younger than (days)", name: "younger_than_days", type: "number", value: 0, required: true, hint: "0: no such rule.", attributes: { min: 0, max: 3650, inputmode: "numeric" } });
    const result = h("div", { "aria-live": "polite" });
    const policy = () => ({ keep_last: Number(last.input.value), younger_than_days: Number(days.input.value) });
    const remove = h("button", { type: "button", class: "button danger", disabled: true, onclick: () => close({ ...policy(), preview: shown.preview }) }, "Delete…");
    const forget = () => {
      shown = null;
      remove.disabled = true;
      fill(result);
    };
    for (const each of [last, days]) each.input.addEventListener("input", forget);
    return [
      form({
        fields: [last, days],
        content: [h("p", {}, "Pinned images, and those of schedules, casts and rooms, are always kept. Only files in the daemon's own folder and cache are deleted."), h("div", { class: "field-row" }, last.element, days.element), result],
        submit: "Preview",
        cancel: [h("button", { type: "button", class: "button", onclick: () => close(null) }, "Cancel"), remove],
        onsubmit: async () => {
          shown = await get("/images/prune", policy());
          remove.disabled = shown.deleted.length === 0;
          fill(result, h("p", {}, h("strong", {}, `${formatCount(shown.deleted.length, "image")} of ${formatBytes(shown.freed_bytes)} would be deleted.`)), decisions(shown));
        },
      }),
    ];
  });
  if (!chosen || !shown) return;
  const sure = await confirmDialog({
    title: `Delete ${formatCount(shown.deleted.length, "image")}?`,
    text: [h("p", {}, `These files of ${formatBytes(shown.freed_bytes)} are deleted from the daemon's disk and can't be restored:`), h("ul", {}, shown.deleted.map((/** @type {any} */ each) => h("li", { class: "break" }, h("strong", {}, referenceOf(each)), ` ${each.location}`)))],
    yes: "Delete them", danger: true,
  });
  if (!sure) return;
  try {
    const result = await post("/images/prune", chosen);
    showToast(`${formatCount(result.deleted.length, "image")} deleted, ${formatBytes(result.freed_bytes)} freed`);
    done();
  } catch (error) {
    showError(error instanceof Error ? error : new Error(errorText(error)));
  }
}

/** @param {any} preview */
function decisions({ deleted, kept }) {
  if (!deleted.length && !kept.length) return null;
  return dataTable("Decisions", [
    { label: "Image", class: "main", cell: (each) => referenceOf(each) },
    { label: "File", class: "number", cell: (each) => (each.stored_bytes ? formatBytes(each.stored_bytes) : "–") },
    { label: "Decision", cell: (each) => (each.reasons.length ? `Keep: ${each.reasons.map((/** @type {string} */ reason) => KEEP_REASONS[reason] ?? reason).join(", ")}` : h("strong", {}, "Delete")) },
  ], [...deleted, ...kept]).element;
}
