/** Cost or calls by day as stacked bars, one color for each model: legend, amounts on hover, and a table of the same numbers. */

import uPlot from "../vendor/uplot.js";
import { html, useEffect, useLayoutEffect, useMemo, useRef, useState } from "../vendor/preact.js";
import { count, exactMoney, money, plural } from "../format.js";
import { settings, useStore } from "../state.js";

/** Further models are merged into one color. */
const MODELS_MAX = 6;
const DAY_MS = 24 * 60 * 60 * 1000;
const HEIGHT = 240;
const LABEL_WIDTH = 64;

const OTHER = "";

/** `value` of a model's entry of a day, and its text. A cost that is not known counts as 0; the view names such calls. */
const MEASURES = {
  cost: { label: "Cost", value: ({ cost }) => Number(cost ?? 0), text: money, exact: exactMoney },
  calls: { label: "Calls", value: ({ calls }) => calls, text: count, exact: count },
  failed: { label: "Failed calls", value: ({ failed }) => failed, text: count, exact: count },
};

const dates = new Map();
function dateText(day, style) {
  const styles = { day: { month: "short", day: "numeric" }, month: { month: "short", year: "numeric" }, full: { weekday: "short", year: "numeric", month: "short", day: "numeric" } };
  if (!dates.has(style)) dates.set(style, new Intl.DateTimeFormat("en-US", { ...styles[style], timeZone: "UTC" }));
  return dates.get(style).format(Date.parse(day));
}

const plusDays = (day, days) => new Date(Date.parse(day) + days * DAY_MS).toISOString().slice(0, 10);
const mondayOf = (day) => plusDays(day, -((new Date(day).getUTCDay() + 6) % 7));

/** Merges days into bars: { key, from, to, sums: Map of model to value }. */
function barsOf(days, unit, measure) {
  const keyOf = { day: (day) => day, week: mondayOf, month: (day) => day.slice(0, 7) }[unit];
  const bars = [];
  for (const { day, models } of days) {
    const key = keyOf(day);
    if (bars.at(-1)?.key !== key) bars.push({ key, from: day, to: day, sums: new Map() });
    const bar = bars.at(-1);
    bar.to = day;
    for (const entry of models) bar.sums.set(entry.model, (bar.sums.get(entry.model) ?? 0) + MEASURES[measure].value(entry));
  }
  const label = { day: ({ from }) => dateText(from, "day"), week: ({ from }) => dateText(from, "day"), month: ({ from }) => dateText(from, "month") }[unit];
  const name = { day: ({ from }) => dateText(from, "full"), week: ({ from, to }) => `${dateText(from, "day")} – ${dateText(to, "day")}`, month: label }[unit];
  return bars.map((bar) => ({ ...bar, label: label(bar), name: name(bar) }));
}

/** Returns the models with the largest sums, each as { model, total, slot }, and "other" last. Known models keep their slot: the number of their color. */
function seriesOf(bars, slots) {
  const totals = new Map();
  for (const { sums } of bars) for (const [model, value] of sums) totals.set(model, (totals.get(model) ?? 0) + value);
  const ranked = [...totals].sort((a, b) => b[1] - a[1]);
  const top = ranked.slice(0, MODELS_MAX);
  const rest = ranked.slice(MODELS_MAX);
  const isTop = new Set(top.map(([model]) => model));
  for (const model of slots.keys()) if (!isTop.has(model)) slots.delete(model);
  for (const [model] of top) {
    if (slots.has(model)) continue;
    const taken = new Set(slots.values());
    slots.set(model, [1, 2, 3, 4, 5, 6].find((slot) => !taken.has(slot)));
  }
  const series = top.map(([model, total]) => ({ model, name: model ?? "unknown model", total, slot: slots.get(model) }));
  if (rest.length) series.push({ model: OTHER, name: plural(rest.length, "other model"), total: rest.reduce((sum, [, value]) => sum + value, 0), slot: 7, merged: new Set(rest.map(([model]) => model)) });
  return series;
}

/** Returns the value of a series in a bar. */
function valueIn(bar, { model, merged }) {
  if (!merged) return bar.sums.get(model) ?? 0;
  let sum = 0;
  for (const [of, value] of bar.sums) if (merged.has(of)) sum += value;
  return sum;
}

/** Returns uPlot's data: the highest sums first, so that lower bars are drawn over them. */
function stack(bars, series) {
  const columns = [];
  let below = bars.map(() => 0);
  for (const of of series) {
    below = bars.map((bar, at) => below[at] + valueIn(bar, of));
    columns.unshift(below.map((sum) => sum || null));
  }
  return [bars.map((_, at) => at), ...columns];
}

/** Texts of the vertical axis, with as many digits as its steps need. */
function axisTexts(measure, splits, step) {
  if (measure !== "cost") return splits.map((value) => (Number.isInteger(value) ? count(value) : ""));
  const digits = step >= 1 ? 0 : Math.max(2, (String(Number(step.toPrecision(3))).split(".")[1] ?? "").length);
  return splits.map((value) => `$${value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits })}`);
}

/** Options of uPlot. `current` has the newest bars, measure and colors. */
function options(width, series, current, onHover) {
  const { paths } = uPlot;
  const bars = paths.bars({ size: [0.78, 56] });
  const font = `12px ${getComputedStyle(document.body).fontFamily}`;
  const axis = { font, stroke: () => current.colors.text, ticks: { show: false } };
  return {
    width,
    height: HEIGHT,
    padding: [10, 16, 0, 0],
    legend: { show: false },
    select: { show: false },
    cursor: { x: false, y: false, points: { show: false }, drag: { x: false, y: false, setScale: false } },
    scales: {
      x: { time: false, range: () => [-0.5, current.bars.length - 0.5] },
      y: { range: (_, __, max) => [0, max > 0 ? max * 1.04 : 1] },
    },
    axes: [
      {
        ...axis,
        grid: { show: false },
        size: 28,
        splits: (plot) => {
          const every = Math.max(1, Math.ceil(current.bars.length / Math.max(1, Math.floor(plot.width / LABEL_WIDTH))));
          return current.bars.map((_, at) => at).filter((at) => at % every === 0);
        },
        values: (_, splits) => splits.map((at) => current.bars[at]?.label ?? ""),
      },
      { ...axis, grid: { stroke: () => current.colors.line, width: 1 }, size: 64, space: 44, values: (_, splits, __, ___, step) => axisTexts(current.measure, splits, step) },
    ],
    series: [
      {},
      ...[...series].reverse().map(({ slot }) => ({ paths: bars, points: { show: false }, width: 1, stroke: () => current.colors.surface, fill: () => current.colors[slot] })),
    ],
    hooks: { setCursor: [({ cursor }) => onHover(cursor.left >= 0 ? cursor.idx ?? null : null)] },
  };
}

/** Reads the colors from the page, because a canvas knows no variables: they follow the theme. */
function readColors(root) {
  const style = getComputedStyle(root);
  const colors = { text: style.color, line: style.borderTopColor, surface: style.backgroundColor };
  for (const swatch of root.querySelectorAll("[data-swatch]")) colors[swatch.dataset.swatch] = getComputedStyle(swatch).backgroundColor;
  return colors;
}

/** Returns a number that changes when the colors of the page do. */
function useThemeChange() {
  const { theme } = useStore(settings);
  const [turn, setTurn] = useState(0);
  useEffect(() => {
    const dark = matchMedia("(prefers-color-scheme: dark)");
    const change = () => setTurn((before) => before + 1);
    dark.addEventListener("change", change);
    return () => dark.removeEventListener("change", change);
  }, []);
  return `${theme} ${turn}`;
}

/** `days`: as in /api/overview. `unit` of the bars: "day", "week" or "month". `onPick({ from, to })` is called with the days of a chosen bar. */
export function SpendPlot({ days, unit, measure, onPick }) {
  const root = useRef(null);
  const host = useRef(null);
  const slots = useRef(new Map());
  const current = useRef({}).current;
  const [hidden, setHidden] = useState(new Set());
  const [hovered, setHovered] = useState(null);
  const [isByKey, setByKey] = useState(false);
  const bars = useMemo(() => barsOf(days, unit, measure), [days, unit, measure]);
  const series = useMemo(() => seriesOf(bars, slots.current), [bars]);
  const shown = series.filter(({ model }) => !hidden.has(model));
  Object.assign(current, { bars, measure });
  const theme = useThemeChange();
  const shape = `${shown.map(({ slot }) => slot).join()} ${bars.length}`;
  useLayoutEffect(() => {
    current.colors = readColors(root.current);
    const plot = new uPlot(options(host.current.clientWidth, shown, current, (at) => {
      setByKey(false);
      setHovered(at);
    }), stack(bars, shown), host.current);
    current.plot = plot;
    const observer = new ResizeObserver(() => host.current.clientWidth && plot.setSize({ width: host.current.clientWidth, height: HEIGHT }));
    observer.observe(host.current);
    return () => {
      observer.disconnect();
      plot.destroy();
    };
  }, [shape]);
  useLayoutEffect(() => current.plot.setData(stack(bars, shown)), [bars, measure]);
  useEffect(() => {
    current.colors = readColors(root.current);
    current.plot.redraw();
  }, [theme]);
  const toggle = (model) => setHidden((before) => (before.has(model) ? new Set([...before].filter((of) => of !== model)) : new Set([...before, model])));
  const at = hovered !== null && hovered < bars.length ? hovered : null;
  const move = (event) => {
    const moves = { ArrowLeft: (at ?? bars.length) - 1, ArrowRight: (at ?? -1) + 1, Home: 0, End: bars.length - 1 };
    if (event.key in moves) setHovered(Math.min(bars.length - 1, Math.max(0, moves[event.key])));
    else if (event.key === "Enter" && at !== null) onPick(bars[at]);
    else if (event.key === "Escape" && at !== null) setHovered(null);
    else return;
    setByKey(true);
    event.preventDefault();
  };
  // On a touch screen a tap shows the amounts instead.
  const click = (event) => event.pointerType === "mouse" && at !== null && onPick(bars[at]);
  const name = `${MEASURES[measure].label} by ${unit} and model`;
  return html`
    <figure class="plot" ref=${root} data-testid="spend-plot">
      <div class="plot-area" tabindex="0" role="group" aria-label=${`${name}. The arrow keys show the amounts of a bar, Enter its calls.`} onKeyDown=${move} onClick=${click} onBlur=${() => isByKey && setHovered(null)}>
        ${at !== null && html`<${Band} plot=${current.plot} at=${at} />`}
        <div class="plot-host" ref=${host}></div>
        ${at !== null && html`<${Amounts} bar=${bars[at]} at=${at} of=${bars.length} plot=${current.plot} series=${shown} measure=${measure} isSpoken=${isByKey} />`}
      </div>
      <${Legend} series=${series} hidden=${hidden} measure=${measure} onToggle=${toggle} />
      <${NumberTable} name=${name} bars=${bars} series=${series} measure=${measure} />
    </figure>
  `;
}

/** Marks the column of a bar. */
function Band({ plot, at }) {
  const left = plot.over.offsetLeft + plot.valToPos(at - 0.5, "x");
  const width = plot.valToPos(at + 0.5, "x") - plot.valToPos(at - 0.5, "x");
  return html`<div class="plot-band" style=${{ left: `${left}px`, width: `${width}px`, top: `${plot.over.offsetTop}px`, height: `${plot.over.offsetHeight}px` }}></div>`;
}

/** The amounts of a bar, beside it. */
function Amounts({ bar, at, of, plot, series, measure, isSpoken }) {
  const { text, exact } = MEASURES[measure];
  const middle = plot.over.offsetLeft + plot.valToPos(at, "x");
  const half = plot.valToPos(at + 0.5, "x") - plot.valToPos(at, "x") + 4;
  const isLeft = at * 2 >= of;
  const side = isLeft ? { right: `${plot.width - middle + half}px` } : { left: `${middle + half}px` };
  const amounts = series.map((one) => [one, valueIn(bar, one)]).filter(([, value]) => value > 0).reverse();
  const total = amounts.reduce((sum, [, value]) => sum + value, 0);
  return html`
    <div class="plot-amounts" style=${side} role=${isSpoken ? "status" : null} data-testid="plot-amounts">
      <p><strong>${bar.name}</strong></p>
      <dl>
        <div><dt>Total</dt><dd title=${exact(total)}>${text(total)}</dd></div>
        ${amounts.map(([one, value]) => html`<div key=${one.slot}><dt><${Swatch} slot=${one.slot} /><bdi class="cut">${one.name}</bdi></dt><dd>${text(value)}</dd></div>`)}
      </dl>
    </div>
  `;
}

const Swatch = ({ slot }) => html`<span class="swatch" data-swatch=${slot} aria-hidden="true"></span>`;

const Legend = ({ series, hidden, measure, onToggle }) => html`
  <ul class="plot-legend" aria-label="Models">
    ${series.map(({ model, name, total, slot }) => html`
      <li key=${slot}>
        <button type="button" class="quiet" aria-pressed=${hidden.has(model) ? "false" : "true"} title=${hidden.has(model) ? `Show ${name}` : `Hide ${name}`} data-testid="plot-series" onClick=${() => onToggle(model)}>
          <${Swatch} slot=${slot} /><bdi class="cut">${name}</bdi> <span class="muted">${MEASURES[measure].text(total)}</span>
        </button>
      </li>
    `)}
  </ul>
`;

const NumberTable = ({ name, bars, series, measure }) => {
  const { text, exact } = MEASURES[measure];
  const cell = (value) => html`<td class="number" title=${exact(value)}>${value ? text(value) : html`<span class="muted">0</span>`}</td>`;
  const [isOpen, setOpen] = useState(false);
  return html`
    <details class="plot-table" onToggle=${({ target }) => setOpen(target.open)}>
      <summary data-testid="plot-table">Show as a table</summary>
      ${isOpen && html`
        <div class="scroller" tabindex="0" role="region" aria-label=${name}>
          <table class="table">
            <caption class="hidden-text">${name}</caption>
            <thead><tr><th scope="col">Date</th>${series.map(({ name: of, slot }) => html`<th key=${slot} scope="col" class="number" title=${of}><bdi>${of}</bdi></th>`)}<th scope="col" class="number">Total</th></tr></thead>
            <tbody>${bars.map((bar) => html`
              <tr key=${bar.key}><th scope="row">${bar.name}</th>${series.map((of) => cell(valueIn(bar, of)))}${cell(series.reduce((sum, of) => sum + valueIn(bar, of), 0))}</tr>
            `)}</tbody>
          </table>
        </div>
      `}
    </details>
  `;
};
