/** The live stream: one EventSource for the topics of the current page, with its connection state. */

import { Signal } from "./store.js";

const QUIET_MS = 20_000; // after this silence, the daemon is probed
const PROBE_MS = 5_000; // a running daemon responds within milliseconds
const RETRY_MS = 2_000; // the same as the retry field that the daemon sends

/** @typedef {{state: "connecting" | "live" | "lost", dataAt: Date | null}} Connection */

/** Subscriptions to the daemon's events. */
export class LiveStream {
  /** @param {() => void} onUnauthorised called when the session has ended */
  constructor(onUnauthorised) {
    this.onUnauthorised = onUnauthorised;
    /** @type {Signal<Connection>} */
    this.connection = new Signal(/** @type {Connection} */ ({ state: "connecting", dataAt: null }));
    /** @type {Map<string, Set<(data: any) => void>>} */
    this.listeners = new Map();
    /** @type {EventSource | null} */
    this.source = null;
    this.topics = "";
    this.retry = 0;
    this.aliveAt = 0;
    window.addEventListener("offline", () => this.#lost());
    window.addEventListener("online", () => this.#reopen());
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden && this.source) this.#probe();
    });
    window.setInterval(() => {
      if (this.source && performance.now() - this.aliveAt > QUIET_MS) this.#probe();
    }, PROBE_MS);
  }

  /** @param {string[]} topics in addition to the overview, which every page needs */
  open(topics) {
    const wanted = ["overview", ...topics].join(",");
    if (wanted === this.topics && this.source) return;
    this.topics = wanted;
    this.#reopen();
  }

  /** Closes the stream after a logout. */
  close() {
    this.topics = "";
    window.clearTimeout(this.retry);
    this.source?.close();
    this.source = null;
    this.connection.set({ state: "connecting", dataAt: null });
  }

  /**
   * @param {string} event
   * @param {(data: any) => void} listener
   * @param {AbortSignal} [signal]
   */
  on(event, listener, signal) {
    const known = this.listeners.get(event) ?? new Set();
    this.listeners.set(event, known);
    known.add(listener);
    signal?.addEventListener("abort", () => known.delete(listener), { once: true });
  }

  #reopen() {
    if (!this.topics) return;
    window.clearTimeout(this.retry);
    this.source?.close();
    const source = new EventSource(`/api/v1/events?topics=${encodeURIComponent(this.topics)}`);
    this.source = source;
    this.aliveAt = performance.now();
    source.onopen = () => this.#markAlive();
    source.onerror = () => this.#failed(source);
    for (const name of ["overview", "room", "cast"]) {
      source.addEventListener(name, (event) => {
        if (source !== this.source) return;
        this.#markAlive();
        const data = JSON.parse(/** @type {MessageEvent} */ (event).data);
        for (const listener of [...(this.listeners.get(name) ?? [])]) listener(data);
      });
    }
  }

  #markAlive() {
    this.aliveAt = performance.now();
    this.connection.set({ state: "live", dataAt: new Date() });
  }

  /** @param {EventSource} source */
  #failed(source) {
    if (source !== this.source) return;
    this.#lost();
    // EventSource reconnects automatically unless the response was an error, whose status it doesn't reveal.
    if (source.readyState === EventSource.CLOSED) {
      this.retry = window.setTimeout(() => this.#reopen(), RETRY_MS);
      this.#checkSession();
    }
  }

  #lost() {
    if (this.connection.value.state !== "lost") {
      this.connection.set({ state: "lost", dataAt: this.connection.value.dataAt });
    }
  }

  async #checkSession() {
    try {
      const response = await fetch("/api/v1/server", { credentials: "same-origin", signal: AbortSignal.timeout(PROBE_MS) });
      if (response.status === 401) this.onUnauthorised();
      // The daemon responds and refuses the topics, for example of a deleted room. The overview is always available.
      else if (response.ok) this.topics = "overview";
    } catch {
      // The daemon doesn't respond; the next attempt follows.
    }
  }

  /** Probes the daemon: a connection that a sleeping phone or a pulled cable left half open looks alive. */
  async #probe() {
    try {
      await fetch("/healthz", { cache: "no-store", signal: AbortSignal.timeout(PROBE_MS) });
      this.aliveAt = performance.now();
      if (this.connection.value.state === "lost") this.#reopen();
    } catch {
      this.#lost();
      this.#reopen();
    }
  }
}
