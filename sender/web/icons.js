/** The icons, inserted into the page once, so that all are available while the daemon is unavailable. */

const SPRITE = "/assets/icons.svg";

/** Inserts the symbols of the sprite as `icon-NAME`. Without them, pages still have all their text. */
export async function loadIcons() {
  try {
    const sprite = document.importNode((await fetchDocument(SPRITE)).documentElement, true);
    for (const symbol of sprite.querySelectorAll("symbol")) symbol.id = `icon-${symbol.id}`;
    sprite.setAttribute("hidden", "");
    sprite.setAttribute("aria-hidden", "true");
    document.body.prepend(sprite);
  } catch {
    // Every icon has text beside it.
  }
}

/**
 * @param {string} address
 * @returns {Promise<Document>} a file of the dashboard, parsed as XML
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
