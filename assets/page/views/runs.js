/** The view of all runs: filters in the address, live rows, actions on one run and on several. */

import { html, useEffect, useMemo, useState } from "../vendor/preact.js";
import { count, duration, short, TRIGGERS } from "../format.js";
import { usePeriod } from "../period-picker.js";
import { address, createStore, navigate, setQuery, useStore } from "../state.js";
import { Dash, Empty, ErrorNote, Loading, Menu, Money, Page, showError, Status, Time } from "../ui.js";
import { TableEnd, VirtualTable } from "../virtual-table.js";
import { clearFilters, Filters, hasFilters, listed, parametersOf } from "./runs-filters.js";
import { useRunList } from "./runs-list.js";

const SORTS = ["time", "cost", "duration"];
const isActive = ({ status }) => status === "QUEUED" || status === "RUNNING";
const isOver = (run) => !isActive(run);

/** Ids of the selected runs. */
const selection = createStore(new Set());

const select = (runIds, isOn) => {
  const next = new Set(selection.get());
  for (const runId of runIds) isOn ? next.add(runId) : next.delete(runId);
  selection.set(next);
};

function SelectBox({ run }) {
  const isOn = useStore(selection).has(run.runId);
  return html`<label class="select-box"><input type="checkbox" checked=${isOn} data-testid="run-select" onChange=${({ target }) => select([run.runId], target.checked)} /><span class="hidden-text">Select run of <bdi>${run.flowName}</bdi>, ${run.createdAt}</span></label>`;
}

/** Selects all loaded runs. */
function SelectAll({ rowsOf }) {
  const selected = useStore(selection);
  const rows = rowsOf();
  const isAll = rows.length > 0 && rows.every(({ runId }) => selected.has(runId));
  return html`<label class="select-box"><input type="checkbox" checked=${isAll} indeterminate=${!isAll && selected.size > 0} data-testid="select-all" onChange=${({ target }) => select(rowsOf().map(({ runId }) => runId), target.checked)} /><span class="hidden-text">Select all loaded runs</span></label>`;
}

function RunMenu({ run, list }) {
  const act = (name) => async () => (await import("../run-actions.js"))[name](run);
  const remove = async () => {
    if (await act("deleteRun")()) list().remove([run.runId]);
  };
  return html`<${Menu} label="⋯" kind="quiet" name=${`Actions for run of ${run.flowName}`} testid="row-menu" items=${[
    isActive(run) && { label: "Cancel", onClick: act("cancelRun"), testid: "row-cancel" },
    (run.status === "FAILED" || run.status === "CANCELLED") && { label: "Retry from failed node", onClick: act("retryRun"), testid: "row-retry" },
    { label: "Run again", onClick: act("runAgain"), testid: "row-again" },
    { label: "Show flow", href: `/flows/${run.flowId}` },
    isOver(run) && { label: "Delete run…", danger: true, onClick: remove, testid: "row-delete" },
  ]} />`;
}

/** Columns for which only wide screens have room. */
const WIDE_ONLY = ["tokens", "trigger"];
const WIDE = matchMedia("(width >= 80rem)");
/** Widths of columns on other screens. */
const NARROW_WIDTHS = { __proto__: null, select: 4, time: 17, duration: 9.5, cost: 11, error: 11 };

const columnsOf = (list) => [
  { name: "select", label: "Select", header: html`<${SelectAll} rowsOf=${() => list().rows} />`, isPlain: true, width: 3.5, cell: (run) => html`<${SelectBox} run=${run} />` },
  { name: "flow", label: "Flow", width: 19, cell: (run) => html`<bdi>${run.flowName}</bdi>` },
  { name: "status", label: "Status", width: 11, cell: (run) => html`<${Status} status=${run.status} />` },
  { name: "time", label: "Created", sort: "time", isDescOnly: true, width: 13, cell: (run) => html`<${Time} at=${run.createdAt} />` },
  { name: "duration", label: "Duration", sort: "duration", isDescOnly: true, number: true, width: 8, cell: (run) => (run.executionTimeMs === null ? html`<${Dash} reason="not over" />` : duration(run.executionTimeMs)) },
  { name: "cost", label: "Cost", sort: "cost", isDescOnly: true, number: true, width: 9.5, cell: (run) => html`<${Money} usd=${isActive(run) ? null : run.cost} unknown=${isActive(run) ? "not over" : "unknown cost"} />` },
  { name: "tokens", label: "Tokens", title: "Tokens in → out", number: true, width: 11, cell: (run) => (run.inputTokens || run.outputTokens ? html`<span title=${`${count(run.inputTokens)} → ${count(run.outputTokens)}`}>${short(run.inputTokens)} → ${short(run.outputTokens)}</span>` : html`<${Dash} reason="no tokens" />`) },
  { name: "trigger", label: "Trigger", width: 9, cell: (run) => TRIGGERS[run.trigger] ?? run.trigger },
  { name: "error", label: "Error", width: 16, cell: (run) => run.error && html`<span class="fault" title=${run.error}>${run.error}</span>` },
  { name: "actions", label: "Actions", header: html`<span class="hidden-text">Actions</span>`, width: 4, cell: (run) => html`<${RunMenu} run=${run} list=${list} />` },
];

/** Returns whether a media query matches, and renders again when that changes. */
function useMedia(media) {
  const [isMatching, setMatching] = useState(media.matches);
  useEffect(() => {
    const listen = () => setMatching(media.matches);
    media.addEventListener("change", listen);
    return () => media.removeEventListener("change", listen);
  }, []);
  return isMatching;
}

/** Shows the actions on the selected runs; most visits need none. */
function Bulk({ list }) {
  const selected = useStore(selection);
  const [module, setModule] = useState(null);
  const runs = list.rows.filter(({ runId }) => selected.has(runId));
  const isNeeded = runs.length > 0;
  useEffect(() => {
    if (isNeeded && !module) import("./runs-bulk.js").then(setModule, (error) => showError("Cannot load the actions", error));
  }, [isNeeded]);
  if (!isNeeded || !module) return null;
  const onDone = (action, runIds) => {
    if (action === "delete") list.remove(runIds);
    select(runIds, false);
    list.look();
  };
  return html`<${module.BulkBar} runs=${runs} onDone=${onDone} onClear=${() => selection.set(new Set())} />`;
}

function Nothing({ query, label }) {
  if (hasFilters(query)) return html`<${Empty} title=${`No runs match these filters in this period: ${label}.`}><p class="buttons"><button type="button" onClick=${clearFilters}>Clear filters</button> <button type="button" class="quiet" onClick=${() => setQuery({ period: "all", from: null, to: null })}>Search all time</button></p><//>`;
  return html`<${Empty} title=${label === "All time" ? "No runs yet." : `No runs in this period: ${label}.`}><p class="buttons"><a class="button" href="/flows">Open flows to start a run</a> ${label !== "All time" && html`<button type="button" class="quiet" onClick=${() => setQuery({ period: "all", from: null, to: null })}>Show all time</button>`}</p><//>`;
}

export default function Runs({ query }) {
  const { label, from, to } = usePeriod(query);
  const by = SORTS.includes(query.get("sort")) ? query.get("sort") : "time";
  // Never without a parameter, so that the list can append its own.
  const path = address("/api/runs", { ...parametersOf(query, { from, to }), sort: by });
  const list = useRunList({ path, isNewestFirst: by === "time", statuses: listed(query, "status") });
  const [present] = useState({ list });
  present.list = list;
  const isWide = useMedia(WIDE);
  const columns = useMemo(() => {
    const all = columnsOf(() => present.list);
    return isWide ? all : all.filter(({ name }) => !WIDE_ONLY.includes(name)).map((column) => ({ ...column, width: NARROW_WIDTHS[column.name] ?? column.width }));
  }, [isWide]);
  useEffect(() => () => selection.set(new Set()), []);
  const isFirst = list.isStale && list.rows.length === 0;
  const footer = html`<${TableEnd} isLoading=${list.isLoading && list.next !== null && !list.isStale} error=${list.rows.length ? list.error : null} onRetry=${list.loadMore} shown=${list.rows.length} word="run" hasMore=${list.next !== null} />`;
  return html`
    <${Page} title="Runs" testid="runs">
      <${Filters} query=${query} />
      ${list.error && !list.rows.length && html`<${ErrorNote} title="Cannot load the runs" error=${list.error} onRetry=${list.load} />`}
      ${isFirst && !list.error && html`<${Loading} />`}
      ${!list.isStale && list.rows.length === 0 && list.newsCount() === 0 && !list.error && list.next === null && html`<${Nothing} query=${query} label=${label} />`}
      ${(list.rows.length > 0 || list.newsCount() > 0 || list.next !== null) && html`<div aria-busy=${list.isStale ? "true" : null}>
        <${VirtualTable} label="Runs" className="runs" rowTestid="run-row" columns=${columns} rows=${list.rows} keyOf=${(run) => run.runId} hrefOf=${(run) => `/runs/${run.runId}`} onOpen=${(run) => navigate(`/runs/${run.runId}`)} dataOf=${(run) => ({ "data-run-id": run.runId, "data-status": run.status })} opensDialog=${false} sort=${{ by, order: "desc" }} onSort=${(wanted) => setQuery({ sort: wanted.by === "time" ? null : wanted.by })} news=${list.newsCount()} newsWord="run" isNewsQuiet=${by === "time"} onNews=${list.showNews} onMore=${list.next === null || list.isLoading || list.error ? null : list.loadMore} footer=${footer} />
      </div>`}
      <${Bulk} list=${list} />
    <//>
  `;
}
