/** The period of a view: a select, two dates for a custom period, and the time zone, which holds for all views. */

import { html, useEffect, useState } from "./vendor/preact.js";
import { dateIn, isDate, periodLabel, periodOf, periodQuery, PERIODS, range } from "./period.js";
import { changeSettings, setQuery, settings, SYSTEM_ZONE, useStore } from "./state.js";
import { useId } from "./ui.js";

const DAY_MS = 24 * 60 * 60 * 1000;

/** Returns false for a remembered period that is not one, for example from another version of the page. */
const isPeriod = (period) => (period?.name === "custom" ? isDate(period.from) && isDate(period.to) && period.from <= period.to : PERIODS.some(([name]) => name === period?.name));

/**
 * Returns the period of a view: `period` ({ name, from, to }, see period.js), its `label`, `zone`, the instants `from`
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
export function ZoneButton({ zone }) {
  const [Zones, setZones] = useState(null);
  const open = async () => {
    const { ZoneDialog } = await import("./zone-dialog.js");
    setZones(() => ZoneDialog);
  };
  const name = zone.replaceAll("_", " ");
  return html`
    <button type="button" class="quiet zone" data-testid="zone-button" title="Change the time zone of all views" onClick=${open}><span class="hidden-text">Time zone: </span>${name}</button>
    ${Zones && html`<${Zones} zone=${zone} system=${SYSTEM_ZONE} onChoice=${(chosen) => changeSettings({ zone: chosen })} onClose=${() => setZones(null)} />`}
  `;
}
