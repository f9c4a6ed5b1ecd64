/** The icons, taken into the page once: one that is first needed while the daemon is away must not be missing. */

const SPRITE = "/assets/icons.svg";

/** Puts the sprite's symbols into the page, as `icon-NAME`. A page without them still has all its words. */
export async function loadIcons() {
  try {
    const sprite = document.importNode((await fetchDocument(SPRITE)).documentElement, true);
    for (const symbol of sprite.querySelectorAll("symbol")) symbol.id = `icon-${symbol.id}`;
    sprite.setAttribute("hidden", "");
    sprite.setAttribute("aria-hidden", "true");
    document.body.prepend(sprite);
  } catch {
    // Words are beside every icon.
  }
}

/**
 * @param {string} address
 * @returns {Promise<Document>} a file of our own; the browser reads it as XML
 */
function fetchDocument(address) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.responseType = "document";
    request.addEventListener("load", () => {
      if (request.status === 200 && request.responseXML) resolve(request.responseXML);
      else reject(new Error(address));
    });
    request.addEventListener("error", () => reject(new Error(address)));
    request.open("GET", address);
    request.send();
  });
}
