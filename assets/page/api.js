/** Requests to the HTTP API, and its JSON. No DOM here: the page passes in the function that asks for the token. */

const TOKEN_KEY = "flowledger.token";
let token = readToken();
/** Called if the server rejects the current token; resolves to a new one. */
let askForToken = () => Promise.reject(new ApiError(401, "unauthorized", "a token is required"));
let tokenPrompt = null;

/** An error response of the API. */
class ApiError extends Error {
  constructor(status, code, message, details) {
    super(message);
    Object.assign(this, { status, code, details });
  }
}

export const currentToken = () => token;

export function onTokenNeeded(handler) {
  askForToken = handler;
}

const parsed = async (response) => parse(await (await response).text());

export const get = (path) => parsed(request("GET", path));
export const post = (path, body) => parsed(request("POST", path, body));
export const put = (path, body) => parsed(request("PUT", path, body));
export const patch = (path, body) => parsed(request("PATCH", path, body));
export const remove = async (path) => void (await request("DELETE", path));
/** Returns the response as a file's content. */
export const getBlob = async (path) => (await request("GET", path)).blob();

/** Returns the resource, or null if the server has none. */
export function getIfAny(path) {
  return get(path).catch((error) => {
    if (error.status === 404) return null;
    throw error;
  });
}

async function request(method, path, body) {
  const tokenSent = token;
  const headers = {};
  if (token) headers.Authorization = `Bearer ${token}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method, headers, body: body && stringify(body), cache: "no-store" });
  } catch {
    throw new ApiError(0, "unreachable", "cannot reach the server");
  }
  if (response.ok) return response;
  if (response.status === 401) {
    // All requests that meet a 401 share one prompt, then try again.
    if (token === tokenSent) await (tokenPrompt ??= renewToken(Boolean(tokenSent)));
    return request(method, path, body);
  }
  throw await errorOf(response);
}

async function errorOf(response) {
  const body = await response.json().catch(() => ({}));
  const { code = "http", message = `the server returned status ${response.status}`, details } = body.error ?? {};
  return new ApiError(response.status, code, message, details);
}

async function renewToken(wasRejected) {
  try {
    token = await askForToken(wasRejected);
    localStorage.setItem(TOKEN_KEY, token);
  } catch (error) {
    if (error instanceof ApiError) throw error; // Storage may be forbidden; then the token lasts as long as the page.
  } finally {
    tokenPrompt = null;
  }
}

/** Forgets the token of this browser. */
export function forgetToken() {
  token = null;
  try {
    localStorage.removeItem(TOKEN_KEY);
  } catch {
    // Storage may be forbidden; then there is nothing to remove.
  }
}

function readToken() {
  try {
    return localStorage.getItem(TOKEN_KEY);
  } catch {
    return null;
  }
}

/* JSON that keeps integers beyond 2^53, which JavaScript's numbers would round. */

/** Strings, so that digits in them are skipped, and numbers. */
const TOKENS = /"(?:[^"\\]|\\.)*"|-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?/g;
/** Marks the text of such an integer; a private character that other texts do not contain. */
const MARK = "\ue000integer:";
const MARKED = new RegExp(`^${MARK}(-?\\d+)$`);
const QUOTED = new RegExp(`"${MARK}(-?\\d+)"`, "g");

/** An integer that is not a safe integer of JavaScript. Converts to its digits. */
class ExactInteger {
  constructor(digits) {
    this.digits = digits;
  }

  toString() {
    return this.digits;
  }

  toJSON() {
    return MARK + this.digits;
  }
}

const isRounded = (token) => /^-?\d+$/.test(token) && !Number.isSafeInteger(Number(token));

/** Parses JSON like `JSON.parse`, but returns integers that would be rounded as objects with their digits. */
export function parse(text) {
  if (!/\d{16}/.test(text)) return JSON.parse(text);
  const marked = text.replace(TOKENS, (token) => (isRounded(token) ? `"${MARK}${token}"` : token));
  return JSON.parse(marked, (_, value) => {
    const match = typeof value === "string" && MARKED.exec(value);
    return match ? new ExactInteger(match[1]) : value;
  });
}

/** Returns the JSON of a value from `parse`. */
export const stringify = (value, space) => JSON.stringify(value, null, space)?.replace(QUOTED, "$1");
