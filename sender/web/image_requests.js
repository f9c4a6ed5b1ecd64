/** Requests of machines to be imaged, which technicians make at their consoles: approve or decline by a code. */

import { post } from "./api.js";
import { agoElement, dataTable, section } from "./components.js";
import { confirmDialog } from "./dialogs.js";
import { h, icon } from "./dom.js";
import { to } from "./router.js";
import { mayOperate, roomName } from "./store.js";
import { showError, showToast } from "./toasts.js";

/**
 * Creates the list of the requests that wait for a decision.
 * @param {any[]} requests
 * @param {() => void} changed called after a decision
 */
export function requestsSection(requests, changed) {
  const columns = [
    { label: "Machine", class: "main", cell: (/** @type {any} */ request) => h("a", { href: to(["machines", request.machine_id]) }, request.machine_name) },
    { label: "Room", cell: (/** @type {any} */ request) => (request.room_id ? roomName(request.room_id) : "No room") },
    { label: "Image", cell: (/** @type {any} */ request) => request.image_name },
    { label: "Disk to overwrite", cell: (/** @type {any} */ request) => request.disk },
    { label: "Address", class: "wide-only", cell: (/** @type {any} */ request) => request.address },
    { label: "Requested", class: "wide-only nowrap", cell: (/** @type {any} */ request) => agoElement(request.asked_at) },
    { label: "Code on its screen", cell: (/** @type {any} */ request) => h("code", { class: "approval-code" }, request.code) },
    { label: "Decision", hideLabel: true, cell: (/** @type {any} */ request) => mayOperate() && decision(request, changed) },
  ];
  return section("Requested at the machine", {},
    h("p", { class: "muted" }, "Somebody at the machine chose an image and confirmed the disk. Approve a request only if the screen of the machine shows the same code."),
    dataTable("Requests of machines", columns, requests).element);
}

/** @param {any} request @param {() => void} changed */
function decision(request, changed) {
  const path = `/machines/${encodeURIComponent(request.machine_id)}/requests`;
  const named = `the request of ${request.machine_name} with code ${request.code}`;
  const decide = async (/** @type {string} */ verb, /** @type {string} */ text) => {
    try {
      await post(`${path}/${verb}`, { code: request.code });
      showToast(text);
    } catch (error) {
      showError(error);
    }
    changed();
  };
  return h("span", { class: "actions" },
    h("button", { type: "button", class: "button primary", "aria-label": `Approve ${named}`, onclick: async () => {
      const text = `${request.image_name} overwrites everything on ${request.disk} of ${request.machine_name}.`;
      if (await confirmDialog({ title: `Image ${request.machine_name}?`, text, yes: "Image this machine", danger: true })) {
        await decide("approve", `${request.machine_name} gets ${request.image_name}`);
      }
    } }, icon("complete"), "Approve"),
    h("button", { type: "button", class: "button", "aria-label": `Decline ${named}`, onclick: () => decide("decline", `Request of ${request.machine_name} declined`) }, "Decline"));
}
