/** All machines, including agents that checked in and have no room yet. */

import { all, get } from "../api.js";
import { fill, h, icon } from "../dom.js";
import { showError } from "../toasts.js";
import { agoElement, dataTable, emptyState, pagedTable, pageHead, section } from "../components.js";
import { requestsSection } from "../image_requests.js";
import { hardwareText } from "../machine_boots.js";
import { addMachines, approveButton, enrolmentCell } from "../machine_enrolment.js";
import { to } from "../router.js";
import { mayOperate, roomName } from "../store.js";

const REFRESH_MS = 10_000; // the live stream doesn't have the machines of all rooms

/**
 * @param {import("../app.js").PageContext} context
 * @returns {Promise<import("../app.js").Page>}
 */
export async function show({ signal, reload }) {
  const waiting = h("div", { class: "waiting-machines" });
  const requested = h("div", { class: "waiting-machines" });
  let waitingShown = "";
  let requestedShown = "";
  const drawWaiting = (/** @type {any[]} */ machines) => {
    const found = machines.filter((machine) => machine.enrolment === "waiting");
    const key = JSON.stringify(found.map((machine) => [machine.machine_id, machine.approval_code]));
    if (key === waitingShown) return;
    waitingShown = key;
    fill(waiting, found.length > 0 && waitingSection(found, reload));
  };
  const drawRequested = (/** @type {any[]} */ requests) => {
    const key = JSON.stringify(requests.map((request) => [request.machine_id, request.code]));
    if (key === requestedShown) return;
    requestedShown = key;
    fill(requested, requests.length > 0 && requestsSection(requests, reload));
  };
  const table = await pagedTable({
    caption: "All machines",
    columns: [
      { label: "Machine", class: "main", cell: (machine) => h("a", { href: to(["machines", machine.machine_id]) }, machine.name) },
      { label: "Room", live: true, cell: (machine) => (machine.room_id ? h("a", { href: to(["rooms", machine.room_id]) }, roomName(machine.room_id)) : h("span", { class: "warn-text" }, "No room")) },
      { label: "Enrolment", live: true, cell: enrolmentCell },
      { label: "Hardware address", class: "wide-only", cell: (machine) => machine.macs.join(", ") || "–" },
      { label: "Address", class: "wide-only", live: true, cell: (machine) => machine.address || "–" },
      { label: "Hardware", class: "wide-only", cell: (machine) => hardwareText(machine) || "–" },
      { label: "Last seen", class: "nowrap", live: true, cell: (machine) => agoElement(machine.last_seen_at) },
    ],
    load: (cursor) => get("/machines", { cursor, limit: 100 }, signal),
    empty: () => emptyState("room", "No machines yet.", h("p", {}, "Start “diskcast-agent run” on a machine, or import a list into a room.")),
    report: showError,
    key: (machine) => machine.machine_id,
  });
  const refresh = async () => {
    if (document.hidden) return;
    const [machines, requests] = await Promise.all([all("/machines", {}, signal), get("/requests", {}, signal)]);
    for (const machine of machines) table.redraw(machine);
    drawWaiting(machines);
    drawRequested(requests.items);
  };
  await refresh();
  const timer = window.setInterval(() => refresh().catch(() => {}), REFRESH_MS); // the frame shows a lost connection
  signal.addEventListener("abort", () => window.clearInterval(timer), { once: true });
  return {
    title: "Machines",
    element: h("div", {}, pageHead("All machines", { back: ["#/rooms", "Rooms"], lead: "Including machines without a room. Open one to assign it to a room.", actions: mayOperate() && h("button", { type: "button", class: "button primary", onclick: () => addMachines() }, icon("plus"), "Add machines") }), requested, waiting, h("div", { class: "card" }, table.element)),
  };
}

/** @param {any[]} machines that wait for approval @param {() => void} changed */
function waitingSection(machines, changed) {
  const columns = [
    { label: "Machine", class: "main", cell: (/** @type {any} */ machine) => h("a", { href: to(["machines", machine.machine_id]) }, machine.name) },
    { label: "Room", cell: (/** @type {any} */ machine) => (machine.room_id ? roomName(machine.room_id) : "No room") },
    { label: "Hardware", class: "wide-only", cell: (/** @type {any} */ machine) => [hardwareText(machine) || "–", h("p", { class: "small muted" }, machine.macs.join(", "))] },
    { label: "Address", cell: (/** @type {any} */ machine) => machine.claimed_from },
    { label: "Code on its screen", cell: (/** @type {any} */ machine) => h("code", { class: "approval-code" }, machine.approval_code) },
    { label: "Decision", hideLabel: true, cell: (/** @type {any} */ machine) => mayOperate() && approveButton(machine, changed) },
  ];
  return section("Waiting for approval", {}, h("p", { class: "muted" }, "Approve a machine only if its own screen shows the same code."), dataTable("Machines that wait for approval", columns, machines).element);
}
