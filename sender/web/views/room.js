/** A room: its machines as a grid, and the panel of a selected machine. */

import { get } from "../api.js";
import { CastCard } from "../cast_card.js";
import { fill, h, icon, setAttribute, setText } from "../dom.js";
import { formatCount } from "../format.js";
import { inNextFrame } from "../render_queue.js";
import { getPreference, setPreference } from "../preferences.js";
import { machineKey, MachineGrid } from "../machine_grid.js";
import { MachinePanel, readMachine } from "../machine_panel.js";
import { announce, showError } from "../toasts.js";
import { emptyState, pageHead } from "../components.js";
import { addMachines } from "../machine_enrolment.js";
import { changeRoom, importMachines } from "../room_dialogs.js";
import { editTemplate } from "../room_template.js";
import { go, to } from "../router.js";
import { mayOperate, overview, roomNames } from "../store.js";
import { wakeButton } from "../waking.js";
import { hasEnded, MACHINE_STATES } from "../labels.js";
import { newCastLink } from "./overview.js";

/**
 * @param {import("../app.js").PageContext} context
 * @returns {Promise<import("../app.js").Page>}
 */
export async function show({ params, query, signal, live, reload }) {
  const roomId = params.room;
  const { room, machines } = await get(`/rooms/${encodeURIComponent(roomId)}/live`, {}, signal);
  roomNames.set(room.room_id, room.name);
  const title = room.name || room.room_id;

  const grid = new MachineGrid(`Machines of ${title}`, (machine) =>
    machine.machine_id ? to(["rooms", roomId, "machines", machine.machine_id]) : to(["casts", machine.cast_id ?? ""]), signal);
  const empty = h("div");
  const summary = h("p", { class: "muted grid-summary" });
  const tools = toolbar(grid, query.get("state"));
  const panel = h("aside", { class: "panel card", hidden: true, "aria-label": "Machine" });
  const casts = h("div", { class: "cast-cards" });
  followCasts(casts, roomId, signal);

  /** @type {{key: string, panel: MachinePanel} | null} */
  let open = null;
  let turn = 0;

  const closePanel = (/** @type {boolean} */ focusTile) => {
    const key = open?.key;
    open = null;
    turn += 1;
    panel.hidden = true;
    fill(panel);
    layout.classList.remove("with-panel");
    grid.select(null);
    if (focusTile && key) grid.focus(key);
  };

  const openMachine = async (/** @type {string | undefined} */ machineId, /** @type {boolean} */ again = false) => {
    if (!machineId) {
      if (open) closePanel(true);
      return;
    }
    const mine = ++turn;
    try {
      const [machine, history] = await readMachine(machineId, signal);
      if (mine !== turn) return;
      const shown = new MachinePanel(machine, history, { level: "h2", close: () => go(to(["rooms", roomId])), changed: () => openMachine(machineId, true) });
      shown.update(grid.tiles.get(machineId)?.machine ?? null);
      open = { key: machineId, panel: shown };
      fill(panel, shown.element);
      panel.hidden = false;
      layout.classList.add("with-panel");
      grid.select(machineId);
      if (!again) shown.heading.focus();
    } catch (error) {
      showError(error);
    }
  };
  panel.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    if (event.key === "Escape") go(to(["rooms", roomId]));
  });

  grid.onchange = () => {
    tools.refresh();
    const total = grid.tiles.size;
    tools.element.hidden = summary.hidden = total === 0;
    const shown = grid.shownCount;
    const counts = grid.counts();
    const offlineCount = ["offline", "waking", "booting"].reduce((sum, state) => sum + (counts.get(state) ?? 0), 0);
    setText(summary, shown === total ? `${formatCount(total, "machine")}, ${total - offlineCount} online` : `${shown} of ${formatCount(total, "machine")} shown`);
    if (!total) {
      if (!empty.firstChild) fill(empty, emptyState("room", "No machines in this room yet.", h("p", {}, mayOperate() ? "Import a list, or assign a machine that has checked in." : "An operator can import a list.")));
    } else if (empty.firstChild) fill(empty);
    if (open) {
      const { key, panel: shown } = open;
      const machine = grid.tiles.get(key)?.machine;
      if (machine) inNextFrame(panel, () => shown.update(machine));
    }
  };
  tools.onfilter = grid.onchange;

  live.on("room", (data) => {
    if (data.room_id !== roomId) return;
    announceFailures(grid, data.machines);
    grid.update(data.machines, data.full);
  }, signal);

  const layout = h("div", { class: "room-layout" }, h("div", { class: "room-main" }, casts, tools.element, summary, grid.element, empty), panel);
  const element = h("div", {},
    pageHead(title, {
      back: ["#/rooms", "Rooms"],
      lead: room.description,
      actions: [
        mayOperate() && h("button", { type: "button", class: "button", onclick: () => addMachines(room.room_id) }, icon("plus"), "Add machines"),
        mayOperate() && h("button", { type: "button", class: "button", onclick: () => importMachines(room, reload) }, icon("upload"), "Import machines"),
        mayOperate() && h("button", { type: "button", class: "button", onclick: () => changeRoom(room, reload) }, icon("edit"), "Edit room"),
        mayOperate() && h("button", { type: "button", class: "button", onclick: () => editTemplate(room) }, icon("room"), "Machine settings"),
        mayOperate() && wakeButton("Wake machines", `Wake the machines of ${title}?`, { room_id: room.room_id }),
        newCastLink({ room: roomId }),
      ],
    }), layout);
  grid.update(machines, true);
  grid.apply();
  if (params.machine) queueMicrotask(() => openMachine(params.machine));
  return {
    title,
    element,
    topics: [`room:${roomId}`],
    update: (next) => {
      if (next.room !== roomId) return false;
      openMachine(next.machine);
      return true;
    },
  };
}

/** Announces machines that have just failed. @param {MachineGrid} grid @param {any[]} machines */
function announceFailures(grid, machines) {
  for (const machine of machines) {
    const before = grid.tiles.get(machineKey(machine))?.machine.state;
    if (before && before !== machine.state && ["failed", "lost", "dropped"].includes(machine.state)) {
      announce(`${machine.name}: ${MACHINE_STATES[machine.state].label}`);
    }
  }
}

/** @param {HTMLElement} holder @param {string} roomId @param {AbortSignal} signal */
function followCasts(holder, roomId, signal) {
  /** @type {Map<string, CastCard>} */
  const cards = new Map();
  overview.follow((value) => inNextFrame(holder, () => {
    const running = (value?.casts ?? []).filter((/** @type {any} */ each) => each.cast.plan.room_id === roomId && !hasEnded(each.cast.phase));
    for (const [id, card] of cards) {
      if (running.some((/** @type {any} */ each) => each.cast.cast_id === id)) continue;
      card.element.remove();
      cards.delete(id);
    }
    for (const each of running) {
      let card = cards.get(each.cast.cast_id);
      if (!card) {
        card = new CastCard(each);
        cards.set(each.cast.cast_id, card);
        holder.append(card.element);
      }
      card.update(each);
    }
  }), signal);
}

/** Creates the toolbar: search, order, tile size, and a button per present state. @param {MachineGrid} grid @param {string | null} firstState */
function toolbar(grid, firstState) {
  /** @type {Set<string>} */
  const chosen = new Set(firstState ? firstState.split(",") : []);
  /** @type {Map<string, {button: HTMLElement, count: HTMLElement}>} */
  const chips = new Map();
  const search = h("input", { type: "search", class: "search", placeholder: "Search name, position, address", "aria-label": "Search machines" });
  const sort = h("select", { "aria-label": "Sort machines by" }, ["position", "name", "state"].map((key) => h("option", { value: key }, `Sort by ${key}`)));
  sort.value = getPreference("room.sort", "position");
  const dense = h("button", { type: "button", class: "button", "aria-pressed": "false" }, "Small tiles");
  const holder = h("div", { class: "chips", role: "group", "aria-label": "Show only" });
  const tools = { element: h("div", { class: "room-tools" }, h("div", { class: "toolbar" }, search, sort, dense), holder), onfilter: () => {}, refresh };

  const filter = () => {
    grid.setFilter(chosen, search.value);
    tools.onfilter();
  };
  const setDense = (/** @type {boolean} */ on) => {
    dense.setAttribute("aria-pressed", String(on));
    grid.element.classList.toggle("dense", on);
  };
  search.addEventListener("input", filter);
  sort.addEventListener("change", () => {
    setPreference("room.sort", sort.value);
    grid.setSort(sort.value);
  });
  dense.addEventListener("click", () => {
    const on = dense.getAttribute("aria-pressed") !== "true";
    setPreference("room.dense", on ? "yes" : "no");
    setDense(on);
  });
  setDense(getPreference("room.dense", "no") === "yes");
  grid.setSort(sort.value);
  if (chosen.size) grid.setFilter(chosen, "");

  function refresh() {
    const counts = grid.counts();
    for (const [state, stateLabel] of Object.entries(MACHINE_STATES)) {
      const number = counts.get(state) ?? 0;
      let chip = chips.get(state);
      if (!chip && (number || chosen.has(state))) {
        const count = h("span", { class: "chip-count" });
        const button = h("button", { type: "button", class: "chip", "data-tone": stateLabel.tone, "aria-pressed": String(chosen.has(state)) }, icon(stateLabel.icon), stateLabel.label, count);
        button.addEventListener("click", () => {
          if (!chosen.delete(state)) chosen.add(state);
          button.setAttribute("aria-pressed", String(chosen.has(state)));
          filter();
        });
        chip = { button, count };
        chips.set(state, chip);
        const order = Object.keys(MACHINE_STATES);
        const after = [...chips.keys()].filter((key) => order.indexOf(key) > order.indexOf(state)).sort((a, b) => order.indexOf(a) - order.indexOf(b))[0];
        holder.insertBefore(button, after ? /** @type {any} */ (chips.get(after)).button : null);
      }
      if (!chip) continue;
      setText(chip.count, String(number));
      const hidden = number === 0 && !chosen.has(state);
      if (chip.button.hidden !== hidden) chip.button.hidden = hidden;
      setAttribute(chip.button, "data-empty", number ? null : "true");
    }
  }
  return tools;
}
