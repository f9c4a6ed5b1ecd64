/** The form of a new cast: image, machines, start. */

import { all, create, get } from "../api.js";
import { confirmDialog, showDialog } from "../dialogs.js";
import { fill, h, icon } from "../dom.js";
import { form } from "../forms.js";
import { formatCount, formatDateTime } from "../format.js";
import { emptyState, pageHead } from "../components.js";
import { readContents } from "../image_text.js";
import { planFields, readChoices } from "../plan_fields.js";
import { askPreflight, nobodyFits, preflightElement } from "../preflight.js";
import { go, to } from "../router.js";
import { GENERALISATIONS } from "../labels.generated.js";
import { roomName } from "../store.js";
import { sentence, startText } from "../labels.js";

/**
 * @param {import("../app.js").PageContext} context
 * @returns {Promise<import("../app.js").Page>}
 */
export async function show({ query, signal }) {
  const { images, rooms } = await readChoices(signal);
  const title = "New cast";
  if (!images.length) {
    return { title, element: h("div", {}, pageHead(title, { back: ["#/casts", "Casts"] }), emptyState("image", "No images yet.", h("p", {}, "Put a .dci file into the library's folder, or add one by URL."), h("a", { class: "button primary", href: "#/images" }, "Go to Images"))) };
  }
  const preset = query.get("again") ? await again(/** @type {string} */ (query.get("again")), signal) : { image: query.get("image") ?? undefined, room: query.get("room") ?? undefined };
  const plan = planFields({ images, rooms, preset, timed: true, signal });
  const element = h("div", { class: "narrow" },
    pageHead(title, { back: ["#/casts", "Casts"] }),
    h("div", { class: "card" }, form({
      fields: plan.fields,
      content: [plan.element, cloneWarning(plan.image.input, signal), h("div", { class: "alert", "data-tone": "warn" }, icon("warning"), h("p", {}, "The target disks of the machines are overwritten."))],
      submit: "Start the cast",
      cancel: h("a", { class: "button", href: "#/casts" }, "Cancel"),
      onsubmit: async () => {
        const wanted = plan.read();
        const image = images.find((each) => each.image_id === wanted.image);
        const count = plan.machineCount();
        const target = wanted.room_id ? `${count ? `${formatCount(count, "machine")} of ` : ""}${roomName(wanted.room_id)}` : "the chosen machines";
        const found = await askPreflight(wanted);
        if (nobodyFits(found)) {
          await showDialog("No machine fits this image", () => preflightElement(found));
          return;
        }
        const sure = await confirmDialog({
          title: "Start this cast?", yes: "Start the cast", no: "Not yet",
          consent: found.warned_count ? `Cast also to ${formatCount(found.warned_count, "machine")} with warnings` : "",
          text: [h("p", {}, h("strong", {}, image?.name ?? wanted.image), " goes to ", h("strong", {}, target), "."), h("p", {}, `${wanted.start_at ? `Machines gather from ${formatDateTime(wanted.start_at)}, and it starts` : "It starts"} ${startText(wanted)}.`), h("p", {}, "Their target disks are overwritten."), preflightElement(found)],
        });
        if (!sure) return;
        const cast = await create("/casts", wanted);
        go(to(["casts", cast.cast_id]));
      },
    })));
  return { title, element };
}

/**
 * Returns a warning that is shown while the chosen image has an operating system that wasn't generalised.
 * @param {HTMLInputElement | HTMLSelectElement} choice
 * @param {AbortSignal} signal
 */
function cloneWarning(choice, signal) {
  const element = h("div", { "aria-live": "polite" });
  const look = async () => {
    const wanted = choice.value;
    element.replaceChildren();
    if (!wanted) return;
    try {
      const { contents } = await readContents(`/images/${encodeURIComponent(wanted)}`, signal);
      if (contents?.generalisation !== "not_generalised" || choice.value !== wanted) return;
      fill(element, h("div", { class: "alert", "data-tone": "warn" }, icon("warning"), h("p", {}, sentence(`the image is ${GENERALISATIONS.not_generalised}`))));
    } catch {
      // Its contents are unknown: nothing to warn of.
    }
  };
  choice.addEventListener("change", look);
  look();
  return element;
}

/**
 * Returns the plan of a cast again, for its incomplete machines.
 * @param {string} castId
 * @param {AbortSignal} signal
 */
async function again(castId, signal) {
  const path = `/casts/${encodeURIComponent(castId)}`;
  const [{ cast }, machines] = await Promise.all([get(path, {}, signal), all(`${path}/machines`, {}, signal)]);
  const incomplete = machines.filter((machine) => machine.state !== "complete" && machine.machine_id).map((machine) => machine.machine_id);
  const allIncomplete = incomplete.length === machines.length;
  return { image: cast.plan.image_id, room: cast.plan.room_id ?? undefined, machines: allIncomplete ? cast.plan.machine_ids : incomplete, plan: { ...cast.plan, wait_for: null } };
}
