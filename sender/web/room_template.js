/** The dialog for a room's template of machine patches, with a preview of one machine's settings. */

import { all, ApiProblem, call, get, post, remove } from "./api.js";
import { showDialog } from "./dialogs.js";
import { fill, h, icon } from "./dom.js";
import { field, form, select } from "./forms.js";
import { formatCount } from "./format.js";
import { importCsv } from "./room_dialogs.js";
import { showError, showToast } from "./toasts.js";

const EXAMPLE = 'hostname = "{{ name }}"\ntimezone = "Europe/Vienna"\n\n[[users]]\nname = "teacher"\ngroups = ["sudo"]\nssh_keys = ["ssh-ed25519 AAAA… teacher"]';

/** @param {any} room */
export async function editTemplate(room) {
  const path = `/rooms/${encodeURIComponent(room.room_id)}`;
  let saved = "";
  try {
    saved = (await get(`${path}/template`)).text;
  } catch (error) {
    if (!(error instanceof ApiProblem && error.status === 404)) return showError(error);
  }
  const machines = await all("/machines", { room_id: room.room_id }).catch(() => []);
  const wanted = await showDialog(`Machine settings of ${room.name || room.room_id}`, (close) => {
    const template = field({
      label: "Template", name: "text", required: true,
      input: h("textarea", { name: "text", rows: 12, required: true, spellcheck: "false", placeholder: EXAMPLE, value: saved }),
      hint: "TOML. Casts write these settings with the image, for each machine. Variables are in braces, such as {{ name }}.",
    });
    const machine = select({ name: "machine", options: machines.map((each) => /** @type {[string, string]} */ ([each.machine_id, each.name])) });
    machine.setAttribute("aria-label", "Machine to preview");
    const shown = h("div", { class: "seed-preview", role: "status" });
    const preview = async () => {
      try {
        fill(shown, seedPreview(await post(`${path}/template/preview`, { machine_id: machine.value, text: template.input.value })));
      } catch (error) {
        fill(shown, problem(error instanceof Error ? error.message : String(error)));
      }
    };
    template.input.addEventListener("input", () => fill(shown));
    machine.addEventListener("change", () => fill(shown));
    return form({
      fields: [template],
      content: [
        template.element,
        machines.length > 0 && h("div", { class: "toolbar" }, machine,
          h("button", { type: "button", class: "button", onclick: preview }, icon("search"), "Preview"),
          h("span", { class: "spacer" }),
          h("button", { type: "button", class: "button", onclick: () => importVariables(room) }, icon("upload"), "Import variables")),
        shown,
      ],
      submit: "Save",
      cancel: [saved && h("button", { type: "button", class: "button danger-outline", onclick: () => close("remove") }, icon("trash"), "Remove template"),
        h("span", { class: "spacer" }),
        h("button", { type: "button", class: "button", onclick: () => close(undefined) }, "Cancel")],
      onsubmit: async () => {
        await call("PUT", `${path}/template`, { body: { text: template.input.value } });
        close("saved");
      },
    });
  });
  if (wanted === "saved") showToast("Machine settings saved");
  if (wanted !== "remove") return;
  try {
    await remove(`${path}/template`);
    showToast("Template removed: machines get images as they are");
  } catch (error) {
    showError(error);
  }
}

/** @param {any} room */
async function importVariables(room) {
  await importCsv({
    title: `Import variables for ${room.name || room.room_id}`,
    hint: "Column name finds the machine, or mac, serial or asset_tag; each other column is a variable. An empty cell removes a variable.",
    placeholder: "name,ip\npc01,10.1.2.11",
    path: `/rooms/${encodeURIComponent(room.room_id)}/variables/import`,
    done: (result) => showToast(`Variables of ${formatCount(result.changed, "machine")} changed, of ${result.unchanged} unchanged`),
  });
}

/** @param {any} found a SeedPreview */
function seedPreview(found) {
  if (found.problem) return problem(found.problem);
  return [
    h("p", {}, h("strong", {}, found.machine_name), " gets the host name ", h("strong", {}, found.hostname), `. Its patch is for ${found.patch_machine_id}.`),
    Object.entries(found.files).map(([name, text]) => [h("h3", {}, name), h("pre", { class: "commands" }, text)]),
  ];
}

/** @param {string} text */
function problem(text) {
  return h("div", { class: "alert", "data-tone": "bad", role: "alert" }, icon("warning"), h("p", {}, text));
}
