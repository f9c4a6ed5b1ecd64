/** Application state: a handful of observable values. */

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
   * Subscribes, and calls the listener at once.
   * @param {(value: T) => void} listener
   * @param {AbortSignal} [signal]
   */
  follow(listener, signal) {
    this.subscribe(listener, signal);
    listener(this.value);
  }
}

/** The response of GET /server; null before it and while logged out. @type {Signal<any>} */
export const server = new Signal(null);

/** The latest overview event. @type {Signal<any>} */
export const overview = new Signal(null);

/** Names of rooms by id: "Lab 2" for `lab-2`. @type {Map<string, string>} */
export const roomNames = new Map();

/**
 * @param {string | null} roomId
 * @returns {string}
 */
export function roomName(roomId) {
  if (!roomId) return "any machine";
  return roomNames.get(roomId) || roomId;
}

/** Returns true if the user may make changes. */
export function mayOperate() {
  return server.value?.role === "operate";
}
