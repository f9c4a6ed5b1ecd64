/** What is in sight is drawn at once, the rest by and by: changing 500 rows or tiles takes longer than a frame. */

const UNSEEN_DRAWN = 25;
const UNSEEN_EVERY_MS = 500; // so that none of 500 machines shows what is older than ten seconds

/**
 * A row or a tile. It draws itself when what it was told can't wait.
 * @typedef {object} Drawn
 * @property {Element} element
 * @property {boolean} inSight
 * @property {boolean} stale it was told something that it doesn't show yet
 * @property {() => void} draw
 */

/** Knows which of many pieces are in sight. */
export class Sight {
  /** @param {AbortSignal} signal the page is left */
  constructor(signal) {
    /** @type {Map<Element, Drawn>} */
    this.pieces = new Map();
    this.from = 0;
    this.timer = 0;
    this.observer = new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries) {
        const piece = this.pieces.get(target);
        if (!piece) continue;
        piece.inSight = isIntersecting;
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

  /** Sees to it that what is out of sight is drawn: a screen reader reads it without bringing it into sight. */
  drawUnseen() {
    if (!this.timer) this.timer = window.setTimeout(() => this.#drawSome(), UNSEEN_EVERY_MS);
  }

  /** A few, others each time. */
  #drawSome() {
    this.timer = 0;
    const waiting = [...this.pieces.values()].filter((piece) => piece.stale);
    if (this.from >= waiting.length) this.from = 0;
    for (const piece of waiting.slice(this.from, this.from + UNSEEN_DRAWN)) piece.draw();
    this.from += UNSEEN_DRAWN;
    if (waiting.length > UNSEEN_DRAWN) this.drawUnseen();
  }
}
