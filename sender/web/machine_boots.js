/** Boots of machines over the network: the last one, the next one, and a summary of the hardware. */

import { change } from "./api.js";
import { timeElement } from "./components.js";
import { h } from "./dom.js";
import { formatBytes } from "./format.js";
import { BOOT_ACTIONS } from "./labels.generated.js";
import { mayOperate } from "./store.js";
import { showError, showToast } from "./toasts.js";

const LIVE = "live";
/** @type {Record<string, string>} */
const FIRMWARE = { bios: "BIOS", uefi: "UEFI", "uefi-http": "UEFI HTTP Boot", secure: "UEFI with Secure Boot" };

/**
 * Creates the part of a machine's panel about its boots.
 * @param {any} machine its record
 * @param {() => void} changed called after a change of the next boot
 */
export function bootSection(machine, changed) {
  if (!machine.booted_at && !machine.next_boot && !mayOperate()) return null;
  const rows = [
    ["Last boot", machine.booted_at && timeElement(machine.booted_at)],
    ["Booted", machine.boot_action && `${BOOT_ACTIONS[machine.boot_action] ?? machine.boot_action}: ${machine.boot_text}`],
    ["Firmware", FIRMWARE[machine.boot_firmware] ?? machine.boot_firmware],
    ["Next boot", machine.next_boot === LIVE && "the live system, once"],
  ].filter(([, value]) => value);
  return h("section", { class: "enrolment", "aria-label": "Boots over the network" },
    h("h3", {}, "Boots over the network"),
    rows.length > 0 ? h("dl", { class: "pairs" }, rows.map(([label, value]) => h("div", {}, h("dt", {}, label), h("dd", {}, value))))
      : h("p", { class: "muted" }, "It hasn't booted over the network yet."),
    mayOperate() && h("div", { class: "enrolment-row" }, h("span", { class: "spacer" }), nextBootButton(machine, changed)));
}

/** @param {any} machine @param {() => void} changed */
function nextBootButton(machine, changed) {
  const wanted = machine.next_boot === LIVE ? "" : LIVE;
  return h("button", { type: "button", class: "button", onclick: async () => {
    try {
      await change(`/machines/${encodeURIComponent(machine.machine_id)}`, { next_boot: wanted });
      showToast(wanted ? `${machine.name} boots the live system next time` : `${machine.name} boots as planned`);
    } catch (error) {
      showError(error);
    }
    changed();
  } }, wanted ? "Boot the live system next time" : "Boot as planned");
}

/** @param {any} machine @returns {string} `Dell OptiPlex 7090 · 8 processors · 16 GiB`, as far as its agent reports it */
export function hardwareText(machine) {
  const { sys_vendor: vendor, product_name: product, processor, processors, memory, disks } = machine.inventory ?? {};
  return [
    [vendor, product].filter(Boolean).join(" "),
    processor,
    processors && `${processors} processors`,
    memory && (/^\d+$/.test(memory) ? formatBytes(Number(memory)) : memory),
    disks,
  ].filter(Boolean).join(" · ");
}
