/** One image: facts, contents, versions, differences, note. */

import { all, change, get } from "../api.js";
import { badge, dataTable, emptyState, errorText, pageHead, section, timeElement } from "../components.js";
import { showDialog } from "../dialogs.js";
import { fill, h, icon } from "../dom.js";
import { field, form } from "../forms.js";
import { formatBytes, formatCount, formatPercent } from "../format.js";
import { exportSection } from "../image_exports.js";
import { fileAddress, originText, readContents, referenceOf } from "../image_text.js";
import { IMAGE_STATES, sentence } from "../labels.js";
import { GENERALISATIONS } from "../labels.generated.js";
import { to } from "../router.js";
import { mayOperate } from "../store.js";
import { showError, showToast } from "../toasts.js";

/**
 * @param {import("../app.js").PageContext} context
 * @returns {Promise<import("../app.js").Page>}
 */
export async function show({ params, signal, reload }) {
  const path = `/images/${encodeURIComponent(params.image)}`;
  const [image, images] = await Promise.all([get(path, {}, signal), all("/images", {}, signal)]);
  const versions = images.filter((each) => each.name === image.name).sort((one, other) => other.number - one.number);
  const older = versions.find((each) => each.number < image.number && each.state === "available");
  const contents = h("div", { "aria-live": "polite" });
  watchContents(path, contents, signal);
  const pin = async () => {
    try {
      await change(path, { pinned: !image.pinned });
      showToast(image.pinned ? `${referenceOf(image)} can be pruned` : `${referenceOf(image)} is pinned`);
      reload();
    } catch (error) {
      showError(error);
    }
  };
  const label = IMAGE_STATES[image.state] ?? { label: image.state, icon: "info", tone: "calm", order: 9 };
  const usable = ["available", "remote"].includes(image.state);
  return {
    title: referenceOf(image),
    element: h("div", { class: "image-page" },
      pageHead(referenceOf(image), {
        back: ["#/images", "Images"],
        lead: [badge(label), image.latest && image.number > 1 ? h("span", { class: "muted" }, " latest version") : null],
        actions: mayOperate() && [
          h("button", { type: "button", class: "button", onclick: () => editNote(path, image, reload) }, icon("edit"), image.note ? "Edit note" : "Add note"),
          h("button", { type: "button", class: "button", "aria-pressed": String(image.pinned), onclick: pin }, image.pinned ? "Unpin" : "Pin"),
          image.state === "available" && h("a", { class: "button", href: fileAddress(image.image_id), download: `${referenceOf(image)}.dci` }, icon("download"), "Download"),
          usable && h("a", { class: "button primary", href: to(["new-cast"], { image: image.image_id }) }, icon("cast"), "Cast"),
        ],
      }),
      image.problem && h("div", { class: "alert", "data-tone": "bad" }, icon("warning"), h("p", {}, sentence(image.problem))),
      image.note && h("div", { class: "card image-note" }, h("p", {}, image.note)),
      section("Facts", {}, facts(image)),
      section("Contents", {}, contents),
      image.state === "available" && mayOperate() && exportSection(image, signal),
      versions.length > 1 && section("Versions", {}, versionTable(versions, image)),
      older && image.state === "available" && section(`Compared with ${referenceOf(older)}`, {}, comparison(path, older, signal))),
  };
}

/** @param {any} image */
function facts(image) {
  const rows = /** @type {[string, any][]} */ ([
    ["Source", sentence(originText(image.origin)).replace(/\.$/, "")],
    ["Added", [timeElement(image.first_seen_at), image.added_by && ` by ${image.added_by}`]],
    ["Disk", image.raw_bytes ? formatBytes(image.raw_bytes) : ""],
    ["File", image.stored_bytes ? `${formatBytes(image.stored_bytes)}${image.raw_bytes ? ` (${formatPercent(image.stored_bytes / image.raw_bytes)} of the disk)` : ""}` : ""],
    ["Packed", image.packed_at && timeElement(image.packed_at)],
    ["Location", h("span", { class: "break" }, image.location)],
    ["Signature", image.version ? [`version ${image.version} by `, h("code", {}, image.signer)] : image.raw_bytes ? "Unsigned: machines refuse it" : ""],
    ["Pruning", image.pinned ? "Pinned: it is kept" : ""],
    ["Id", h("code", { class: "break" }, image.image_id)],
  ]);
  return h("dl", { class: "pairs" }, rows.filter(([, value]) => value).map(([term, value]) => h("div", {}, h("dt", {}, term), h("dd", {}, value))));
}

/** @param {string} path @param {HTMLElement} holder @param {AbortSignal} signal */
async function watchContents(path, holder, signal) {
  fill(holder, h("p", { class: "muted" }, "Reading the image…"));
  try {
    const found = await readContents(path, signal);
    fill(holder, found.contents ? contentsView(found.contents) : h("p", { class: "muted" }, `Unknown: ${found.problem}.`));
  } catch (error) {
    if (!signal.aborted) fill(holder, h("p", { class: "muted" }, sentence(errorText(error))));
  }
}

/** @param {any} contents */
function contentsView(contents) {
  const table = { gpt: "GPT", mbr: "MBR", none: "No partition table" }[/** @type {string} */ (contents.table)] ?? "";
  const systems = [...new Set(contents.partitions.map((/** @type {any} */ each) => each.system).filter(Boolean))];
  return [
    h("p", {}, [systems.join(", "), table, `${formatBytes(contents.used_bytes)} with content, ${formatBytes(contents.unused_bytes)} left out as free`].filter(Boolean).join(" · ")),
    contents.problem && h("p", { class: "muted small" }, sentence(contents.problem)),
    contents.generalisation !== "no_system" && h("p", {}, sentence(GENERALISATIONS[contents.generalisation])),
    contents.partitions.length ? dataTable("Partitions", [
      { label: "Partition", class: "main", cell: (each) => [each.number ? String(each.number) : "Disk", each.name && ` ${each.name}`] },
      { label: "Filesystem", cell: (each) => [each.filesystem || "unknown", each.label && h("p", { class: "small muted" }, each.label)] },
      { label: "Size", class: "number", cell: (each) => formatBytes(each.size_bytes) },
      { label: "Free", class: "number", cell: (each) => (each.free_bytes === null ? "–" : formatBytes(each.free_bytes)) },
      { label: "In the file", class: "number wide-only", cell: (each) => formatBytes(each.stored_bytes) },
      { label: "UUID", class: "wide-only", cell: (each) => h("code", { class: "small" }, each.uuid || "–") },
      { label: "System", cell: (each) => each.system || "–" },
    ], contents.partitions).element : emptyState("image", "No partitions are known."),
  ];
}

/** @param {any[]} versions @param {any} shown */
function versionTable(versions, shown) {
  return dataTable("Versions", [
    { label: "Version", class: "main", cell: (each) => (each.image_id === shown.image_id ? h("strong", {}, referenceOf(each)) : h("a", { href: to(["images", each.image_id]) }, referenceOf(each))) },
    { label: "State", cell: (each) => (IMAGE_STATES[each.state] ? badge(IMAGE_STATES[each.state]) : each.state) },
    { label: "Packed", class: "wide-only", cell: (each) => timeElement(each.packed_at) },
    { label: "File", class: "number", cell: (each) => (each.stored_bytes ? formatBytes(each.stored_bytes) : "–") },
    { label: "Note", class: "wide-only", cell: (each) => [each.pinned && h("strong", {}, "Pinned. "), each.note] },
  ], versions).element;
}

/** @param {string} path @param {any} older @param {AbortSignal} signal */
function comparison(path, older, signal) {
  const holder = h("div", { "aria-live": "polite" });
  const compare = async () => {
    fill(holder, h("p", { class: "muted" }, "Comparing…"));
    try {
      fill(holder, diffView(await get(`${path}/diff`, { older: older.image_id }, signal)));
    } catch (error) {
      if (!signal.aborted) fill(holder, h("p", {}, sentence(errorText(error))));
    }
  };
  fill(holder, h("button", { type: "button", class: "button", onclick: compare }, "Compare with the previous version"));
  return holder;
}

/** @param {any} diff */
function diffView(diff) {
  const { whole } = diff;
  return [
    h("p", {}, `${formatCount(whole.changed_count, "block")} of ${whole.block_count} changed (${formatBytes(whole.changed_bytes)}). A machine with the older version gets ${formatBytes(whole.sent_bytes)} of ${formatBytes(whole.stored_bytes)}.`),
    !diff.comparable && h("p", {}, "The images have different block sizes: everything is sent."),
    diff.layout_changed && h("p", {}, "The partition tables differ."),
    diff.partitions.length > 0 && dataTable("Changed partitions", [
      { label: "Partition", class: "main", cell: (each) => [String(each.number), each.name && ` ${each.name}`, each.moved && h("p", { class: "small muted" }, "new or moved")] },
      { label: "Filesystem", cell: (each) => each.filesystem || "–" },
      { label: "Changed", class: "number", cell: (each) => `${each.blocks.changed_count} of ${each.blocks.block_count} blocks` },
      { label: "To send", class: "number", cell: (each) => formatBytes(each.blocks.sent_bytes) },
    ], diff.partitions).element,
  ];
}

/** @param {string} path @param {any} image @param {() => void} done */
async function editNote(path, image, done) {
  await showDialog(`Note on ${referenceOf(image)}`, (close) => {
    const note = field({ label: "Note", name: "note", input: h("textarea", { name: "note", rows: 4, maxlength: 1000, "data-autofocus": true }, image.note), hint: "All operators see it. Empty: no note." });
    return form({
      fields: [note], content: [note.element], submit: "Save",
      cancel: h("button", { type: "button", class: "button", onclick: () => close(false) }, "Cancel"),
      onsubmit: async () => {
        await change(path, { note: note.input.value.trim() });
        close(true);
        showToast("Note saved");
        done();
      },
    });
  });
}
