/** Dialogs to change a room and to import machines. */

import { call, change, remove } from "./api.js";
import { confirmDialog, showDialog } from "./dialogs.js";
import { fill, h, icon } from "./dom.js";
import { field, form, select } from "./forms.js";
import { formatCount } from "./format.js";
import { showToast, showError } from "./toasts.js";
import { ENROLMENT_MODES, UNKNOWN_MACHINES } from "./labels.generated.js";
import { go } from "./router.js";

/** @param {Record<string, {text: string}>} rules @returns {[string, string][]} */
function ruleOptions(rules) {
  return [["", "As the daemon is configured"], ...Object.entries(rules).map(([mode, { text }]) => /** @type {[string, string]} */ ([mode, text]))];
}

/** @param {any} room @param {() => void} done */
export async function importMachines(room, done) {
  await importCsv({
    title: `Import machines into ${room.name || room.room_id}`,
    hint: "Columns: name, mac, serial, asset_tag, position. A machine needs a name and one of mac, serial and asset_tag.",
    placeholder: "name,mac,serial,asset_tag,position\npc01,52:54:00:12:34:01,,,row 1",
    path: `/rooms/${encodeURIComponent(room.room_id)}/import`,
    done: (result) => {
      showToast(`${formatCount(result.added, "machine")} added, ${result.changed} changed, ${result.unchanged} unchanged`);
      done();
    },
  });
}

/**
 * Imports a CSV file, chosen or pasted: all of its lines, or none if one has a problem.
 * @param {{title: string, hint: string, placeholder: string, path: string, done: (result: any) => void}} options
 */
export async function importCsv({ title, hint, placeholder, path, done }) {
  await showDialog(title, (close) => {
    const file = h("input", { type: "file", name: "file", accept: ".csv,text/csv,text/plain" });
    const text = h("textarea", { name: "csv", rows: 8, required: true, spellcheck: "false", placeholder });
    const fields = [
      field({ label: "CSV file", name: "file", input: file, hint }),
      field({ label: "or paste its content", name: "csv", input: text }),
    ];
    file.addEventListener("change", async () => {
      const [chosen] = file.files ?? [];
      if (chosen) text.value = await chosen.text();
    });
    const problems = h("div");
    return form({
      fields, content: [fields.map((each) => each.element), problems], submit: "Import",
      cancel: h("button", { type: "button", class: "button", onclick: () => close(false) }, "Cancel"),
      onsubmit: async () => {
        fill(problems);
        const result = await call("POST", path, { text: text.value });
        const wrong = result.problems ?? [];
        if (wrong.length) {
          fill(problems, h("div", { class: "alert", "data-tone": "bad", role: "alert" }, icon("warning"),
            h("div", {}, h("p", {}, "Nothing was imported:"), h("ul", {}, wrong.map((/** @type {any} */ each) => h("li", {}, `line ${each.line}: ${each.text}`))))));
          return;
        }
        close(true);
        done(result);
      },
    });
  });
}

/** @param {any} room @param {() => void} done */
export async function changeRoom(room, done) {
  const path = `/rooms/${encodeURIComponent(room.room_id)}`;
  const wanted = await showDialog(`Edit ${room.name || room.room_id}`, (close) => {
    const menu = field({ label: "Boot menu", name: "boot_menu", input: select({ name: "boot_menu", options: [["on", "Offered before a machine boots from its disk"], ["off", "Off"]], value: room.boot_menu ? "on" : "off" }), hint: "A technician at the console can choose an image for one machine." });
    const fields = [
      field({ label: "Name", name: "name", value: room.name, required: true, attributes: { "data-autofocus": true, maxlength: 64 } }),
      field({ label: "Description", name: "description", value: room.description, attributes: { maxlength: 1000 } }),
      field({ label: "Site", name: "site", value: room.site, hint: "Only daemons of this site cast to the room." }),
      field({ label: "Network interface", name: "interface", value: room.interface, hint: "Interface of the sender towards this room. Empty: chosen by the daemon." }),
      field({ label: "Enrolment", name: "enrolment", input: select({ name: "enrolment", options: ruleOptions(ENROLMENT_MODES), value: room.enrolment }), hint: "How machines enter this room." }),
      field({ label: "Unknown machines that boot", name: "unknown_machines", input: select({ name: "unknown_machines", options: ruleOptions(UNKNOWN_MACHINES), value: room.unknown_machines }), hint: "For machines that boot over the network." }),
      menu,
    ];
    const waves = [
      field({ label: "Machines woken at a time", name: "wake_wave_size", type: "number", value: room.wake_wave_size ?? "", hint: "Empty: as the daemon is configured.", attributes: { min: 1, max: 1024, inputmode: "numeric" } }),
      field({ label: "Pause between them (seconds)", name: "wake_pause_s", type: "number", value: room.wake_pause_s ?? "", hint: "Empty: as the daemon is configured.", attributes: { min: 0, max: 600, step: "any", inputmode: "decimal" } }),
    ];
    return form({
      fields: [...fields, ...waves], content: [...fields.map((each) => each.element), h("div", { class: "field-row" }, waves.map((each) => each.element))], submit: "Save",
      cancel: [h("button", { type: "button", class: "button danger-outline", onclick: () => close("remove") }, icon("trash"), "Remove room"),
        h("span", { class: "spacer" }),
        h("button", { type: "button", class: "button", onclick: () => close(undefined) }, "Cancel")],
      onsubmit: async () => {
        const values = Object.fromEntries(fields.map((each) => [each.name, each.input.value.trim()]));
        const numbers = Object.fromEntries(waves.map((each) => [each.name, each.input.value ? Number(each.input.value) : null]));
        await change(path, { ...values, ...numbers, boot_menu: menu.input.value === "on" });
        close("saved");
      },
    });
  });
  if (wanted === "saved") {
    showToast("Room saved");
    done();
  } else if (wanted === "remove" && await confirmDialog({ title: "Remove the room?", text: `${room.name || room.room_id} is removed. Its machines stay registered without a room; their history is kept.`, yes: "Remove the room", danger: true })) {
    try {
      await remove(path);
      showToast("Room removed");
      go("#/rooms");
    } catch (error) {
      showError(error);
    }
  }
}
