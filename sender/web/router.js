/** The router: pages by the hash of the address, `#/rooms/lab-2?sort=state`. */

/**
 * @typedef {object} Route
 * @property {string} pattern `/rooms/:room`
 * @property {string} [section] the navigation entry that it belongs to
 * @property {string} [family] routes of one page: it isn't rebuilt between them
 * @property {() => Promise<any>} load its view's module
 */

/** @typedef {{route: Route, params: Record<string, string>, query: URLSearchParams, path: string}} Place */

/**
 * @param {Route[]} routes
 * @param {string} hash
 * @returns {Place | null}
 */
export function match(routes, hash) {
  const [path, query = ""] = (hash.replace(/^#/, "") || "/").split("?", 2);
  const parts = path.split("/").filter(Boolean);
  for (const route of routes) {
    const wanted = route.pattern.split("/").filter(Boolean);
    if (wanted.length !== parts.length) continue;
    /** @type {Record<string, string>} */
    const params = {};
    const fits = wanted.every((piece, index) => {
      if (!piece.startsWith(":")) return piece === parts[index];
      params[piece.slice(1)] = decode(parts[index]);
      return true;
    });
    if (fits) return { route, params, query: new URLSearchParams(query), path };
  }
  return null;
}

/** @param {string} text */
function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // a lone percent sign was typed
  }
}

/**
 * Returns the address of a link.
 * @param {string[]} parts
 * @param {Record<string, any>} [query]
 */
export function to(parts, query) {
  const entries = Object.entries(query ?? {}).filter(([, value]) => value !== undefined && value !== null && value !== "");
  const text = new URLSearchParams(entries.map(([name, value]) => [name, String(value)])).toString();
  return `#/${parts.map(encodeURIComponent).join("/")}${text ? `?${text}` : ""}`;
}

/** @param {string} address from `to` */
export function go(address) {
  window.location.hash = address;
}
