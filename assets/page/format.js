/** Numbers, amounts, times and errors as readable text. */

const integers = new Intl.NumberFormat("en-US");
const compact = new Intl.NumberFormat("en-US", { notation: "compact", maximumSignificantDigits: 3 });
const percents = new Intl.NumberFormat("en-US", { style: "percent", maximumSignificantDigits: 3 });
const exact = new Intl.NumberFormat("en-US", {
  style: "currency",
  currency: "USD",
  minimumFractionDigits: 2,
  maximumFractionDigits: 9, // The ledger counts in nano-dollars, so no digit is lost.
});
const small = new Intl.NumberFormat("en-US", { style: "currency", currency: "USD", minimumSignificantDigits: 2, maximumSignificantDigits: 3 });
const cents = new Intl.NumberFormat("en-US", { style: "currency", currency: "USD" });
const whole = new Intl.NumberFormat("en-US", { style: "currency", currency: "USD", maximumFractionDigits: 0 });

export const count = (n) => integers.format(n);
/** "12.3K" */
export const short = (n) => compact.format(n);
export const percent = (part, whole) => (whole ? percents.format(part / whole) : "–");
export const plural = (n, word) => `${count(n)} ${word}${n === 1 ? "" : "s"}`;

/** "12.3 MB" */
export function bytes(n) {
  const units = ["byte", "kilobyte", "megabyte", "gigabyte", "terabyte"];
  const at = Math.min(units.length - 1, Math.floor(Math.log10(Math.max(1, n)) / 3));
  return new Intl.NumberFormat("en-US", { style: "unit", unit: units[at], maximumSignificantDigits: 3 }).format(n / 1000 ** at);
}

/** An amount in dollars with 2 to 4 significant digits; numbers, or strings if only those are exact. */
export function money(usd) {
  const amount = Math.abs(Number(usd));
  if (amount >= 100) return whole.format(usd);
  if (amount >= 1 || amount === 0) return cents.format(usd);
  return small.format(usd);
}

/** An amount with all its digits. */
export const exactMoney = (usd) => exact.format(usd);
/** An unknown cost is shown as unknown, never as 0. */
export const moneyOrUnknown = (usd) => (usd === null || usd === undefined ? "unknown cost" : money(usd));

export function duration(ms) {
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(ms < 10_000 ? 2 : 1)} s`;
  const seconds = Math.round(ms / 1000);
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${String(seconds % 60).padStart(2, "0")} s`;
  const minutes = Math.round(seconds / 60);
  return `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
}

const timeFormats = new Map();

function timeFormat(zone, style) {
  const key = `${zone} ${style}`;
  if (!timeFormats.has(key)) {
    const styles = {
      moment: { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", second: "2-digit" },
      full: { weekday: "short", year: "numeric", month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", second: "2-digit", fractionalSecondDigits: 3, timeZoneName: "short" },
      day: { year: "numeric", month: "short", day: "numeric" },
    };
    timeFormats.set(key, new Intl.DateTimeFormat("en-US", { ...styles[style], timeZone: zone, hourCycle: "h23" }));
  }
  return timeFormats.get(key);
}

/** "Dec 1 14:03:07" in a zone. */
export const moment = (rfc3339, zone) => timeFormat(zone, "moment").format(new Date(rfc3339)).replace(", ", " ");
/** With the year, milliseconds and the zone's name. */
export const fullMoment = (rfc3339, zone) => timeFormat(zone, "full").format(new Date(rfc3339));
/** "Dec 1, 2026" */
export const dayText = (rfc3339, zone) => timeFormat(zone, "day").format(new Date(rfc3339));

/** "3 min ago", "in 2 h". */
export function relative(rfc3339, now = Date.now()) {
  const ms = Date.parse(rfc3339) - now;
  const seconds = Math.round(Math.abs(ms) / 1000);
  const [amount, unit] = seconds < 60 ? [seconds, "s"] : seconds < 3600 ? [Math.round(seconds / 60), "min"] : seconds < 86_400 ? [Math.round(seconds / 3600), "h"] : [Math.round(seconds / 86_400), "d"];
  if (amount < 5 && unit === "s") return "just now";
  return ms > 0 ? `in ${amount} ${unit}` : `${amount} ${unit} ago`;
}

/** The calls of a summary that its cost excludes: one text for each reason. */
export function excludedCalls({ unpriced_calls: unpriced, unknown_cost_calls: failed }) {
  return [unpriced && `${plural(unpriced, "call")} with unknown price`, failed && `${plural(failed, "failed call")} with unknown cost`].filter(Boolean);
}

/** Returns true if no cost of a summary is known: its sum is unknown, not 0. */
export function isCostUnknown({ calls, unpriced_calls: unpriced = 0, unknown_cost_calls: failed = 0 }) {
  return unpriced + failed > 0 && unpriced + failed >= calls;
}

/** Returns the API's message with all its details. */
export function describe(error) {
  const details = Array.isArray(error.details) ? error.details.map((detail) => detail?.message ?? String(detail)) : [];
  return [error.message, ...details].join("; ");
}

/** What starts runs, by the names of the API. */
export const TRIGGERS = { __proto__: null, api: "API or page", cli: "Command line", hook: "Webhook", schedule: "Schedule" };
