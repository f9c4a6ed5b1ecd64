/** The list of rooms. */

import { all, create } from "../api.js";
import { showDialog } from "../dialogs.js";
import { fill, h, icon } from "../dom.js";
import { field, form } from "../forms.js";
import { formatCount } from "../format.js";
import { badge, emptyState, pageHead } from "../components.js";
import { go, to } from "../router.js";
import { mayOperate, overview, roomNames } from "../store.js";
import { castLabel, hasEnded } from "../labels.js";

/**
 * @param {import("../app.js").PageContext} context
 * @returns {Promise<import("../app.js").Page>}
 */
export async function show({ signal }) {
  const rooms = await all("/rooms", {}, signal);
  for (const room of rooms) roomNames.set(room.room_id, room.name);
  const cards = new Map(rooms.map((room) => [room.room_id, roomCard(room)]));
  overview.follow((value) => {
    for (const [roomId, card] of cards) {
      const live = value?.casts.find((/** @type {any} */ each) => each.cast.plan.room_id === roomId && !hasEnded(each.cast.phase));
      const key = live ? `${live.cast.phase}${live.cast.paused}` : "";
      if (card.shown === key) continue;
      card.shown = key;
      fill(card.status, live && badge(castLabel(live.cast)));
    }
  }, signal);
  const element = h("div", {},
    pageHead("Rooms", {
      actions: [
        h("a", { class: "button", href: "#/machines" }, icon("room"), "All machines"),
        mayOperate() && h("button", { type: "button", class: "button primary", onclick: newRoom }, icon("plus"), "New room"),
      ],
    }),
    rooms.length
      ? h("ul", { class: "room-cards", role: "list" }, [...cards.values()].map((card) => card.element))
      : emptyState("room", "No rooms yet.", h("p", {}, "A room is a named set of machines, such as a classroom or a rack. Create one, then import its machines from a list.")));
  return { title: "Rooms", element };
}

/** @param {any} room */
function roomCard(room) {
  const status = h("div", { class: "room-card-status" });
  const element = h("li", { class: "card room-card" },
    h("div", {}, h("h2", {}, h("a", { class: "card-link", href: to(["rooms", room.room_id]) }, room.name || room.room_id)),
      h("p", { class: "muted" }, formatCount(room.machine_count, "machine"), room.site && ` · ${room.site}`),
      room.description && h("p", {}, room.description)),
    status);
  return { element, status, shown: "" };
}

async function newRoom() {
  await showDialog("New room", (close) => {
    const name = field({ label: "Name", name: "name", required: true, hint: "For example Lab 2.", attributes: { "data-autofocus": true, maxlength: 64 } });
    const id = field({ label: "Short name", name: "room_id", required: true, hint: "Lower-case letters, digits and hyphens, for URLs, metrics and the command line.", attributes: { pattern: "[a-z0-9]([a-z0-9\\-]*[a-z0-9])?", maxlength: 63 } });
    const description = field({ label: "Description", name: "description", attributes: { maxlength: 1000 } });
    const site = field({ label: "Site", name: "site", hint: "Only daemons of this site cast to the room. Leave it empty with a single daemon." });
    let typed = false;
    id.input.addEventListener("input", () => { typed = true; });
    name.input.addEventListener("input", () => {
      if (!typed) id.input.value = name.input.value.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-+|-+$/g, "");
    });
    const fields = [name, id, description, site];
    return form({
      fields, content: fields.map((each) => each.element), submit: "Create the room",
      cancel: h("button", { type: "button", class: "button", onclick: () => close(false) }, "Cancel"),
      onsubmit: async () => {
        const room = await create("/rooms", { room_id: id.input.value, name: name.input.value.trim(), description: description.input.value.trim(), site: site.input.value.trim() });
        roomNames.set(room.room_id, room.name);
        close(true);
        go(to(["rooms", room.room_id]));
      },
    });
  });
}
