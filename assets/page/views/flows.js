/** The view "Flows": the list with search, sorting, and the way to new flows. */

import { html, useEffect, useMemo, useRef, useState } from "../vendor/preact.js";
import * as api from "../api.js";
import { deleteFlow, duplicateFlow, exportFlow, startAtOnce } from "../flow-actions.js";
import { duration, plural } from "../format.js";
import { navigate, rememberFlows, setQuery, settings, useData, useMessages, useStore, useThrottled } from "../state.js";
import { Button, Dash, Empty, ErrorNote, Loading, Menu, Money, Page, showError, Status, Time } from "../ui.js";
import { TableEnd, VirtualTable } from "../virtual-table.js";

/** One page holds all flows of nearly everybody; the rest follows page by page. */
const PAGE = 1_000;
const RELOAD_MS = 1_000;
/** Sums change with each call; the list follows a while after a run. */
const SUMS_MS = 10_000;

const SORTS = {
  __proto__: null,
  name: (flow) => flow.name.toLocaleLowerCase(),
  last: (flow) => flow.latest_run?.createdAt ?? "",
  cost: (flow) => Number(flow.cost_30d ?? -1),
};

export default function Flows({ query }) {
  const { flows, error, isLoading, reload, remove } = useFlows();
  const [dialog, setDialog] = useState(null);
  const search = query.get("q") ?? "";
  const sort = { by: query.get("sort") in SORTS ? query.get("sort") : "last", order: query.get("order") === "asc" ? "asc" : "desc" };
  const shown = useMemo(() => flows && sorted(matching(flows, search), sort), [flows, search, sort.by, sort.order]);
  const acts = useRef({});
  acts.current = { run: (flow) => runOrAsk(flow, setDialog), remove };
  const columns = useMemo(() => columnsOf(acts), []);
  const isDragged = useDroppedFiles((files) => openNew(setDialog, reload, files));
  useEffect(() => {
    if (query.get("new") !== null) openNew(setDialog, reload);
  }, [query.get("new")]);
  return html`
    <div class="flows-view" data-dragged=${isDragged ? "" : null}>
      <${Page} title="Flows" actions=${html`<${Button} kind="primary" data-testid="new-flow" aria-haspopup="dialog" onClick=${() => openNew(setDialog, reload)}>New flow<//>`}>
        ${error && html`<${ErrorNote} title="Cannot load the flows" error=${error} onRetry=${reload} />`}
        ${!flows && isLoading && html`<${Loading} />`}
        ${flows?.length === 0 && html`<${NoFlows} onNew=${() => openNew(setDialog, reload)} />`}
        ${flows?.length > 0 && html`
          <search><input class="flow-search" type="search" data-search data-testid="flow-search" aria-label="Search flows" placeholder="Search by name or description" autocomplete="off" value=${search} onInput=${({ target }) => setQuery({ q: target.value })} /></search>
          <p class="hidden-text" role="status">${search && `${plural(shown.length, "flow")} found`}</p>
          ${shown.length === 0
            ? html`<${Empty} title="No flow matches the search."><p><button type="button" class="quiet" onClick=${() => setQuery({ q: "" })}>Clear the search</button></p><//>`
            : html`<${VirtualTable} label="Flows" className="flows" columns=${columns} rows=${shown} keyOf=${({ id }) => id} hrefOf=${({ id }) => `/flows/${id}`} onOpen=${({ id }) => navigate(`/flows/${id}`)} opensDialog=${false} sort=${sort} onSort=${({ by, order }) => setQuery({ sort: by, order })} rowTestid="flow" dataOf=${({ id }) => ({ "data-flow-id": id })} footer=${html`<${TableEnd} shown=${shown.length} word="flow" hasMore=${search !== ""} />`} />`}
        `}
        ${isDragged && html`<p class="drop-note" role="status">Drop the files to import them</p>`}
        ${dialog && html`<${dialog.Dialog} ...${dialog.props} onClose=${() => setDialog(null)} />`}
      <//>
    </div>
  `;
}

const NoFlows = ({ onNew }) => html`
  <${Empty} title="No flows yet.">
    <p>A flow is a graph of model calls. Start from a template, paste JSON, or import files.</p>
    <p><${Button} kind="primary" onClick=${onNew}>New flow<//></p>
  <//>
`;

const matching = (flows, search) => {
  const words = search.toLocaleLowerCase().split(/\s+/).filter(Boolean);
  return words.length ? flows.filter(({ name, description }) => words.every((word) => `${name} ${description ?? ""}`.toLocaleLowerCase().includes(word))) : flows;
};

function sorted(flows, { by, order }) {
  const keyed = flows.map((flow) => [SORTS[by](flow), flow]);
  const sign = order === "asc" ? 1 : -1;
  return keyed.sort(([a, x], [b, y]) => (a < b ? -sign : a > b ? sign : y.id - x.id)).map(([, flow]) => flow);
}

/* Dialogs. */

const failToOpen = (error) => showError("Cannot open the dialog", error);

async function openNew(setDialog, reload, files = null) {
  try {
    const { NewFlow } = await import("../flow-new.js");
    setDialog({ Dialog: NewFlow, props: { files, onCreated: reload } });
  } catch (error) {
    failToOpen(error);
  }
}

/** Flows with inputs ask for them first. */
async function runOrAsk(flow, setDialog) {
  if (!flow.inputs?.length) return startAtOnce(flow);
  try {
    const { RunDialog } = await import("../run-dialog.js");
    setDialog({ Dialog: RunDialog, props: { flow } });
  } catch (error) {
    failToOpen(error);
  }
  return undefined;
}

/** Calls `take(files)` for files that are dropped on the page; returns true while files are dragged over it. */
function useDroppedFiles(take) {
  const [isDragged, setDragged] = useState(false);
  useEffect(() => {
    const hasFiles = (event) => event.dataTransfer?.types.includes("Files") && !document.querySelector("dialog[open]");
    const over = (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      setDragged(true);
    };
    const leave = (event) => event.relatedTarget === null && setDragged(false);
    const drop = (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      setDragged(false);
      take([...event.dataTransfer.files]);
    };
    const listeners = { dragover: over, dragleave: leave, drop };
    for (const [type, listener] of Object.entries(listeners)) document.addEventListener(type, listener);
    return () => {
      for (const [type, listener] of Object.entries(listeners)) document.removeEventListener(type, listener);
    };
  }, []);
  return isDragged;
}

/* Data. */

/** Returns all flows, kept fresh by messages. */
function useFlows() {
  const { data, error, isLoading, reload, setData } = useData(`/api/flows?summary=true&limit=${PAGE}`);
  const reloadSoon = useThrottled(reload, RELOAD_MS);
  const reloadLater = useThrottled(reload, SUMS_MS);
  useEffect(() => {
    if (!data) return;
    rememberFlows(data.items);
    if (!data.next) return;
    let isCurrent = true;
    const more = (page) => isCurrent && setData((before) => ({ items: [...before.items, ...page.items], next: page.next }));
    api.get(`/api/flows?summary=true&limit=${PAGE}&before=${encodeURIComponent(data.next)}`).then(more, (failure) => showError("Cannot load all flows", failure));
    return () => (isCurrent = false);
  }, [data?.next, data]);
  /** Runs by flow id that changed since the last frame. */
  const changes = useRef(new Map());
  useMessages(({ type, payload }) => {
    if (type === "FLOW_CHANGED") return reloadSoon();
    const change = CHANGES[type];
    if (!change || !payload.runId) return undefined;
    if (!changes.current.size) {
      requestAnimationFrame(() => {
        const all = changes.current;
        changes.current = new Map();
        setData((before) => before && { ...before, items: before.items.map((flow) => (all.has(flow.id) ? withRuns(flow, all.get(flow.id)) : flow)) });
      });
    }
    const runs = changes.current.get(payload.flowId) ?? new Map();
    changes.current.set(payload.flowId, runs.set(payload.runId, { ...runs.get(payload.runId), runId: payload.runId, ...change(payload) }));
    if (type !== "FLOW_STARTED") reloadLater();
    return undefined;
  }, []);
  const remove = (id) => setData((before) => before && { ...before, items: before.items.filter((flow) => flow.id !== id) });
  return { flows: data?.items ?? null, error, isLoading, reload, remove };
}

const CHANGES = {
  __proto__: null,
  FLOW_STARTED: ({ timestamp, trigger }) => ({ status: "RUNNING", createdAt: timestamp, startedAt: timestamp, trigger }),
  FLOW_COMPLETED: ({ executionTimeMs, cost = null }) => ({ status: "COMPLETED", executionTimeMs, cost, error: null }),
  FLOW_FAILED: ({ executionTimeMs, error }) => ({ status: "FAILED", executionTimeMs, error }),
  FLOW_CANCELLED: ({ executionTimeMs }) => ({ status: "CANCELLED", executionTimeMs }),
};

const RECENT = 20;

/** Returns a flow with changed runs; run ids sort by time. */
function withRuns(flow, runs) {
  let { latest_run: latest, recent_runs: recent } = flow;
  for (const [runId, change] of runs) {
    if (!latest || runId >= latest.runId) latest = latest?.runId === runId ? { ...latest, ...change } : { executionTimeMs: null, cost: null, ...change };
    const known = recent.some((run) => run.runId === runId);
    recent = known ? recent.map((run) => (run.runId === runId ? { ...run, ...change } : run)) : [change, ...recent].sort((a, b) => (a.runId < b.runId ? 1 : -1)).slice(0, RECENT);
  }
  return { ...flow, latest_run: latest, recent_runs: recent };
}

/* Columns. */

const columnsOf = (acts) => [
  { name: "name", label: "Name", sort: "name", width: 36, firstOrder: "asc", orders: { asc: "A to Z", desc: "Z to A" }, cell: (flow) => html`<${Name} flow=${flow} />` },
  { name: "last", label: "Last run", sort: "last", width: 20, orders: { desc: "newest first", asc: "oldest first" }, cell: ({ latest_run: run }) => html`<${LastRun} run=${run} />` },
  { name: "recent", label: "Recent runs", title: "The last 20 runs, oldest first; height by duration", width: 14, cell: ({ recent_runs: runs }) => html`<${Sparkline} runs=${runs} />` },
  { name: "cost", label: "30 days", title: "Cost of 30 days", sort: "cost", number: true, width: 9, orders: { desc: "highest first", asc: "lowest first" }, cell: (flow) => html`<${Money} usd=${flow.cost_30d} unknown="no known cost" title=${`in 30 days, ${plural(flow.runs_30d ?? 0, "run")}`} />` },
  { name: "triggers", label: "Triggers", width: 17, cell: (flow) => html`<${Triggers} flow=${flow} />` },
  { name: "actions", label: "Actions", width: 13, header: html`<span class="hidden-text">Actions</span>`, cell: (flow) => html`<${Actions} flow=${flow} acts=${acts} />` },
];

const Name = ({ flow: { name, description } }) => html`<span class="flow-name cut" title=${name}><bdi>${name}</bdi></span>${html`<span class="flow-description cut muted" title=${description}>${description ? html`<bdi>${description}</bdi>` : "\u00a0"}</span>`}`;

function LastRun({ run }) {
  if (!run) return html`<span class="muted">No runs yet</span>`;
  return html`<span class="last-run" title=${run.error}><${Status} status=${run.status} /><span class="muted"><${Time} at=${run.createdAt} ago /></span></span>`;
}

const BAR = 5;
const HEIGHT = 24;
const KINDS = { __proto__: null, COMPLETED: "good", FAILED: "bad", RUNNING: "live", QUEUED: "live" };

/** The newest runs as bars, newest at the right: the height is the duration, the color the status. */
function Sparkline({ runs }) {
  if (!runs?.length) return html`<${Dash} reason="no runs" />`;
  const longest = Math.max(1, ...runs.map(({ executionTimeMs }) => executionTimeMs ?? 0));
  const paths = new Map();
  const counts = new Map();
  runs.forEach(({ status, executionTimeMs }, at) => {
    const kind = KINDS[status] ?? "idle";
    const height = Math.max(3, Math.sqrt((executionTimeMs ?? 0) / longest) * HEIGHT);
    const x = (RECENT - 1 - at) * (BAR + 1);
    paths.set(kind, `${paths.get(kind) ?? ""}M${x} ${HEIGHT}v${-height.toFixed(1)}h${BAR}v${height.toFixed(1)}z`);
    counts.set(status, (counts.get(status) ?? 0) + 1);
  });
  const states = [...counts].map(([status, number]) => `${number} ${status.toLowerCase()}`).join(", ");
  const text = `Last ${plural(runs.length, "run")}: ${states}; longest ${duration(longest)}`;
  return html`<svg class="sparkline" role="img" aria-label=${text} width=${RECENT * (BAR + 1)} height=${HEIGHT} data-testid="sparkline"><title>${text}</title>${[...paths].map(([kind, path]) => html`<path key=${kind} d=${path} data-kind=${kind} />`)}</svg>`;
}

function Triggers({ flow: { hook, schedule } }) {
  const { zone } = useStore(settings);
  if (!hook && !schedule) return html`<${Dash} reason="no triggers" />`;
  return html`
    <span class="badges">
      ${hook && html`<span class="badge" title="Has a webhook">webhook</span>`}
      ${schedule && html`<span class="badge" title=${`${schedule.cron} (${schedule.timezone}); times here in ${zone}`}>${schedule.enabled === false ? "schedule off" : schedule.nextAt ? html`next <${Time} at=${schedule.nextAt} ago />` : "schedule"}</span>`}
    </span>
  `;
}

function Actions({ flow, acts }) {
  const items = [
    { label: "Open", href: `/flows/${flow.id}` },
    { label: "Edit", href: `/flows/${flow.id}?edit=1`, testid: "flow-edit" },
    { label: "Runs", href: `/runs?flow_id=${flow.id}` },
    { label: "Duplicate", onClick: () => duplicateFlow(flow), testid: "flow-duplicate" },
    { label: "Export", onClick: () => exportFlow(flow), testid: "flow-export" },
    { label: "Delete…", danger: true, testid: "flow-delete", onClick: async () => (await deleteFlow(flow)) && acts.current.remove(flow.id) },
  ];
  return html`<span class="row-actions"><${Button} data-testid="run-button" aria-label=${`Run ${flow.name}`} onClick=${() => acts.current.run(flow)}>Run<//><${Menu} label="⋯" kind="quiet" name=${`More actions for ${flow.name}`} items=${items} testid="flow-menu" /></span>`;
}
