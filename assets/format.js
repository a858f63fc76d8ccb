/** Numbers, times and errors as readable text. */

const integers = new Intl.NumberFormat("en-US");
const dollars = new Intl.NumberFormat("en-US", {
  style: "currency",
  currency: "USD",
  minimumFractionDigits: 0,
  maximumFractionDigits: 9, // The ledger counts in nano-dollars, so no digit is lost.
});
const usdExact = new Intl.NumberFormat("en-US", { minimumFractionDigits: 2, maximumFractionDigits: 9 });
const usdRound = new Intl.NumberFormat("en-US", { minimumFractionDigits: 2, maximumFractionDigits: 2 });
const usdSmall = new Intl.NumberFormat("en-US", { maximumSignificantDigits: 2 });
const moments = new Intl.DateTimeFormat("en-US", {
  month: "short",
  day: "numeric",
  hour: "2-digit",
  minute: "2-digit",
  second: "2-digit",
  hourCycle: "h23",
});

export const count = (n) => integers.format(n);
/** Numbers, or strings if only those are exact. */
export const money = (usd) => dollars.format(usd);
/** The format of the optimizer's texts. */
export const usd = (amount) => `${usdExact.format(amount)} USD`;
/** An estimate is not accurate to nine digits. Without its unit, for intervals. */
export const roughly = (amount) => (amount !== 0 && Math.abs(amount) < 0.01 ? usdSmall : usdRound).format(amount);
export const moment = (rfc3339) => moments.format(new Date(rfc3339)).replace(", ", " ");
export const plural = (n, word) => `${count(n)} ${word}${n === 1 ? "" : "s"}`;

export function duration(ms) {
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(2)} s`;
  const seconds = Math.round(ms / 1000);
  return `${Math.floor(seconds / 60)} min ${String(seconds % 60).padStart(2, "0")} s`;
}

/** The calls of a summary that its cost excludes: one text for each reason. */
export function excludedCalls({ unpriced_calls: unpriced, unknown_cost_calls: failed }) {
  return [
    unpriced && `${plural(unpriced, "call")} with unknown price`,
    failed && `${plural(failed, "failed call")} with unknown cost`,
  ].filter(Boolean);
}

/** Returns true if no cost of a summary is known: its sum is unknown, not 0. */
export function isCostUnknown({ calls, unpriced_calls: unpriced = 0, unknown_cost_calls: failed = 0 }) {
  return unpriced + failed > 0 && unpriced + failed >= calls;
}

/** An unknown cost is shown as unknown, never as 0. */
export const moneyOrUnknown = (usd) => (usd === null || usd === undefined ? "unknown cost" : money(usd));

/** Returns a row's cost, or its saving. */
export function costText({ cached, saved_usd: saved, total_cost_usd: cost, billing }) {
  if (!cached) return `${moneyOrUnknown(cost)}${billing ? `, covered by a ${billing}` : ""}`;
  return Number(saved) ? `cached, saved ${money(saved)}` : "cached";
}

/** Returns the API's message with all its details. */
export function describe(error) {
  const details = Array.isArray(error.details) ? error.details.map((detail) => detail?.message ?? String(detail)) : [];
  return [error.message, ...details].join("; ");
}
