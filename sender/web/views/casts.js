/** All casts, newest first. */

import { get } from "../api.js";
import { fill, h } from "../dom.js";
import { select } from "../forms.js";
import { noticeError } from "../notices.js";
import { emptyState, pagedTable, pageHead } from "../parts.js";
import { go, to } from "../router.js";
import { overview, roomNames } from "../store.js";
import { hasEnded, PHASES } from "../words.js";
import { castColumns, newCastLink } from "./overview.js";

/**
 * @param {import("../app.js").PageContext} context
 * @returns {Promise<import("../app.js").Page>}
 */
export async function show({ query, signal }) {
  const filters = { phase: query.get("phase") ?? "", room_id: query.get("room_id") ?? "" };
  const phases = Object.entries(PHASES).filter(([phase]) => phase !== "paused");
  const phase = select({ name: "phase", value: filters.phase, options: [["", "Any phase"], ...phases.map(([key, look]) => /** @type {[string, string]} */ ([key, look.label]))] });
  const room = select({ name: "room_id", value: filters.room_id, options: [["", "Any room"], ...[...roomNames].map(([id, name]) => /** @type {[string, string]} */ ([id, name || id]))] });
  phase.setAttribute("aria-label", "Phase");
  room.setAttribute("aria-label", "Room");
  const list = h("div", { class: "card" });
  const load = () => pagedTable({
    caption: "Casts",
    columns: [...castColumns(), { label: "By", class: "wide-only", cell: (cast) => cast.created_by }],
    load: (cursor) => get("/casts", { ...filters, cursor, limit: 50 }, signal),
    empty: () => emptyState("cast", "No cast is like that."),
    report: noticeError,
  });
  const filter = () => go(to(["casts"], { phase: phase.value, room_id: room.value }));
  phase.addEventListener("change", filter);
  room.addEventListener("change", filter);
  fill(list, await load());

  let shown = phasesKey(overview.value);
  overview.subscribe((value) => {
    const key = phasesKey(value);
    if (key === shown) return;
    shown = key;
    load().then((table) => fill(list, table), noticeError);
  }, signal);

  return {
    title: "Casts",
    element: h("div", {}, pageHead("Casts", { actions: newCastLink() }), h("div", { class: "toolbar" }, phase, room), list),
    update: (_params, next) => {
      filters.phase = next.get("phase") ?? "";
      filters.room_id = next.get("room_id") ?? "";
      phase.value = filters.phase;
      room.value = filters.room_id;
      load().then((table) => fill(list, table), noticeError);
      return true;
    },
  };
}

/** @param {any} value the overview: when a cast begins or ends, the list is read anew */
function phasesKey(value) {
  return (value?.casts ?? []).map((/** @type {any} */ { cast }) => `${cast.cast_id}${hasEnded(cast.phase) ? "" : cast.phase}`).join();
}
