/** All machines, also those that are in no room yet: agents that checked in by themselves. */

import { all, get } from "../api.js";
import { h } from "../dom.js";
import { noticeError } from "../toasts.js";
import { agoElement, emptyState, pagedTable, pageHead } from "../components.js";
import { to } from "../router.js";
import { roomName } from "../store.js";

const LOOK_MS = 30_000; // machines of all rooms aren't in the live stream

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
    empty: () => emptyState("room", "No machine is known yet.", h("p", {}, "Start “diskcast-agent run” on a machine, or import a list into a room.")),
    report: noticeError,
    key: (machine) => machine.machine_id,
  });
  const look = async () => {
    if (document.hidden) return;
    for (const machine of await all("/machines", {}, signal)) table.redraw(machine);
  };
  const timer = window.setInterval(() => look().catch(() => {}), LOOK_MS); // that the daemon is away is said by the frame
  signal.addEventListener("abort", () => window.clearInterval(timer), { once: true });
  return {
    title: "Machines",
    element: h("div", {}, pageHead("All machines", { back: ["#/rooms", "Rooms"], lead: "Also those that are in no room yet. Open one to put it into a room." }), h("div", { class: "card" }, table.element)),
  };
}
