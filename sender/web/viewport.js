/** Draws visible rows and tiles at once and hidden ones gradually: changing 500 takes longer than a frame. */

const HIDDEN_DRAWN = 25;
const HIDDEN_EVERY_MS = 500; // so none of 500 machines shows state older than ten seconds

/**
 * A row or a tile. It draws urgent updates itself.
 * @typedef {object} Drawn
 * @property {Element} element
 * @property {boolean} visible
 * @property {boolean} stale true while it has an update that it doesn't show yet
 * @property {() => void} draw
 */

/** Tracks visible elements. */
export class Viewport {
  /** @param {AbortSignal} signal aborted when the page is left */
  constructor(signal) {
    /** @type {Map<Element, Drawn>} */
    this.pieces = new Map();
    this.from = 0;
    this.timer = 0;
    this.observer = new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries) {
        const piece = this.pieces.get(target);
        if (!piece) continue;
        piece.visible = isIntersecting;
        if (isIntersecting && piece.stale) piece.draw();
      }
    });
    signal.addEventListener("abort", () => {
      this.observer.disconnect();
      window.clearTimeout(this.timer);
    }, { once: true });
  }

  /** @param {Drawn} piece */
  add(piece) {
    this.pieces.set(piece.element, piece);
    this.observer.observe(piece.element);
  }

  /** @param {Drawn} piece */
  remove(piece) {
    this.pieces.delete(piece.element);
    this.observer.unobserve(piece.element);
  }

  /** Schedules drawing of hidden elements: a screen reader reads them without scrolling. */
  drawHidden() {
    if (!this.timer) this.timer = window.setTimeout(() => this.#drawSome(), HIDDEN_EVERY_MS);
  }

  /** Draws some, others each time. */
  #drawSome() {
    this.timer = 0;
    const waiting = [...this.pieces.values()].filter((piece) => piece.stale);
    if (this.from >= waiting.length) this.from = 0;
    for (const piece of waiting.slice(this.from, this.from + HIDDEN_DRAWN)) piece.draw();
    this.from += HIDDEN_DRAWN;
    if (waiting.length > HIDDEN_DRAWN) this.drawHidden();
  }
}
