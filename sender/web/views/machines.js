/** All machines, including agents that checked in and have no room yet. */

import { all, get } from "../api.js";
import { h } from "../dom.js";
import { showError } from "../toasts.js";
import { agoElement, emptyState, pagedTable, pageHead } from "../components.js";
import { to } from "../router.js";
import { roomName } from "../store.js";

const REFRESH_MS = 30_000; // the live stream doesn't have the machines of all rooms

/**
 * @param {import("../app.js").PageContext} context
 * @returns {Promise<import("../app.js").Page>}
 */
export async function show({ signal }) {
  const table = await pagedTable({
    caption: "All machines",
    columns: [
      { label: "Machine", class: "main", cell: (machine) => h("a", { href: to(["machines", machine.machine_id]) }, machine.name) },
      { label: "Room", live: true, cell: (machine) => (machine.room_id ? h("a", { href: to(["rooms", machine.room_id]) }, roomName(machine.room_id)) : h("span", { class: "warn-text" }, "No room")) },
      { label: "Hardware address", class: "wide-only", cell: (machine) => machine.macs.join(", ") || "–" },
      { label: "Address", class: "wide-only", live: true, cell: (machine) => machine.address || "–" },
      { label: "Last seen", class: "nowrap", live: true, cell: (machine) => agoElement(machine.last_seen_at) },
    ],
    load: (cursor) => get("/machines", { cursor, limit: 100 }, signal),
    empty: () => emptyState("room", "No machines yet.", h("p", {}, "Start “diskcast-agent run” on a machine, or import a list into a room.")),
    report: showError,
    key: (machine) => machine.machine_id,
  });
  const refresh = async () => {
    if (document.hidden) return;
    for (const machine of await all("/machines", {}, signal)) table.redraw(machine);
  };
  const timer = window.setInterval(() => refresh().catch(() => {}), REFRESH_MS); // the frame shows a lost connection
  signal.addEventListener("abort", () => window.clearInterval(timer), { once: true });
  return {
    title: "Machines",
    element: h("div", {}, pageHead("All machines", { back: ["#/rooms", "Rooms"], lead: "Including machines without a room. Open one to assign it to a room." }), h("div", { class: "card" }, table.element)),
  };
}
