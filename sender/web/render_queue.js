/** A queue that updates the page once per frame, however many events arrive. */

/** @type {Map<object, () => void>} */
const jobs = new Map();
let frame = 0;

function run() {
  frame = 0;
  const due = [...jobs.values()];
  jobs.clear();
  for (const job of due) job();
}

/**
 * Runs `job` in the next frame; a later one with the same key replaces it.
 * A background tab gets no frames, so a timer runs the jobs there.
 * @param {object} key
 * @param {() => void} job
 */
export function inNextFrame(key, job) {
  jobs.set(key, job);
  if (frame) return;
  frame = document.hidden ? window.setTimeout(run, 200) : window.requestAnimationFrame(run);
}

/** Cancels the job with this key. @param {object} key */
export function cancelFrame(key) {
  jobs.delete(key);
}
