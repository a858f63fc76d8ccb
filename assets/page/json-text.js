/** Places in a JSON text: of the first syntax error, and of each value by its path. Pure. */

const DEPTH_MAX = 200;
const NUMBER = /-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?/y;
const WORD = /true|false|null/y;
const SPACE = /[ \t\n\r]*/y;
const STRING_PART = /[^"\\\u0000-\u001f]*/y;

class Fault extends Error {
  constructor(message, offset) {
    super(message);
    this.offset = offset;
  }
}

/**
 * Returns `{ places, fault }`: `places` maps paths such as "data.nodes[2].data.prompt" to the offsets where their keys
 * or values begin; `fault` is null or `{ message, offset }`.
 */
export function scan(text) {
  const reader = { text, at: 0, places: new Map([["", 0]]) };
  try {
    readValue(reader, "", 0);
    skipSpace(reader);
    if (reader.at < text.length) throw new Fault("expected the end of the text", reader.at);
  } catch (error) {
    if (!(error instanceof Fault)) throw error;
    return { places: reader.places, fault: { message: error.message, offset: error.offset } };
  }
  return { places: reader.places, fault: null };
}

function match(reader, pattern) {
  pattern.lastIndex = reader.at;
  const found = pattern.exec(reader.text);
  if (found) reader.at = pattern.lastIndex;
  return found?.[0] ?? null;
}

const skipSpace = (reader) => match(reader, SPACE);

function readValue(reader, path, depth) {
  if (depth > DEPTH_MAX) throw new Fault("too deeply nested", reader.at);
  skipSpace(reader);
  if (!reader.places.has(path)) reader.places.set(path, reader.at);
  const first = reader.text[reader.at];
  if (first === "{") readObject(reader, path, depth);
  else if (first === "[") readArray(reader, path, depth);
  else if (first === '"') readString(reader);
  else if (match(reader, WORD) === null && match(reader, NUMBER) === null) throw new Fault(first === undefined ? "the text ends too early" : `expected a value instead of ${shown(first)}`, reader.at);
}

function readObject(reader, path, depth) {
  reader.at += 1;
  skipSpace(reader);
  if (take(reader, "}")) return;
  for (;;) {
    skipSpace(reader);
    const keyAt = reader.at;
    if (reader.text[reader.at] !== '"') throw new Fault(endOr(reader, "expected a key in double quotes"), reader.at);
    const key = readString(reader);
    const inner = path ? `${path}.${key}` : key;
    reader.places.set(inner, keyAt);
    skipSpace(reader);
    if (!take(reader, ":")) throw new Fault(endOr(reader, "expected “:” after the key"), reader.at);
    readValue(reader, inner, depth + 1);
    skipSpace(reader);
    if (take(reader, "}")) return;
    if (!take(reader, ",")) throw new Fault(endOr(reader, "expected “,” or “}”"), reader.at);
  }
}

function readArray(reader, path, depth) {
  reader.at += 1;
  skipSpace(reader);
  if (take(reader, "]")) return;
  for (let index = 0; ; index += 1) {
    readValue(reader, `${path}[${index}]`, depth + 1);
    skipSpace(reader);
    if (take(reader, "]")) return;
    if (!take(reader, ",")) throw new Fault(endOr(reader, "expected “,” or “]”"), reader.at);
  }
}

function readString(reader) {
  const begin = reader.at;
  reader.at += 1;
  for (;;) {
    match(reader, STRING_PART);
    const next = reader.text[reader.at];
    if (next === '"') break;
    if (next !== "\\") throw new Fault(next === undefined || next === "\n" || next === "\r" ? "the text in quotes does not end on its line; write line breaks as \\n" : "control characters must be escaped", reader.at);
    const escape = /\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})/y;
    if (match(reader, escape) === null) throw new Fault("unknown escape after the backslash", reader.at);
  }
  reader.at += 1;
  return JSON.parse(reader.text.slice(begin, reader.at));
}

function take(reader, character) {
  if (reader.text[reader.at] !== character) return false;
  reader.at += 1;
  return true;
}

const shown = (character) => `“${character}”`;
const endOr = (reader, message) => (reader.at >= reader.text.length ? "the text ends too early" : message);

/** Returns `{ line, column }`, from 1, of an offset. */
export function placeOf(text, offset) {
  const before = text.slice(0, offset);
  return { line: before.split("\n").length, column: offset - before.lastIndexOf("\n") };
}

/** Returns the offset of a path, or of its nearest part that exists. */
export function offsetOf(places, path) {
  for (let part = String(path); ; part = part.replace(/(?:\.[^.[]*|\[\d+\]|^[^.[]+)$/, "")) {
    if (places.has(part)) return places.get(part);
    if (!part || !/(?:\.[^.[]*|\[\d+\]|^[^.[]+)$/.test(part)) return 0;
  }
}
