/** Texts for savings and evidence of suggestions. Estimates are never stated as facts. */

import { html } from "../vendor/preact.js";
import { count, duration, plural } from "../format.js";
import { stringify } from "../api.js";
import { Money, Time } from "../ui.js";

/** Amounts in texts of the server, such as "0.0136705 USD". */
const AMOUNTS = /(-?\d[\d,]*(?:\.\d+)?) USD/g;

/** Returns a text of the server with its amounts in dollars, as on the rest of the page. */
export const withMoney = (text) => text.split(AMOUNTS).map((part, at) => (at % 2 ? html`<${Money} key=${at} usd=${part.replaceAll(",", "")} />` : part));

const isKnown = (value) => value !== null && value !== undefined;

/** The estimated saving of a suggestion or of an alternative. */
export function ExpectedSaving({ of: { savingPer30Days: saving, savingMs, calls } }) {
  const basis = `${saving || isKnown(savingMs) ? ", based" : "Based"} on ${plural(calls, "call")}`;
  return html`
    ${(saving || isKnown(savingMs)) && "Likely saves "}
    ${saving && html`<strong><${Money} usd=${saving.expectedUsd} /></strong> in 30 days (<${Money} usd=${saving.lowUsd} /> to <${Money} usd=${saving.highUsd} />)`}
    ${saving && isKnown(savingMs) && " and "}
    ${isKnown(savingMs) && html`<strong>${duration(savingMs)}</strong> in each run`}
    ${basis}
  `;
}

/** The measured result of an applied suggestion; it may have cost more. */
export function MeasuredSaving({ of: measured }) {
  if (!measured?.calls && !measured?.costUsd) return "not measured yet";
  const { since, calls, wouldHaveCostUsd: before, costUsd: cost, savedUsd: saved, savedMs } = measured;
  return html`
    ${isKnown(saved) && html`<strong><${Money} usd=${Math.abs(saved)} /></strong> ${saved < 0 ? "more spent" : "saved"} (cost <${Money} usd=${cost} /> instead of <${Money} usd=${before} />); `}
    ${isKnown(savedMs) && html`${duration(Math.abs(savedMs))} ${savedMs < 0 ? "slower" : "faster"} in each run; `}
    ${plural(calls, "call")} since <${Time} at=${since} />
  `;
}

/** Returns a suggestion's evidence as pairs of name and value, for any kind of suggestion. */
export function evidenceFacts(evidence) {
  return Object.entries(evidence ?? {})
    .filter(([, value]) => isKnown(value))
    .map(([key, value]) => {
      const [, name, unit] = /^(.+?)(Nanousd|Usd|Ms|S)?$/.exec(key);
      return [LABELS[name] ?? labelOf(name), valueOf(value, unit)];
    });
}

/** Labels of evidence whose key alone is unclear. */
const LABELS = {
  __proto__: null,
  answeredCalls: "Calls with a response",
  longestAnswerTokens: "Tokens of the longest response",
  maxAge: "Cache lifetime",
  pricedAt: "Prices as of",
  toAnsweredCalls: "Responses from the new model",
  toCost: "Cost with the new model",
  toMaxTokens: "New max tokens",
  toModel: "New model",
  toPrice: "Price of the new model",
  toProvider: "New provider",
  unpricedCalls: "Calls with unknown price",
};

const UNITS = {
  __proto__: null,
  Nanousd: (amount) => html`<${Money} usd=${amount / 1e9} />`,
  Usd: (amount) => html`<${Money} usd=${amount} />`,
  Ms: duration,
  S: (seconds) => `${count(seconds)} s`,
};

function valueOf(value, unit) {
  if (typeof value === "number") return (UNITS[unit] ?? count)(value);
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value === "object") return html`<details><summary>Show</summary><pre tabindex="0">${stringify(value, 2)}</pre></details>`;
  return /^\d{4}-\d\d-\d\dT/.test(value) && !Number.isNaN(Date.parse(value)) ? html`<${Time} at=${value} />` : html`<bdi>${value}</bdi>`;
}

/** Turns `promptTokens` into “Prompt tokens”. */
function labelOf(name) {
  const text = name.replace(/[A-Z]/g, (letter) => ` ${letter.toLowerCase()}`);
  return text.charAt(0).toUpperCase() + text.slice(1);
}
