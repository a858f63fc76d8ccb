/** Savings and evidence of suggestions, in words. Estimates are never stated as facts. */

import { h } from "./dom.js";
import { count, duration, moment, plural, roughly, usd } from "./format.js";

/** Returns the estimated saving of a suggestion or of an alternative. */
export function promised({ savingPer30Days: saving, savingMs, calls }) {
  const money = saving && `likely ${roughly(saving.expectedUsd)} USD in 30 days (${roughly(saving.lowUsd)} to ${roughly(saving.highUsd)})`;
  const time = (savingMs ?? null) === null ? null : `likely ${duration(savingMs)} less in each run`;
  return [money, time, `from ${plural(calls, "call")}`].filter(Boolean).join(", ");
}

/** Returns the measured result of an applied suggestion; it may have cost more. */
export function realised(measured) {
  if (!measured?.calls && !measured?.costUsd) return "not measured yet";
  const { since, calls, wouldHaveCostUsd: before, costUsd: cost, savedUsd: saved, savedMs } = measured;
  const money = (saved ?? null) === null ? null : `${usd(Math.abs(saved))} ${saved < 0 ? "more spent" : "saved"}: cost ${usd(cost)}, would have cost ${usd(before)}`;
  const time = (savedMs ?? null) === null ? null : `${duration(Math.abs(savedMs))} ${savedMs < 0 ? "more" : "less"} in each run`;
  return [money, time, `in ${plural(calls, "call")} since ${moment(since)}`].filter(Boolean).join("; ");
}

/** Returns a suggestion's evidence as pairs of name and value, for any kind of suggestion. */
export function evidenceFacts(evidence) {
  return Object.entries(evidence ?? {})
    .filter(([, value]) => value !== null && value !== undefined)
    .map(([key, value]) => {
      const [, name, unit] = /^(.+?)(Nanousd|Usd|Ms|S)?$/.exec(key);
      return [words(name), valueOf(value, unit)];
    });
}

const UNITS = { __proto__: null, Nanousd: (n) => usd(n / 1e9), Usd: usd, Ms: duration, S: (n) => `${count(n)} s` };

function valueOf(value, unit) {
  if (typeof value === "number") return (UNITS[unit] ?? count)(value);
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value === "object") return h("pre", { tabindex: "0" }, JSON.stringify(value, null, 2));
  return /^\d{4}-\d\d-\d\dT/.test(value) && !Number.isNaN(Date.parse(value)) ? moment(value) : value;
}

/** Turns `toAnsweredCalls` into “To answered calls”. */
function words(name) {
  const text = name.replace(/[A-Z]/g, (letter) => ` ${letter.toLowerCase()}`);
  return text.charAt(0).toUpperCase() + text.slice(1);
}
