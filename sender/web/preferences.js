/** Small preferences kept in this browser; a browser that refuses storage just forgets them. */

/**
 * @param {string} name
 * @param {string} fallback
 * @returns {string}
 */
export function kept(name, fallback) {
  try {
    return window.localStorage.getItem(`diskcast.${name}`) ?? fallback;
  } catch {
    return fallback;
  }
}

/**
 * @param {string} name
 * @param {string} value
 */
export function keep(name, value) {
  try {
    window.localStorage.setItem(`diskcast.${name}`, value);
  } catch {
    // It isn't worth a message.
  }
}
