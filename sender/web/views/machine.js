/** One machine on a page of its own, for machines without a room. */

import { h } from "../dom.js";
import { MachinePanel, readMachine } from "../machine_panel.js";
import { go, to } from "../router.js";

/**
 * @param {import("../app.js").PageContext} context
 * @returns {Promise<import("../app.js").Page>}
 */
export async function show({ params, signal, live, reload }) {
  const [machine, history] = await readMachine(params.machine, signal);
  if (machine.room_id) {
    go(to(["rooms", machine.room_id, "machines", machine.machine_id]));
  }
  const panel = new MachinePanel(machine, history, { level: "h1", changed: reload });
  live.on("room", (data) => {
    const found = data.machines.find((/** @type {any} */ each) => each.machine_id === machine.machine_id);
    if (found) panel.update(found);
  }, signal);
  return {
    title: machine.name,
    element: h("div", { class: "card machine-page" }, panel.element),
    topics: machine.room_id ? [`room:${machine.room_id}`] : [],
  };
}
