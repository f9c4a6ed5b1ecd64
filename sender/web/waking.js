/** Waking machines by Wake-on-LAN: the request, and a message with its result. */

import { create, get } from "./api.js";
import { confirmDialog } from "./dialogs.js";
import { h, icon } from "./dom.js";
import { formatCount } from "./format.js";
import { showError, showToast } from "./toasts.js";

const POLL_MS = 3_000;
const NAMED_MAX = 5;

/**
 * Creates the button that wakes a room or a machine.
 * @param {string} label
 * @param {string} question
 * @param {{room_id?: string, machine_ids?: string[]}} wanted
 */
export function wakeButton(label, question, wanted) {
  return h("button", { type: "button", class: "button", onclick: () => wake(question, wanted) }, icon("offline"), label);
}

/** @param {string} question @param {{room_id?: string, machine_ids?: string[]}} wanted */
async function wake(question, wanted) {
  const text = "Magic packets go to every machine, a few at a time. A machine counts as awake when it boots from the network or its agent checks in, within three minutes.";
  if (!await confirmDialog({ title: question, text, yes: "Wake", no: "Cancel" })) return;
  try {
    const started = await create("/wakes", wanted);
    showToast(`Waking ${formatCount(started.machines.length, "machine")}`, "info");
    await report(started.wake_id);
  } catch (error) {
    showError(error);
  }
}

/** Shows the result when the wake has ended, on whichever page the user is then. @param {string} wakeId */
async function report(wakeId) {
  for (;;) {
    const found = await get(`/wakes/${encodeURIComponent(wakeId)}`);
    if (found.ended_at === null) {
      await new Promise((resolve) => { window.setTimeout(resolve, POLL_MS); });
      continue;
    }
    const missing = found.machines.filter((/** @type {any} */ machine) => !["woke", "was_on"].includes(machine.state));
    const total = found.machines.length;
    if (!missing.length) {
      showToast(total === 1 ? `${found.machines[0].name} is awake` : `All ${total} machines are awake`);
      return;
    }
    const named = missing.slice(0, NAMED_MAX).map((/** @type {any} */ machine) => machine.name).join(", ");
    const more = missing.length > NAMED_MAX ? ` and ${missing.length - NAMED_MAX} more` : "";
    showToast(`${total - missing.length} of ${total} machines are awake. Not awake: ${named}${more}.${found.problem ? ` ${found.problem}.` : ""}`, "bad");
    return;
  }
}
