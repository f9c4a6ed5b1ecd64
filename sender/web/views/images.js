/** The image library. */

import { all, create, post, remove } from "../api.js";
import { confirmDialog, showDialog } from "../dialogs.js";
import { fill, h, icon } from "../dom.js";
import { field, form } from "../forms.js";
import { formatBytes, formatPercent } from "../format.js";
import { showToast, showError } from "../toasts.js";
import { badge, emptyState, pageHead, ProgressBar, timeElement } from "../components.js";
import { to } from "../router.js";
import { pruneImages } from "../image_prune.js";
import { referenceOf } from "../image_text.js";
import { uploadImage, uploadList } from "../image_upload.js";
import { mayOperate } from "../store.js";
import { IMAGE_STATES, sentence } from "../labels.js";

const FETCH_REFRESH_MS = 1_000; // images aren't in the live stream: the list is polled while one is fetched
const IDLE_REFRESH_MS = 10_000;

/**
 * @param {import("../app.js").PageContext} context
 * @returns {Promise<import("../app.js").Page>}
 */
export async function show({ signal }) {
  const holder = h("div");
  let shown = "";
  let timer = 0;
  const draw = async () => {
    const images = await all("/images", {}, signal);
    const key = JSON.stringify(images);
    if (key !== shown) {
      shown = key;
      const focused = /** @type {HTMLElement | null} */ (document.activeElement?.closest("[data-key]"))?.dataset.key;
      fill(holder, images.length ? h("ul", { class: "image-cards", role: "list" }, images.map((image) => imageCard(image, redraw))) : emptyState("image", "The library is empty.", h("p", {}, "Pack a disk with “diskcast pack” into the library's folder, upload an image, or add one by URL.")));
      if (focused) /** @type {HTMLElement | null} */ (holder.querySelector(`[data-key="${CSS.escape(focused)}"]`))?.focus();
    }
    return images.some((image) => image.state === "fetching");
  };
  const refresh = async () => {
    let busy = false;
    try {
      busy = await draw();
    } catch (error) {
      if (signal.aborted) return;
    }
    if (!signal.aborted) timer = window.setTimeout(refresh, busy ? FETCH_REFRESH_MS : IDLE_REFRESH_MS);
  };
  const redraw = () => {
    window.clearTimeout(timer);
    refresh();
  };
  const busy = await draw();
  timer = window.setTimeout(refresh, busy ? FETCH_REFRESH_MS : IDLE_REFRESH_MS);
  signal.addEventListener("abort", () => window.clearTimeout(timer), { once: true });

  const uploads = uploadList(signal, redraw);
  const uploaded = () => {
    uploads.refresh();
    redraw();
  };
  const scan = async () => {
    try {
      await post("/images/scan");
      showToast("Scanning the library's folders");
      redraw();
    } catch (error) {
      showError(error);
    }
  };
  return {
    title: "Images",
    element: h("div", {},
      pageHead("Images", {
        actions: mayOperate() && [
          h("button", { type: "button", class: "button", onclick: scan }, icon("refresh"), "Rescan"),
          h("button", { type: "button", class: "button", onclick: () => pruneImages(redraw) }, icon("trash"), "Prune"),
          h("button", { type: "button", class: "button", onclick: () => uploadImage(signal, uploaded) }, icon("plus"), "Upload"),
          h("button", { type: "button", class: "button primary", onclick: () => addImage(redraw) }, icon("plus"), "Add by URL"),
        ],
      }), uploads.element, holder),
  };
}

/** @param {any} image @param {() => void} done */
function imageCard(image, done) {
  const stateLabel = IMAGE_STATES[image.state] ?? { label: image.state, icon: "info", tone: "calm", order: 9 };
  const act = (/** @type {() => Promise<any>} */ work, /** @type {string} */ message) => async () => {
    try {
      await work();
      showToast(message);
      done();
    } catch (error) {
      showError(error);
    }
  };
  const path = `/images/${encodeURIComponent(image.image_id)}`;
  const forget = async () => {
    const sure = await confirmDialog({ title: `Remove ${image.name}?`, text: "Its URL is removed from the library and its cached copy is deleted. The file at the URL stays.", yes: "Remove it", danger: true });
    if (sure) await act(() => remove(path), `${image.name} removed`)();
  };
  const bar = new ProgressBar(`Fetch progress of ${image.name}`);
  const fetched = image.stored_bytes ? image.fetched_bytes / image.stored_bytes : 0;
  bar.set(fetched);
  return h("li", { class: "card image-card", "data-tone": stateLabel.tone },
    h("div", { class: "image-card-head" }, h("div", { class: "image-icon" }, icon("image")), h("div", {}, h("h2", {}, h("a", { href: to(["images", image.image_id]) }, referenceOf(image)), image.latest && image.number > 1 && h("span", { class: "muted" }, " · latest")), h("p", { class: "muted small break" }, image.location)), badge(stateLabel)),
    image.note && h("p", { class: "small image-note" }, image.note),
    image.problem && h("div", { class: "alert", "data-tone": "bad" }, icon("warning"), h("p", {}, sentence(image.problem))),
    image.state === "fetching" && h("div", { class: "progress-row" }, bar.element, h("span", { class: "progress-words" }, `${formatPercent(fetched)} of ${formatBytes(image.stored_bytes)}`)),
    h("dl", { class: "figures compact" }, figure("Disk", image.raw_bytes ? formatBytes(image.raw_bytes) : "–"), figure("File", image.stored_bytes ? formatBytes(image.stored_bytes) : "–"), figure("Packed", timeElement(image.packed_at)), figure("Id", h("code", { title: image.image_id }, image.image_id.replace(/^url:/, "").slice(0, 8))), image.version !== "" && figure("Signed version", image.version), image.signer !== "" && figure("Signed by", h("code", { title: `Signed as ${image.signed_name}` }, image.signer))),
    image.raw_bytes > 0 && image.signer === "" && unsignedNote(image),
    image.in_use_by.length > 0 && h("p", { class: "small" }, "In use by ", image.in_use_by.map((/** @type {string} */ id, /** @type {number} */ index) => [index ? ", " : "", h("a", { href: to(["casts", id]) }, `cast ${id}`)])),
    mayOperate() && h("div", { class: "actions" },
      ["available", "remote"].includes(image.state) && h("a", { class: "button", href: to(["new-cast"], { image: image.image_id }), "data-key": `${image.image_id} cast` }, icon("cast"), "Cast"),
      image.state === "remote" && h("button", { type: "button", class: "button", "data-key": `${image.image_id} fetch`, onclick: act(() => post(`${path}/fetch`), `Fetching ${image.name}`) }, icon("download"), "Fetch now"),
      image.source === "remote" && h("button", { type: "button", class: "button", "data-key": `${image.image_id} forget`, onclick: forget }, icon("trash"), "Remove")));
}

/** @param {any} image */
function unsignedNote(image) {
  const command = `diskcast images sign ${image.image_id.slice(0, 12)}`;
  return h("div", { class: "alert", "data-tone": "warn" }, icon("warning"), h("p", {}, "Unsigned: machines refuse it. Sign it on your own machine: ", h("code", {}, command)));
}

/** @param {string} label @param {any} value */
function figure(label, value) {
  return h("div", { class: "figure" }, h("dt", {}, label), h("dd", {}, value));
}

/** @param {() => void} done */
async function addImage(done) {
  await showDialog("Add an image by URL", (close) => {
    const url = field({ label: "URL", name: "url", type: "url", required: true, hint: "http://, https:// or s3://; a .dci file.", attributes: { "data-autofocus": true, inputmode: "url", spellcheck: "false" } });
    const name = field({ label: "Name", name: "name", hint: "Default: the name of the file." });
    return form({
      fields: [url, name], content: [url.element, name.element], submit: "Add the image",
      cancel: h("button", { type: "button", class: "button", onclick: () => close(false) }, "Cancel"),
      onsubmit: async () => {
        const body = { url: url.input.value.trim(), ...(name.input.value.trim() && { name: name.input.value.trim() }) };
        const image = await create("/images", body);
        close(true);
        showToast(`${image.name} added to the library`);
        done();
      },
    });
  });
}
