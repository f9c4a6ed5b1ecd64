/** What the whole page knows: a handful of values that tell their listeners when they change. */

/**
 * A value with listeners.
 * @template T
 */
export class Signal {
  /** @param {T} value */
  constructor(value) {
    this.value = value;
    /** @type {Set<(value: T) => void>} */
    this.listeners = new Set();
  }

  /** @param {T} value */
  set(value) {
    if (value === this.value) return;
    this.value = value;
    for (const listener of [...this.listeners]) listener(value);
  }

  /**
   * @param {(value: T) => void} listener
   * @param {AbortSignal} [signal] ends the subscription
   */
  subscribe(listener, signal) {
    if (signal?.aborted) return;
    this.listeners.add(listener);
    signal?.addEventListener("abort", () => this.listeners.delete(listener), { once: true });
  }

  /**
   * As `subscribe`, and once at once.
   * @param {(value: T) => void} listener
   * @param {AbortSignal} [signal]
   */
  follow(listener, signal) {
    this.subscribe(listener, signal);
    listener(this.value);
  }
}

/** GET /server; null before it answered or while nobody is logged in. @type {Signal<any>} */
export const server = new Signal(null);

/** The last overview event. @type {Signal<any>} */
export const overview = new Signal(null);

/** Rooms' names by id, so that a page can say "Lab 2" for `lab-2`. @type {Map<string, string>} */
export const roomNames = new Map();

/**
 * @param {string | null} roomId
 * @returns {string}
 */
export function roomName(roomId) {
  if (!roomId) return "whoever joins";
  return roomNames.get(roomId) || roomId;
}

/** Whether the person may change things. */
export function mayOperate() {
  return server.value?.role === "operate";
}
