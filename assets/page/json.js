/** JSON that keeps integers beyond 2^53, which JavaScript's numbers would round. */

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
