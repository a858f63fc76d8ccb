/** The nodes of a run, their calls and the items of maps over time. */

import { html, useRef, useState } from "./vendor/preact.js";
import { count, duration, moneyOrUnknown, plural } from "./format.js";
import { callsByNode, isActive, itemOf, stateOf, sumCalls } from "./run-state.js";
import { createScale, mergeSpans, tickDistance, ticksOf } from "./time-scale.js";

/** A map with more items is folded at first, and shows this many more at a time. */
const ITEMS_OPEN_MAX = 12;
const ITEMS_STEP = 50;
/** More calls of a node are merged into spans without gaps. */
const CALL_BARS_MAX = 60;
/** The text of a tick beyond this place, in percent, has no room on phones. */
const LAST_TICK = 85;
/** Activity of a node with a longer pause between is of different starts of the run: it was retried. */
const PAUSE_MIN_MS = 60_000;

const at = (time) => (time ? Date.parse(time) : null);

const callSpan = (call, now) => {
  const from = at(call.timestamp);
  const end = call.status === "PENDING" ? now : from + (call.latency_ms ?? 0);
  return { from, to: Math.max(from, end), kind: call.status === "PENDING" ? "live" : call.status === "SUCCESS" ? "good" : "bad" };
};

/** Returns the rows: { id, label, state, from, busy, ms, calls, spans, items }: `busy` are the times from start to end, in order of their start. */
function rowsOf(run, detail, now) {
  const calls = callsByNode(run);
  const items = new Map((detail.nodes ?? []).map((node) => [node.nodeId, node.items ?? null]));
  const rows = [...run.nodes.values()].map((node) => {
    const own = calls.get(node.nodeId) ?? [];
    const spans = own.map((call) => callSpan(call, now));
    const state = stateOf(run, node.nodeId);
    // The server notes when it skipped a node.
    if (state === "skipped") return { id: node.nodeId, label: node.label, state, from: null, busy: [], ms: 0, calls: own, spans: [], items: null };
    const starts = [at(node.startedAt), ...spans.map(({ from }) => from)].filter((time) => time !== null);
    const from = starts.length ? Math.min(...starts) : null;
    const last = at(node.startedAt);
    const end = at(node.finishedAt) ?? (state === "running" ? now : last);
    const busy = mergeSpans(last === null ? spans : [...spans, { from: last, to: Math.max(last, end) }], PAUSE_MIN_MS);
    return { id: node.nodeId, label: node.label, state, attempt: node.attempt, from, busy, ms: lengthOf(busy), calls: own, spans: barsOf(spans), items: items.get(node.nodeId) };
  });
  return rows.sort((a, b) => (a.from ?? Infinity) - (b.from ?? Infinity) || 0);
}

const lengthOf = (spans) => spans.reduce((sum, { from, to }) => sum + to - from, 0);

const barsOf = (spans) => (spans.length <= CALL_BARS_MAX ? spans : ["good", "live", "bad"].flatMap((kind) => mergeSpans(spans.filter((span) => span.kind === kind)).map((span) => ({ ...span, kind }))));

/** Returns the rows of the items of a map. */
function itemRows(row, now) {
  const calls = new Map();
  for (const call of row.calls) {
    const item = itemOf(call);
    if (!calls.has(item)) calls.set(item, []);
    calls.get(item).push(call);
  }
  return row.items.map((item) => {
    const own = calls.get(item.item) ?? [];
    const from = at(item.startedAt);
    const to = at(item.finishedAt) ?? (item.status === "RUNNING" ? now : from);
    return { id: `${row.id}[${item.item}]`, node: row.id, label: `Item ${item.item}`, state: item.error ? "failed" : item.status.toLowerCase(), from, busy: from === null ? [] : [{ from, to }], ms: from === null ? 0 : to - from, calls: own, spans: own.map((call) => callSpan(call, now)) };
  });
}

/** Returns the node that took longest; null if there are less than two with a duration. */
function slowestOf(rows) {
  const timed = rows.filter(({ ms }) => ms > 0);
  return timed.length < 2 ? null : timed.reduce((slowest, row) => (row.ms > slowest.ms ? row : slowest)).id;
}

const width = (scale, from, to) => `${Math.max(0.15, scale.percent(to) - scale.percent(from))}%`;

const Bars = ({ row, scale }) => html`
  ${row.busy.map(({ from, to }, index) => html`<span key=${`busy-${index}`} class="wf-bar" data-state=${row.state} style=${{ left: `${scale.percent(from)}%`, width: width(scale, from, to) }}></span>`)}
  ${row.spans.map(({ from, to, kind }, index) => html`<span key=${index} class="wf-call" data-kind=${kind} style=${{ left: `${scale.percent(from)}%`, width: width(scale, from, to) }}></span>`)}
`;

/** Returns one sentence about a row, for its title and for screen readers. */
function describeRow(row, start) {
  const sums = sumCalls(row.calls);
  const began = row.from === null ? null : `starts after ${duration(Math.max(0, row.from - start))}`;
  const took = row.from === null ? null : `takes ${duration(row.ms)}`;
  const tokens = sums.isCounted ? `${count(sums.inputTokens)} → ${count(sums.outputTokens)} tokens` : null;
  const cost = sums.calls > sums.open ? moneyOrUnknown(sums.unknown ? null : sums.cost) : null;
  return [row.state, began, took, sums.calls ? plural(sums.calls, "call") : null, tokens, cost].filter(Boolean).join(" · ");
}

function Row({ row, scale, start, isSelected, isSlowest, onSelect, onHover, children, isItem = false }) {
  const text = describeRow(row, start);
  return html`
    <li class=${isItem ? "wf-item" : ""}>
      <div class="wf-row" data-testid=${isItem ? "waterfall-item" : "waterfall-row"} data-node-id=${row.node ?? row.id} data-state=${row.state}>
        <button type="button" class="wf-button" aria-pressed=${isSelected ? "true" : "false"} onClick=${onSelect} onMouseEnter=${() => onHover(row, text)} onFocus=${() => onHover(row, text)} onMouseLeave=${() => onHover(null)} onBlur=${() => onHover(null)}>
          <span class="wf-label"><span class="wf-dot" data-state=${row.state} aria-hidden="true"></span><bdi class="cut">${row.label}</bdi>${isSlowest && html`<span class="badge" data-testid="slowest">slowest</span>`}</span>
          <span class="wf-track"><${Bars} row=${row} scale=${scale} /></span>
          <span class="wf-time number">${row.from === null ? row.state : duration(row.ms)}</span>
          <span class="hidden-text">${text}</span>
        </button>
      </div>
      ${children}
    </li>
  `;
}

function Items({ row, now, ...rest }) {
  const [choice, setOpen] = useState(null);
  const isOpen = choice ?? row.items.length <= ITEMS_OPEN_MAX;
  const [shown, setShown] = useState(ITEMS_STEP);
  const rows = isOpen ? itemRows({ ...row, items: row.items.slice(0, shown) }, now) : [];
  const failed = row.items.filter(({ status, error }) => status === "FAILED" || error).length;
  const left = row.items.length - shown;
  return html`
    <div class="wf-fold"><button type="button" class="quiet" aria-expanded=${isOpen ? "true" : "false"} data-testid="waterfall-items" onClick=${() => setOpen(!isOpen)}>${isOpen ? "Hide" : "Show"} ${plural(row.items.length, "item")}${failed ? `, ${count(failed)} failed` : ""}</button></div>
    ${isOpen && html`<ol class="wf-items" aria-label=${`Items of ${row.label}`}>
      ${rows.map((item) => html`<${Row} key=${item.id} row=${item} isItem ...${rest} />`)}
    </ol>`}
    ${isOpen && left > 0 && html`<div class="wf-fold"><button type="button" class="quiet" onClick=${() => setShown(shown + ITEMS_STEP)}>Show ${count(Math.min(left, ITEMS_STEP))} more</button></div>`}
  `;
}

/** Arrow keys move between rows. */
function moveFocus(event, root) {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step || event.ctrlKey || event.altKey || event.metaKey) return;
  const buttons = [...root.querySelectorAll(".wf-button")];
  const next = buttons[buttons.indexOf(document.activeElement) + step];
  if (!next) return;
  event.preventDefault();
  next.focus();
}

/** `selected`: id of a node; `onSelect(nodeId)`; `now`: the end of what still runs, in ms. */
export function Waterfall({ run, detail, now, selected, onSelect }) {
  const root = useRef(null);
  const [hovered, setHovered] = useState(null);
  const rows = rowsOf(run, detail, now);
  const timed = rows.filter(({ from }) => from !== null);
  if (timed.length === 0) return html`<p class="muted">No node has started yet.</p>`;
  const scale = createScale(timed.flatMap(({ busy }) => busy));
  const slowest = isActive(run) ? null : slowestOf(rows);
  const distance = tickDistance(scale);
  const onHover = (row, text) => setHovered(row && { label: row.label, text });
  const common = { scale, start: scale.start, onHover };
  return html`
    <div class="waterfall" data-testid="waterfall" ref=${root} style=${{ "--wf-step": distance === null ? "200%" : `${distance}%` }} onKeyDown=${(event) => moveFocus(event, root.current)}>
      <div class="wf-axis" aria-hidden="true"><span></span><span class="wf-track">${ticksOf(scale).map(({ text, percent, isBreak }) => html`<span key=${percent} class=${`wf-tick ${isBreak ? "wf-break" : ""} ${percent > LAST_TICK ? "wf-end" : ""}`} style=${{ left: `${percent}%` }}>${text}</span>`)}</span><span></span></div>
      <ol class="wf-rows" aria-label="Nodes in order of their start">
        ${rows.map((row) => html`
          <${Row} key=${row.id} row=${row} isSelected=${selected === row.id} isSlowest=${slowest === row.id} onSelect=${() => onSelect(row.id)} ...${common}>
            ${row.items?.length ? html`<${Items} row=${row} now=${now} isSelected=${false} onSelect=${() => onSelect(row.id)} ...${common} />` : null}
          <//>
        `)}
      </ol>
      <p class="wf-detail muted" aria-hidden="true">${hovered ? html`<strong><bdi>${hovered.label}</bdi></strong> ${hovered.text}` : "Point at a row or focus it for details. Select it to see its prompt and output."}</p>
    </div>
  `;
}
