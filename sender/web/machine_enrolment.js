/** Enrolment of machines: state, approval by a code, revocation, and the commands that enrol a room. */

import { all, create, get, post } from "./api.js";
import { badge, timeElement } from "./components.js";
import { confirmDialog, showDialog } from "./dialogs.js";
import { fill, h, icon } from "./dom.js";
import { field, form, select } from "./forms.js";
import { enrolmentLabel } from "./labels.js";
import { mayOperate, roomName } from "./store.js";
import { showError, showToast } from "./toasts.js";

const HOUR_MS = 3_600_000;
const CLAIM_SHOWN_MS = HOUR_MS; // as long as the daemon counts it as a problem
const LIFETIMES = /** @type {[string, string][]} */ ([["1", "1 hour"], ["8", "8 hours"], ["24", "1 day"], ["168", "1 week"], ["720", "30 days"]]);

/** @param {any} machine @returns {boolean} true while a refused claim of another agent is recent */
function hasSecondClaim(machine) {
  return machine.enrolment !== "waiting" && machine.claimed_at !== null && Date.now() - Date.parse(machine.claimed_at) < CLAIM_SHOWN_MS;
}

/** @param {any} machine its record @returns {HTMLElement} for a table */
export function enrolmentCell(machine) {
  return h("span", { class: "enrolment-cell" }, badge(enrolmentLabel(machine.enrolment)),
    machine.approval_code && h("code", { class: "approval-code" }, machine.approval_code),
    hasSecondClaim(machine) && badge({ label: "Second claim", icon: "warning", tone: "bad", order: 0 }));
}

/**
 * Creates the part of a machine's panel about its enrolment.
 * @param {any} machine its record
 * @param {() => void} changed called after a decision
 */
export function enrolmentSection(machine, changed) {
  const rows = [
    ["Enrolled", machine.enrolled_at && timeElement(machine.enrolled_at)],
    ["With", machine.enrolment === "enrolled" && machine.enrolled_by],
    ["Approved by", machine.enrolment === "approved" && machine.enrolled_by],
  ].filter(([, value]) => value);
  return h("section", { class: "enrolment", "aria-label": "Enrolment" },
    h("h3", {}, "Enrolment"),
    h("div", { class: "enrolment-row" }, badge(enrolmentLabel(machine.enrolment)), h("span", { class: "spacer" }), mayOperate() && decision(machine, changed)),
    machine.enrolment === "waiting" && h("p", {}, "Its agent at ", h("code", {}, machine.claimed_from), " shows the code ", h("code", { class: "approval-code" }, machine.approval_code), ". Approve it only if the screen of this machine shows the same code."),
    hasSecondClaim(machine) && h("div", { class: "alert", "data-tone": "bad" }, icon("warning"),
      h("div", {}, h("p", {}, h("strong", {}, "Another agent claims to be this machine"), ": ", h("code", {}, machine.claimed_from), ", last at ", timeElement(machine.claimed_at), "."),
        h("p", { class: "small" }, "A machine that was restarted does so for some seconds. Otherwise look for a clone of this machine, or for an intruder with a token."))),
    rows.length > 0 && h("dl", { class: "pairs" }, rows.map(([label, value]) => h("div", {}, h("dt", {}, label), h("dd", {}, value)))));
}

/** @param {any} machine @param {() => void} changed */
function decision(machine, changed) {
  const path = `/machines/${encodeURIComponent(machine.machine_id)}`;
  if (machine.enrolment === "waiting") return approveButton(machine, changed);
  if (machine.enrolment === "blocked") {
    return h("button", { type: "button", class: "button", onclick: () => decide(() => post(`${path}/readmit`), `${machine.name} can enrol again`, changed) }, "Readmit");
  }
  return h("button", { type: "button", class: "button danger-outline", onclick: async () => {
    const text = `${machine.name} is out within five seconds, also of a running cast, which continues without it. It can't enrol until you readmit it.`;
    if (await confirmDialog({ title: `Revoke ${machine.name}?`, text, yes: "Revoke", danger: true })) {
      decide(async () => {
        const { recorded } = await post(`${path}/revoke`);
        if (!recorded) showToast("The database is unavailable: other daemons learn of this later");
      }, `${machine.name} revoked`, changed);
    }
  } }, "Revoke");
}

/**
 * Creates the button that approves a machine by the code that is shown beside it.
 * @param {any} machine @param {() => void} changed
 */
export function approveButton(machine, changed) {
  return h("button", { type: "button", class: "button primary", "aria-label": `Approve ${machine.name} with code ${machine.approval_code}`,
    onclick: () => decide(() => post(`/machines/${encodeURIComponent(machine.machine_id)}/approve`, { code: machine.approval_code }), `${machine.name} approved`, changed) }, icon("complete"), "Approve");
}

/** @param {() => Promise<any>} work @param {string} text @param {() => void} changed */
async function decide(work, text, changed) {
  try {
    await work();
    showToast(text);
  } catch (error) {
    showError(error);
  }
  changed();
}

/**
 * Shows a dialog that creates a token for enrolment, and then the commands to paste on the machines.
 * @param {string} [roomId] the chosen room
 */
export async function addMachines(roomId = "") {
  /** @type {any[]} */
  let rooms = [];
  /** @type {any} */
  let server;
  try {
    [rooms, server] = await Promise.all([all("/rooms"), get("/server")]);
  } catch (error) {
    showError(error);
    return;
  }
  await showDialog("Add machines", (close) => {
    const body = h("div");
    const options = /** @type {[string, string][]} */ ([["", "All rooms"], ...rooms.map((room) => [room.room_id, room.name || room.room_id])]);
    const fields = [
      field({ label: "Room", name: "room_id", input: select({ name: "room_id", options, value: roomId }), hint: "The token enrols machines of this room, and new ones into it." }),
      field({ label: "Token expires after", name: "lifetime", input: select({ name: "lifetime", options: LIFETIMES, value: "8" }), hint: "Machines that have enrolled until then stay enrolled." }),
    ];
    const [room, lifetime] = fields;
    fill(body, form({
      fields, content: fields.map((each) => each.element), submit: "Create the token",
      cancel: h("button", { type: "button", class: "button", onclick: () => close(false) }, "Cancel"),
      onsubmit: async () => {
        const expires = new Date(Date.now() + Number(lifetime.input.value) * HOUR_MS);
        const name = `enrol ${room.input.value || "all rooms"} ${new Date().toISOString().slice(0, 19)}`;
        const made = await create("/tokens", { name, role: "enrol", room_id: room.input.value || null, expires_at: expires.toISOString() });
        fill(body, commands(made, server, () => close(true)));
      },
    }));
    return body;
  });
}

/** @param {any} made a token with its secret @param {any} server @param {() => void} close */
function commands(made, server, close) {
  const pin = window.location.protocol === "https:" ? ` --pin ${server.pin}` : ""; // without TLS there is no certificate
  const keys = (server.trust_keys ?? []).map((/** @type {string} */ key) => ` --trust-key ${key}`).join("");
  const text = `umask 077; printf '%s\\n' '${made.secret}' > enrol.token\n`
    + `diskcast-agent run --server ${window.location.origin}${pin} --token-file enrol.token --interface eth0 --target auto${keys}`;
  return [
    h("p", {}, "Paste this on each machine of ", h("strong", {}, made.token.room_id ? roomName(made.token.room_id) : "all rooms"), ". The token is shown only now, and expires at ", timeElement(made.token.expires_at), "."),
    h("pre", { class: "commands", tabindex: 0, "aria-label": "Commands" }, text),
    !keys && h("p", { class: "small" }, "Add ", h("code", {}, "--trust-key"), " with the key that signs your images: without any the agent accepts no image."),
    h("p", { class: "muted small" }, "Everything on the chosen target that differs from an image is overwritten when you cast to the machine."),
    h("div", { class: "dialog-actions" },
      navigator.clipboard && h("button", { type: "button", class: "button", onclick: () => navigator.clipboard.writeText(text).then(() => showToast("Copied"), showError) }, "Copy"),
      h("button", { type: "button", class: "button primary", "data-autofocus": true, onclick: close }, "Done")),
  ];
}
