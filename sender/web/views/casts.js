/** All casts, newest first. */

import { get } from "../api.js";
import { fill, h } from "../dom.js";
import { select } from "../forms.js";
import { showError } from "../toasts.js";
import { emptyState, pagedTable, pageHead } from "../components.js";
import { go, to } from "../router.js";
import { overview, roomNames } from "../store.js";
import { PHASES } from "../labels.js";
import { castColumns, newCastLink } from "./overview.js";

/**
 * @param {import("../app.js").PageContext} context
 * @returns {Promise<import("../app.js").Page>}
 */
export async function show({ query, signal }) {
  const filters = { phase: query.get("phase") ?? "", room_id: query.get("room_id") ?? "" };
  const phases = Object.entries(PHASES).filter(([phase]) => phase !== "paused");
  const phase = select({ name: "phase", value: filters.phase, options: [["", "Any phase"], ...phases.map(([key, { label }]) => /** @type {[string, string]} */ ([key, label]))] });
  const room = select({ name: "room_id", value: filters.room_id, options: [["", "Any room"], ...[...roomNames].map(([id, name]) => /** @type {[string, string]} */ ([id, name || id]))] });
  phase.setAttribute("aria-label", "Phase");
  room.setAttribute("aria-label", "Room");
  const list = h("div", { class: "card" });
  let redraw = (/** @type {any} */ _cast) => false;
  const load = async () => {
    const table = await pagedTable({
      caption: "Casts",
      columns: [...castColumns(), { label: "By", class: "wide-only", cell: (cast) => cast.created_by }],
      load: (cursor) => get("/casts", { ...filters, cursor, limit: 50 }, signal),
      empty: () => emptyState("cast", "No matching casts."),
      report: showError,
      key: (cast) => cast.cast_id,
    });
    redraw = table.redraw;
    fill(list, table.element);
  };
  const filter = () => go(to(["casts"], { phase: phase.value, room_id: room.value }));
  phase.addEventListener("change", filter);
  room.addEventListener("change", filter);
  await load();

  /** @type {Set<string>} */
  const requested = new Set();
  overview.subscribe((value) => {
    let others = false;
    for (const { cast } of value?.casts ?? []) {
      const belongs = (!filters.phase || filters.phase === cast.phase) && (!filters.room_id || filters.room_id === cast.plan.room_id);
      const key = `${cast.cast_id} ${cast.phase}`;
      // Reload once: the cast may also be on a page that isn't loaded.
      if (redraw(cast) !== belongs && !requested.has(key)) others = true;
      requested.add(key);
    }
    if (others) load().catch(showError);
  }, signal);

  return {
    title: "Casts",
    element: h("div", {}, pageHead("Casts", { actions: newCastLink() }), h("div", { class: "toolbar" }, phase, room), list),
    update: (_params, next) => {
      filters.phase = next.get("phase") ?? "";
      filters.room_id = next.get("room_id") ?? "";
      phase.value = filters.phase;
      room.value = filters.room_id;
      load().catch(showError);
      return true;
    },
  };
}
