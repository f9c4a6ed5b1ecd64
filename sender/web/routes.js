/** The table of addresses and pages. The last one is shown for unknown addresses. */

/** @type {import("./router.js").Route[]} */
export const ROUTES = [
  { pattern: "/", section: "overview", load: () => import("./views/overview.js") },
  { pattern: "/rooms", section: "rooms", load: () => import("./views/rooms.js") },
  { pattern: "/rooms/:room", section: "rooms", family: "room", load: () => import("./views/room.js") },
  { pattern: "/rooms/:room/machines/:machine", section: "rooms", family: "room", load: () => import("./views/room.js") },
  { pattern: "/machines", section: "rooms", load: () => import("./views/machines.js") },
  { pattern: "/machines/:machine", section: "rooms", load: () => import("./views/machine.js") },
  { pattern: "/casts", section: "casts", load: () => import("./views/casts.js") },
  { pattern: "/new-cast", section: "casts", load: () => import("./views/new_cast.js") },
  { pattern: "/casts/:cast", section: "casts", load: () => import("./views/cast.js") },
  { pattern: "/images", section: "images", load: () => import("./views/images.js") },
  { pattern: "/images/:image", section: "images", load: () => import("./views/image.js") },
  { pattern: "/schedules", section: "schedules", load: () => import("./views/schedules.js") },
  { pattern: "/history", section: "history", load: () => import("./views/history.js") },
  { pattern: "/audit", section: "audit", load: () => import("./views/audit.js") },
  { pattern: "/tokens", section: "tokens", load: () => import("./views/tokens.js") },
  { pattern: "/not-found", load: () => import("./views/not_found.js") },
];
