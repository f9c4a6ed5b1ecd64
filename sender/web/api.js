/** A client of the daemon's REST API; its errors carry the text of the daemon. */

const BASE = "/api/v1";
const TIMEOUT_MS = 20_000; // longer than any response except CSV

/** A refusal of the daemon, with a text for people. */
export class ApiProblem extends Error {
  /**
   * @param {number} status
   * @param {string} title
   * @param {string} detail
   * @param {{field: string, message: string}[]} errors
   * @param {string} requestId
   */
  constructor(status, title, detail, errors, requestId) {
    super(detail || title);
    this.status = status;
    this.title = title;
    this.errors = errors;
    this.requestId = requestId;
  }
}

/** A failure to reach the daemon. */
export class Unreachable extends Error {}

/**
 * @param {string} method
 * @param {string} path under /api/v1
 * @param {{body?: any, text?: string, part?: Blob, query?: Record<string, any>, once?: boolean, signal?: AbortSignal}} [options]
 *   once: send an Idempotency-Key, so that a repeated click or a retry has no second effect
 * @returns {Promise<any>}
 */
export async function call(method, path, { body, text, part, query, once, signal } = {}) {
  /** @type {Record<string, string>} */
  const headers = { Accept: "application/json" };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (text !== undefined) headers["Content-Type"] = "text/csv";
  if (part !== undefined) headers["Content-Type"] = "application/octet-stream";
  if (once) headers["Idempotency-Key"] = randomKey();
  const attempt = () => fetch(BASE + path + queryText(query), {
    method,
    headers,
    body: body !== undefined ? JSON.stringify(body) : (text ?? part),
    credentials: "same-origin",
    signal: signal ? AbortSignal.any([signal, AbortSignal.timeout(TIMEOUT_MS)]) : AbortSignal.timeout(TIMEOUT_MS),
  });
  let response;
  try {
    response = await attempt();
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Unreachable("The daemon is not responding. Is it running, and is this device on its network?");
  }
  return answer(response);
}

/** @param {Response} response */
async function answer(response) {
  if (response.status === 204) return null;
  const type = response.headers.get("Content-Type") ?? "";
  const data = type.includes("json") ? await response.json().catch(() => null) : await response.text();
  if (response.ok) return data;
  const problem = typeof data === "object" && data !== null ? data : {};
  const requestId = problem.instance || response.headers.get("X-Request-Id") || "";
  throw new ApiProblem(
    response.status,
    problem.title || `The daemon responded with ${response.status}`,
    problem.detail || "",
    Array.isArray(problem.errors) ? problem.errors : [],
    requestId,
  );
}

/** @param {Record<string, any> | undefined} query */
export function queryText(query) {
  const entries = Object.entries(query ?? {}).filter(([, value]) => value !== undefined && value !== null && value !== "");
  const text = new URLSearchParams(entries.map(([name, value]) => [name, String(value)])).toString();
  return text ? `?${text}` : "";
}

/** Returns a random key. crypto.randomUUID is missing on plain HTTP from another machine; random bytes are available. */
function randomKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** @param {string} path @param {Record<string, any>} [query] @param {AbortSignal} [signal] */
export const get = (path, query, signal) => call("GET", path, { query, signal });
/** @param {string} path @param {any} [body] */
export const post = (path, body = {}) => call("POST", path, { body });
/** @param {string} path @param {any} body */
export const create = (path, body) => call("POST", path, { body, once: true });
/** @param {string} path @param {any} body */
export const change = (path, body) => call("PATCH", path, { body });
/** @param {string} path */
export const remove = (path) => call("DELETE", path);

/**
 * Sends a part of a file.
 * @param {string} path
 * @param {Blob} part
 * @param {AbortSignal} signal
 */
export const putPart = (path, part, signal) => call("PUT", path, { part, signal });

/**
 * Reads all pages of a list, up to `limit` items.
 * @param {string} path
 * @param {Record<string, any>} [query]
 * @param {AbortSignal} [signal]
 * @param {number} [limit]
 * @returns {Promise<any[]>}
 */
export async function all(path, query, signal, limit = 2000) {
  /** @type {any[]} */
  const items = [];
  let cursor = null;
  do {
    const page = await get(path, { ...query, limit: 500, cursor }, signal);
    items.push(...page.items);
    cursor = page.next_cursor;
  } while (cursor && items.length < limit);
  return items;
}
