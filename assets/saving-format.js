/** Texts for savings and evidence of suggestions. Estimates are never stated as facts. */

import { h } from "./dom.js";
import { count, duration, moment, plural, roughly, usd } from "./format.js";
import { stringify } from "./json.js";

/** Returns the estimated saving of a suggestion or of an alternative. */
export function expectedSaving({ savingPer30Days: saving, savingMs, calls }) {
  const money = saving && `${roughly(saving.expectedUsd)} USD in 30 days (${roughly(saving.lowUsd)} to ${roughly(saving.highUsd)})`;
  const time = (savingMs ?? null) === null ? null : `${duration(savingMs)} in each run`;
  const amounts = [money, time].filter(Boolean).join(" and ");
  return `${amounts ? `Likely saves ${amounts}, based` : "Based"} on ${plural(calls, "call")}`;
}

/** Returns the measured result of an applied suggestion; it may have cost more. */
export function measuredSaving(measured) {
  if (!measured?.calls && !measured?.costUsd) return "not measured yet";
  const { since, calls, wouldHaveCostUsd: before, costUsd: cost, savedUsd: saved, savedMs } = measured;
  const money = (saved ?? null) === null ? null : `${usd(Math.abs(saved))} ${saved < 0 ? "more spent" : "saved"} (cost ${usd(cost)} instead of ${usd(before)})`;
  const time = (savedMs ?? null) === null ? null : `${duration(Math.abs(savedMs))} ${savedMs < 0 ? "slower" : "faster"} in each run`;
  return [money, time, `${plural(calls, "call")} since ${moment(since)}`].filter(Boolean).join("; ");
}

/** Returns a suggestion's evidence as pairs of name and value, for any kind of suggestion. */
export function evidenceFacts(evidence) {
  return Object.entries(evidence ?? {})
    .filter(([, value]) => value !== null && value !== undefined)
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

const UNITS = { __proto__: null, Nanousd: (n) => usd(n / 1e9), Usd: usd, Ms: duration, S: (n) => `${count(n)} s` };

function valueOf(value, unit) {
  if (typeof value === "number") return (UNITS[unit] ?? count)(value);
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value === "object") return h("pre", { tabindex: "0" }, stringify(value, 2));
  return /^\d{4}-\d\d-\d\dT/.test(value) && !Number.isNaN(Date.parse(value)) ? moment(value) : value;
}

/** Turns `promptTokens` into “Prompt tokens”. */
function labelOf(name) {
  const text = name.replace(/[A-Z]/g, (letter) => ` ${letter.toLowerCase()}`);
  return text.charAt(0).toUpperCase() + text.slice(1);
}
