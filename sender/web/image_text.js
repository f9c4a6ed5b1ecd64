/** Texts about images. */

import { get } from "./api.js";
import { IMAGE_ORIGINS } from "./labels.generated.js";

/** @param {{name: string, number: number}} image @returns {string} for example `lab@3` */
export function referenceOf({ name, number }) {
  return number ? `${name}@${number}` : name;
}

/** The file of an image, for a link. @param {string} imageId @param {string} [format] dci, raw or raw.zst */
export const fileAddress = (imageId, format = "dci") => `/api/v1/images/${encodeURIComponent(imageId)}/file?format=${format}`;

/** @param {{kind: string, source: string, detail: string}} origin @returns {string} */
export function originText({ kind, source, detail }) {
  const text = `${IMAGE_ORIGINS[kind] ?? kind} ${source}`.trim();
  return detail ? `${text} (${detail})` : text;
}

const READING_MS = 1_500; // contents are read in the background

/**
 * Reads the contents of an image, as soon as the daemon knows them.
 * @param {string} path of the image
 * @param {AbortSignal} signal
 * @returns {Promise<any>}
 */
export async function readContents(path, signal) {
  for (;;) {
    const found = await get(`${path}/contents`, {}, signal);
    if (found.state !== "reading") return found;
    await new Promise((resolve) => window.setTimeout(resolve, READING_MS));
  }
}
