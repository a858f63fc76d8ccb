/** Periods of time in a time zone: "the last 7 days" as two instants. Pure. */

const DAY_MS = 24 * 60 * 60 * 1000;

/** The choices of the period picker. `custom` has `from` and `to`, both dates ("2026-12-01") and both included. */
export const PERIODS = [
  ["today", "Today"],
  ["7d", "Last 7 days"],
  ["30d", "Last 30 days"],
  ["month", "This month"],
  ["last-month", "Last month"],
  ["all", "All time"],
  ["custom", "Custom…"],
];

const formats = new Map();

/** Returns the date and time of an instant in a zone: { year, month, day, hour, minute, second }. */
export function partsIn(zone, instant) {
  let format = formats.get(zone);
  if (!format) {
    const numeric = { year: "numeric", month: "numeric", day: "numeric", hour: "numeric", minute: "numeric", second: "numeric" };
    format = new Intl.DateTimeFormat("en-US", { ...numeric, timeZone: zone, hourCycle: "h23", calendar: "gregory" });
    formats.set(zone, format);
  }
  const parts = format.formatToParts(instant).map(({ type, value }) => [type, Number(value)]);
  return Object.fromEntries(parts);
}

/** Returns the instant at which a day begins in a zone. `day` may lie outside the month, as in `Date.UTC`. */
export function startOfDay(zone, year, month, day) {
  const wanted = Date.UTC(year, month - 1, day);
  const offset = (instant) => {
    const at = partsIn(zone, instant);
    return Date.UTC(at.year, at.month - 1, at.day, at.hour, at.minute, at.second) - instant;
  };
  // The second step corrects the offset if a change of it lies between.
  const guess = wanted - offset(wanted);
  return new Date(wanted - offset(guess));
}

/** Returns the date of an instant in a zone, such as "2026-12-01". */
export function dateIn(zone, instant) {
  const { year, month, day } = partsIn(zone, instant);
  return `${year}-${String(month).padStart(2, "0")}-${String(day).padStart(2, "0")}`;
}

const startOfDate = (zone, date, plusDays = 0) => {
  const [year, month, day] = date.split("-").map(Number);
  return startOfDay(zone, year, month, day + plusDays);
};

export const isDate = (text) => /^\d{4}-\d{2}-\d{2}$/.test(text ?? "") && !Number.isNaN(Date.parse(text));

/** Returns { from, to } of a period as RFC 3339 texts; `to` is excluded. "all" has neither. */
export function range({ name, from, to }, zone, now = Date.now()) {
  const { year, month, day } = partsIn(zone, now);
  const tomorrow = startOfDay(zone, year, month, day + 1);
  const ranges = {
    __proto__: null,
    today: () => [startOfDay(zone, year, month, day), tomorrow],
    "7d": () => [startOfDay(zone, year, month, day - 6), tomorrow],
    "30d": () => [startOfDay(zone, year, month, day - 29), tomorrow],
    month: () => [startOfDay(zone, year, month, 1), tomorrow],
    "last-month": () => [startOfDay(zone, year, month - 1, 1), startOfDay(zone, year, month, 1)],
    custom: () => [startOfDate(zone, from), startOfDate(zone, to, 1)],
  };
  const found = ranges[name]?.();
  if (!found) return { from: null, to: null };
  const [first, last] = found.map((instant) => instant.toISOString());
  return { from: first, to: last };
}

/** Returns the number of days in a period, or null for all time. */
export function dayCount(period, zone) {
  const { from, to } = range(period, zone);
  return from && Math.round((Date.parse(to) - Date.parse(from)) / DAY_MS);
}

/** Returns the period of an address's parameters `period`, `from` and `to`, or null if they name none. */
export function periodOf(query) {
  const name = query.get("period");
  const [from, to] = [query.get("from"), query.get("to")];
  if (isDate(from) && isDate(to) && from <= to) return { name: "custom", from, to };
  return PERIODS.some(([known]) => known === name && name !== "custom") ? { name } : null;
}

/** Returns the parameters that name a period in an address. */
export const periodQuery = ({ name, from, to }) => (name === "custom" ? { period: null, from, to } : { period: name, from: null, to: null });

/** Returns the label of a period. */
export function periodLabel({ name, from, to }) {
  return name === "custom" ? `${from} to ${to}` : PERIODS.find(([known]) => known === name)?.[1];
}
