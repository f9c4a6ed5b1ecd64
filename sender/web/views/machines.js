/** Machines that are in no room yet: agents that checked in by themselves. */

import { get } from "../api.js";
import { h } from "../dom.js";
import { formatAgo } from "../format.js";
import { noticeError } from "../notices.js";
import { emptyState, pagedTable, pageHead } from "../parts.js";
import { to } from "../router.js";
import { roomName } from "../store.js";

/**
 * @param {import("../app.js").PageContext} context
 * @returns {Promise<import("../app.js").Page>}
 */
export async function show({ signal }) {
  const table = await pagedTable({
    caption: "All machines",
    columns: [
      { label: "Machine", class: "main", cell: (machine) => h("a", { href: to(["machines", machine.machine_id]) }, machine.name) },
      { label: "Room", cell: (machine) => (machine.room_id ? h("a", { href: to(["rooms", machine.room_id]) }, roomName(machine.room_id)) : h("span", { class: "warn-text" }, "No room")) },
      { label: "Hardware address", class: "wide-only", cell: (machine) => machine.macs.join(", ") || "–" },
      { label: "Address", class: "wide-only", cell: (machine) => machine.address || "–" },
      { label: "Last seen", cell: (machine) => (machine.last_seen_at ? formatAgo(machine.last_seen_at) : "never") },
    ],
    load: (cursor) => get("/machines", { cursor, limit: 100 }, signal),
    empty: () => emptyState("room", "No machine is known yet.", h("p", {}, "Start “diskcast-agent run” on a machine, or import a list into a room.")),
    report: noticeError,
  });
  return {
    title: "Machines",
    element: h("div", {}, pageHead("All machines", { back: ["#/rooms", "Rooms"], lead: "Also those that are in no room yet. Open one to put it into a room." }), h("div", { class: "card" }, table)),
  };
}
