/** A value of a run, such as its output, as text or as JSON. */

import { html, useMemo, useState } from "./vendor/preact.js";
import { parse, stringify } from "./api.js";
import { LongText } from "./ui.js";

const isStructured = (value) => typeof value === "object" && value !== null && (Array.isArray(value) || Object.getPrototypeOf(value) === Object.prototype);

/** Returns the object or list of a value or of a JSON text; undefined for others. */
function structureOf(value) {
  if (typeof value !== "string") return isStructured(value) ? value : undefined;
  if (!/^\s*[[{]/.test(value)) return undefined;
  try {
    return parse(value);
  } catch {
    return undefined;
  }
}

/** Returns [name, text] of each text in an object or a list, without escapes; null if there are none. */
function textsOf(structure) {
  const entries = Object.entries(structure ?? {});
  if (!entries.some(([, value]) => typeof value === "string")) return null;
  return entries.map(([name, value]) => [name, typeof value === "string" ? value : (stringify(value, 2) ?? "")]);
}

/** Lists with more texts are shown as JSON only. */
const TEXTS_MAX = 20;

/** `value`: a JSON value, or a text that may be JSON. A structure can be read as texts without escapes. */
export function Value({ name, value, open, testid }) {
  const [mode, setMode] = useState("JSON");
  const structure = useMemo(() => structureOf(value), [value]);
  const json = useMemo(() => (structure === undefined ? null : stringify(structure, 2)), [structure]);
  const texts = useMemo(() => textsOf(structure), [structure]);
  if (json === null) return html`<${LongText} name=${name} text=${typeof value === "string" ? value : String(stringify(value, 2))} open=${open} testid=${testid} />`;
  const hasTexts = texts !== null && texts.length <= TEXTS_MAX;
  const isText = hasTexts && mode === "Text";
  return html`
    <div class="value">
      ${hasTexts && html`<div class="buttons value-modes" role="group" aria-label=${`Show ${name} as`}>${["JSON", "Text"].map((one) => html`<button key=${one} type="button" class="toggle" aria-pressed=${mode === one ? "true" : "false"} onClick=${() => setMode(one)}>${one}</button>`)}</div>`}
      ${isText ? texts.map(([key, text]) => html`<${LongText} key=${key} name=${`${name}: ${key}`} text=${text} open />`) : html`<${LongText} name=${name} text=${json} open=${open} testid=${testid} />`}
    </div>
  `;
}
