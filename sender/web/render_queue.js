/** Work that touches the page is done once a frame, however many events asked for it. */

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
 * A tab in the background gets no frames: a timer sees to it that what comes in doesn't wait for ever there.
 * @param {object} key
 * @param {() => void} job
 */
export function inNextFrame(key, job) {
  jobs.set(key, job);
  if (frame) return;
  frame = document.hidden ? window.setTimeout(run, 200) : window.requestAnimationFrame(run);
}

/** @param {object} key forgets its job */
export function forgetFrame(key) {
  jobs.delete(key);
}
