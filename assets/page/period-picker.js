/** Periods of time in a time zone, such as "the last 7 days" as two instants, and the picker of the period of a view. */

import { html, useEffect, useState } from "./vendor/preact.js";
import { changeSettings, setQuery, settings, SYSTEM_ZONE, useStore } from "./state.js";
import { useId } from "./ui.js";

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
function partsIn(zone, instant) {
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

const isDate = (text) => /^\d{4}-\d{2}-\d{2}$/.test(text ?? "") && !Number.isNaN(Date.parse(text));

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

/** Returns the period of an address's parameters `period`, `from` and `to`, or null if they name none. */
function periodOf(query) {
  const name = query.get("period");
  const [from, to] = [query.get("from"), query.get("to")];
  if (isDate(from) && isDate(to) && from <= to) return { name: "custom", from, to };
  return PERIODS.some(([known]) => known === name && name !== "custom") ? { name } : null;
}

/** Returns the parameters that name a period in an address. */
const periodQuery = ({ name, from, to }) => (name === "custom" ? { period: null, from, to } : { period: name, from: null, to: null });

/** Returns the label of a period. */
function periodLabel({ name, from, to }) {
  return name === "custom" ? `${from} to ${to}` : PERIODS.find(([known]) => known === name)?.[1];
}

/* The period of a view. */

/** Returns false for a remembered period that is not one, for example from another version of the page. */
const isPeriod = (period) => (period?.name === "custom" ? isDate(period.from) && isDate(period.to) && period.from <= period.to : PERIODS.some(([name]) => name === period?.name));

/**
 * Returns the period of a view: `period` ({ name, from, to }), its `label`, `zone`, the instants `from`
 * and `to` (excluded; both null for all time), and `query`: the parameters for links to the same period in other
 * views. The parameters of the address (`period`, or the dates `from` and `to`) take precedence over the remembered
 * period.
 */
export function usePeriod(query) {
  const { period: remembered, zone } = useStore(settings);
  const period = periodOf(query) ?? (isPeriod(remembered) ? remembered : { name: "7d" });
  return { period, label: periodLabel(period), zone, ...range(period, zone), query: periodQuery(period) };
}

/** Remembers a period and writes it to the address; `clear` are further parameters to change, such as a cursor. */
function choose(period, clear) {
  changeSettings({ period });
  setQuery({ ...periodQuery(period), ...clear });
}

/** Returns the dates of a period, both included, as the first values of a custom one. */
function datesOf(period, zone) {
  if (period.name === "custom") return { from: period.from, to: period.to };
  const { from, to } = range(period, zone);
  const today = dateIn(zone, Date.now());
  if (!from) return { from: today, to: today };
  const last = dateIn(zone, Date.parse(to) - DAY_MS / 2);
  return { from: dateIn(zone, Date.parse(from)), to: last > today ? today : last };
}

/** `query`: the query of the view. `clear`: parameters to change in the address along with the period. */
export function PeriodPicker({ query, clear = {} }) {
  const { period, zone } = usePeriod(query);
  const id = useId("period");
  const onChoice = ({ target }) => {
    const { value } = target;
    choose(value === "custom" ? { name: "custom", ...datesOf(period, zone) } : { name: value }, clear);
  };
  return html`
    <div class="period" data-testid="period">
      <label class="hidden-text" for=${id}>Period</label>
      <select id=${id} data-testid="period-select" value=${period.name} onChange=${onChoice}>
        ${PERIODS.map(([name, label]) => html`<option key=${name} value=${name} selected=${name === period.name}>${label}</option>`)}
      </select>
      ${period.name === "custom" && html`<${CustomDates} period=${period} clear=${clear} />`}
      <${ZoneButton} zone=${zone} />
    </div>
  `;
}

/** Two dates, both included. They take effect when both are valid. */
function CustomDates({ period, clear }) {
  const id = useId("dates");
  const [dates, setDates] = useState({ from: period.from, to: period.to });
  useEffect(() => setDates({ from: period.from, to: period.to }), [period.from, period.to]);
  const isComplete = isDate(dates.from) && isDate(dates.to);
  const isReversed = isComplete && dates.from > dates.to;
  const onInput = (end) => ({ target }) => setDates((before) => ({ ...before, [end]: target.value }));
  // After the field, not at each change: while a year is typed, the date is valid and has a year such as 0002.
  const apply = () => {
    const isChanged = dates.from !== period.from || dates.to !== period.to;
    if (isComplete && !isReversed && isChanged && dates.from >= "1970") choose({ name: "custom", ...dates }, clear);
  };
  const field = (end, label) => html`
    <label class="hidden-text" for=${id + end}>${label}</label>
    <input type="date" id=${id + end} data-testid=${`period-${end}`} value=${dates[end]} aria-invalid=${isReversed ? "true" : null} aria-describedby=${isReversed ? `${id}-fault` : null} onInput=${onInput(end)} onBlur=${apply} onKeyDown=${(event) => event.key === "Enter" && apply()} />
  `;
  return html`
    <span class="period-dates">
      ${field("from", "First day")}<span aria-hidden="true">–</span>${field("to", "Last day")}
      ${isReversed && html`<span class="fault" id=${`${id}-fault`} role="alert">The last day is before the first day.</span>`}
    </span>
  `;
}

/** The time zone; a press opens the list of zones. */
export function ZoneButton({ zone, kind = "quiet" }) {
  const [Zones, setZones] = useState(null);
  const open = async () => {
    const { ZoneDialog } = await import("./zone-dialog.js");
    setZones(() => ZoneDialog);
  };
  const name = zone.replaceAll("_", " ");
  return html`
    <button type="button" class=${kind} data-testid="zone-button" title="Change the time zone of all views" onClick=${open}><span class="hidden-text">Time zone: </span>${name}</button>
    ${Zones && html`<${Zones} zone=${zone} system=${SYSTEM_ZONE} onChoice=${(chosen) => changeSettings({ zone: chosen })} onClose=${() => setZones(null)} />`}
  `;
}
