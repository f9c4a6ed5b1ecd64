/** Preferences stored in this browser; without storage the defaults apply. */

/**
 * @param {string} name
 * @param {string} fallback
 * @returns {string}
 */
export function getPreference(name, fallback) {
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
export function setPreference(name, value) {
  try {
    window.localStorage.setItem(`diskcast.${name}`, value);
  } catch {
    // A lost preference isn't worth a message.
  }
}
