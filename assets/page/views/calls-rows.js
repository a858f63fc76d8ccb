/** The rows of the view "Calls": their filters, their pages and live changes, and their cells. */

import { html, useEffect, useRef, useState } from "../vendor/preact.js";
import { get } from "../api.js";
import { count, duration, fullMoment, moment, money, moneyOrUnknown } from "../format.js";
import { freshness, rememberFlows, useFlowNames, useMessages } from "../state.js";
import { Dash, Money, Status } from "../ui.js";

/* Filters. */

const isKnown = (value) => value !== null && value !== undefined;
const listed = (text) => (text ?? "").split(",").filter(Boolean);
const same = (of) => (row, wanted) => String(of(row) ?? "") === wanted;

/**
 * `name` in the address and in the API. `group`: the name in `group_by` that lists the values. `matches(row, value)`
 * is undefined if only the server knows. `kind`: "several" (values separated by commas), "number", "text" or "flag" (only by a
 * button).
 */
export const FILTERS = [
  { name: "status", label: "Status", kind: "several", matches: (row, wanted) => listed(wanted).includes(row.status) },
  { name: "model", label: "Model", group: "model", matches: same((row) => row.model_used) },
  { name: "provider", label: "Provider", group: "provider", matches: same((row) => row.provider) },
  { name: "flow_id", label: "Flow", group: "flow", matches: same((row) => row.flow_id) },
  { name: "node", label: "Node", kind: "text", hint: "The ID of a node in a flow, such as `summary`.", matches: same((row) => row.node_id) },
  { name: "key", label: "Key", group: "key", matches: same((row) => row.key_name) },
  { name: "tag", label: "Tag", group: "tag", matches: (row, wanted) => listed(row.tags).includes(wanted) },
  { name: "session", label: "Session", group: "session", matches: same((row) => row.session) },
  { name: "client", label: "Client", group: "client", matches: same((row) => row.client) },
  { name: "end_user", label: "End user", group: "end_user", matches: same((row) => row.end_user) },
  { name: "project", label: "Project", group: "project", matches: same((row) => row.project) },
  { name: "role", label: "Role", group: "role", matches: same((row) => row.agent_role) },
  { name: "run_id", label: "Run", kind: "text", hint: "The ID of a run.", matches: same((row) => row.run_id) },
  { name: "min_cost", label: "Cost from", kind: "number", unit: "$", matches: (row, least) => isKnown(row.total_cost_usd) && Number(row.total_cost_usd) >= Number(least) },
  { name: "max_cost", label: "Cost up to", kind: "number", unit: "$", matches: (row, most) => isKnown(row.total_cost_usd) && Number(row.total_cost_usd) <= Number(most) },
  { name: "min_ms", label: "Latency from", kind: "number", unit: "ms", matches: (row, least) => isKnown(row.latency_ms) && row.latency_ms >= Number(least) },
  { name: "max_ms", label: "Latency up to", kind: "number", unit: "ms", matches: (row, most) => isKnown(row.latency_ms) && row.latency_ms <= Number(most) },
  { name: "cached", label: "From the cache", kind: "flag", matches: (row, wanted) => String(row.cached ?? false) === wanted },
  { name: "cost", label: "Cost", kind: "flag", matches: (row) => row.total_cost_usd === null && row.status !== "PENDING" },
];

export const STATUSES = ["PENDING", "SUCCESS", "FAILED", "TIMEOUT", "CANCELLED", "UNKNOWN"];
/** All calls that ended without a response. */
export const FAILED = "FAILED,TIMEOUT,CANCELLED,UNKNOWN";

/** Names to sort by, as the API calls them. */
export const SORTS = ["time", "cost", "latency", "input_tokens", "output_tokens"];

/** Returns the filters of an address: [{ filter, value }]. */
export const filtersOf = (query) => FILTERS.flatMap((filter) => (query.get(filter.name) ? [{ filter, value: query.get(filter.name) }] : []));

/** Returns the parameters of the API for the filters of an address and a period. */
export function parametersOf(query, { from, to }) {
  const parameters = Object.fromEntries(filtersOf(query).map(({ filter, value }) => [filter.name, value]));
  return { ...parameters, from, to, q: query.get("q") };
}

/** Returns the order of an address, in the names of the API. */
export function sortOf(query) {
  const by = SORTS.includes(query.get("sort")) ? query.get("sort") : "time";
  return { by, order: query.get("order") === "asc" ? "asc" : "desc" };
}

/** Returns a function from rows to whether they match. It ignores the free text, which only the server can search. */
export function matcher(query, { from, to }) {
  const filters = filtersOf(query);
  const [first, last] = [from, to].map((instant) => instant && Date.parse(instant));
  return (row) => {
    const at = Date.parse(row.timestamp);
    if (first && (at < first || at >= last)) return false;
    return filters.every(({ filter, value }) => filter.matches(row, value));
  };
}

/** Returns the text of a chip. */
export function chipText(filter, value, flowName) {
  if (filter.name === "flow_id") return flowName(Number(value));
  if (filter.name === "status") return value === FAILED ? "failed" : value.toLowerCase().split(",").join(" or ");
  if (filter.name === "cached") return value === "true" ? "yes" : "no";
  if (filter.unit) return filter.unit === "$" ? `$${value}` : `${value} ${filter.unit}`;
  return value;
}

/** Returns true if the call was refused before it left: no provider was called, and it cost nothing. */
export const isRefused = ({ refused }) => isKnown(refused);
/** Returns false if the row's token counts mean nothing. */
export const isCounted = (row) => row.status !== "PENDING" && !row.cached && !isRefused(row) && row.usage_source !== "none";

/* Pages and live changes. */

const PAGE_ROWS = 100;
/** The API returns at most this many rows at once. */
const ROWS_MAX = 1_000;
/** Live rows are applied together; more often would be more than a reader can follow. */
const APPLY_MS = 120;

/** Labels by flow and node, because the rows of live messages have none. */
const labels = new Map();
const nodeKey = ({ flow_id: flow, node_id: node }) => `${flow} ${node}`;

function rememberLabels(rows) {
  for (const row of rows) if (row.node_label) labels.set(nodeKey(row), row.node_label);
}

/** Nodes whose label was asked for, with a row of each that has not been fetched yet. */
const asked = new Set();
const unlabelled = [];

/** Fetches the labels of nodes that no loaded row named: one row for each node, one after the other. */
async function learnLabels(rows, onLearned) {
  const isIdle = unlabelled.length === 0;
  for (const row of rows) {
    const key = nodeKey(row);
    if (row.node_id === null || row.flow_id === null || labels.has(key) || asked.has(key)) continue;
    asked.add(key);
    unlabelled.push({ row, onLearned });
  }
  if (!isIdle) return;
  for (; unlabelled.length > 0; unlabelled.shift()) {
    const { row, onLearned: learned } = unlabelled[0];
    try {
      rememberLabels([await get(`/api/ledger/${row.id}`)]);
      learned(nodeKey(row));
    } catch {
      // A later row of the node asks again; until then its id is shown.
      asked.delete(nodeKey(row));
    }
  }
}

const nodeLabel = (row) => row.node_label ?? labels.get(nodeKey(row)) ?? row.node_id;

/** A settled row never becomes pending again, so a pending state after it is outdated. */
const isOutdated = (before, after) => before.status !== "PENDING" && after.status === "PENDING";

/**
 * `path`: of the API, with filters and order. `isNewestFirst`: new rows belong on top. `matches(row)` or null if only
 * the server knows whether a row matches. `onChange()` is called after each change.
 */
function createList({ path, isNewestFirst, matches, onChange, before }) {
  const list = { rows: before?.rows ?? [], next: null, isLoading: true, isStale: true, error: null, isLastPageShort: false };
  /** Live rows to apply, by id. */
  const incoming = new Map();
  /** Rows that wait above the shown ones, by id. */
  const waiting = new Map();
  let known = new Map(list.rows.map((row) => [row.id, row]));
  let isDisposed = false;
  let timer = 0;
  let turn = 0;

  const setRows = (rows) => {
    list.rows = rows;
    known = new Map(rows.map((row) => [row.id, row]));
    for (const id of waiting.keys()) if (known.has(id)) waiting.delete(id);
  };

  /** Replaces rows that have changed; those that no longer match go. */
  const update = (changed) => {
    const isGone = (row) => matches && changed.has(row.id) && !matches(row);
    const rows = list.rows.map((row) => {
      if (!changed.has(row.id)) return row;
      const updated = { ...row, ...changed.get(row.id) };
      known.set(row.id, updated);
      return updated;
    });
    if (rows.some(isGone)) setRows(rows.filter((row) => !isGone(row)));
    else list.rows = rows;
  };

  async function fetchRows(limit, cursor, accept) {
    const mine = ++turn;
    list.isLoading = true;
    list.error = null;
    onChange();
    try {
      const page = await get(`${path}&limit=${limit}${cursor === null ? "" : `&before=${encodeURIComponent(cursor)}`}`);
      if (mine !== turn || isDisposed) return;
      rememberLabels(page.items);
      rememberFlows(page.items.filter((row) => row.flow_name).map((row) => ({ id: row.flow_id, name: row.flow_name })));
      accept(page.items);
      list.next = page.next ?? null;
      list.isLastPageShort = page.items.length < limit;
    } catch (error) {
      if (mine !== turn || isDisposed) return;
      list.error = error;
    }
    list.isLoading = false;
    onChange();
  }

  /** Fetches the first rows; later as many as are shown, so that the reader's place stays. */
  list.load = () => {
    const limit = list.isStale ? PAGE_ROWS : Math.min(ROWS_MAX, Math.max(PAGE_ROWS, list.rows.length));
    return fetchRows(limit, null, (rows) => {
      list.isStale = false;
      waiting.clear();
      setRows(rows);
    });
  };

  list.loadMore = () => {
    if (list.isLoading || list.next === null) return undefined;
    return fetchRows(PAGE_ROWS * 2, list.next, (rows) => setRows([...list.rows, ...rows.filter((row) => !known.has(row.id))]));
  };

  list.receive = (row) => {
    const before = incoming.get(row.id) ?? waiting.get(row.id) ?? known.get(row.id);
    if (list.isStale || (before && isOutdated(before, row))) return;
    incoming.set(row.id, row);
    timer ||= setTimeout(apply, APPLY_MS);
  };

  /** Makes new objects of the rows of a node, because the table draws only changed ones again. */
  function showLabels(key) {
    if (isDisposed) return;
    const rows = [...list.rows, ...waiting.values()].filter((row) => !row.node_label && nodeKey(row) === key);
    for (const row of rows) if (waiting.has(row.id)) waiting.set(row.id, { ...row });
    update(new Map(rows.map((row) => [row.id, row])));
    onChange();
  }

  function apply() {
    timer = 0;
    if (isDisposed) return;
    let isChanged = false;
    const last = list.next === null ? -Infinity : (list.rows.at(-1)?.id ?? -Infinity);
    for (const [id, row] of incoming) {
      if (known.has(id)) isChanged = true;
      else if (matches && !matches(row)) waiting.delete(id);
      else if (!isNewestFirst || id > last) waiting.set(id, row);
    }
    if (isChanged) update(incoming);
    learnLabels(incoming.values(), showLabels);
    incoming.clear();
    onChange();
  }

  /** True if the waiting rows certainly belong on top. */
  list.areNewsExact = isNewestFirst && matches !== null;
  list.newsCount = () => waiting.size;
  list.showNews = () => {
    if (!list.areNewsExact) return list.load();
    const rows = [...waiting.values()].sort((a, b) => b.id - a.id);
    const isOnTop = list.rows.length === 0 || rows.at(-1)?.id > list.rows[0].id;
    for (const row of rows) known.set(row.id, row);
    waiting.clear();
    list.rows = [...rows, ...list.rows];
    if (!isOnTop) list.rows.sort((a, b) => b.id - a.id);
    onChange();
    return undefined;
  };

  list.find = (id) => known.get(id) ?? waiting.get(id) ?? null;

  list.dispose = () => {
    isDisposed = true;
    clearTimeout(timer);
  };
  return list;
}

/** Returns the list of calls of `path`; the rows of the path before stay until the new ones arrive. */
export function useCallList({ path, isNewestFirst, matches }) {
  const [, render] = useState(0);
  const current = useRef({ path: null, list: null });
  if (current.current.path !== path) {
    current.current.list?.dispose();
    const onChange = () => render((turn) => turn + 1);
    current.current = { path, list: createList({ path, isNewestFirst, matches, onChange, before: current.current.list }) };
  }
  const { list } = current.current;
  useEffect(() => {
    list.load();
    return freshness.subscribe(() => list.load());
  }, [list]);
  useEffect(() => () => current.current.list.dispose(), []);
  useMessages(({ type, payload }) => type === "LEDGER_UPDATE" && list.receive(payload.entry), [list]);
  return list;
}

/* Columns. */

const text = (value, reason) => (value === null || value === undefined || value === "" ? html`<${Dash} reason=${reason} />` : html`<bdi title=${value}>${value}</bdi>`);

/** Returns a row's cost, or its saving. */
export function costText({ cached, saved_usd: saved, total_cost_usd: cost, billing }) {
  if (!cached) return `${moneyOrUnknown(cost)}${billing ? `, covered by a ${billing}` : ""}`;
  return Number(saved) ? `cached, saved ${money(saved)}` : "cached";
}

const GATEWAY = html`<span class="muted" title="A call through the gateway">gateway</span>`;

/** The flow of a call; a call through the gateway has none. On phones with its node or key, which have no room there. */
function flow(row) {
  if (row.flow_id === null) return row.key_name ? html`${GATEWAY}<span class="phone-only muted"> · <bdi>${row.key_name}</bdi></span>` : GATEWAY;
  const name = row.flow_name ? html`<bdi title=${row.flow_name}>${row.flow_name}</bdi>` : html`<${FlowName} id=${row.flow_id} />`;
  return row.node_id === null ? name : html`${name}<span class="phone-only muted"> · <bdi>${nodeLabel(row)}</bdi></span>`;
}

/** The name of the flow of a live row, which comes without it. */
function FlowName({ id }) {
  const name = useFlowNames()(id);
  return html`<bdi title=${name}>${name}</bdi>`;
}

function node(row) {
  if (row.node_id === null) return html`<${Dash} reason="no node" />`;
  const label = nodeLabel(row);
  return html`<bdi title=${label === row.node_id ? label : `${label} (${row.node_id})`}>${label}</bdi>${row.attempt > 1 && html`<span class="muted"> attempt ${row.attempt}</span>`}`;
}

/** A number of tokens, or the reason why there is none. */
export function tokens(row, n) {
  if (row.status === "PENDING") return html`<${Dash} reason="call in progress" />`;
  if (row.cached) return html`<${Dash} reason="cached response: no call was made" />`;
  if (isRefused(row)) return html`<${Dash} reason=${`refused by a ${row.refused}: no call was made`} />`;
  if (!isCounted(row)) return html`<${Dash} reason="the provider sent no token counts" />`;
  if (row.usage_source === "estimated") return html`<span title="estimated: the provider sent no token counts">~${count(n)}</span>`;
  return count(n);
}

function cost(row) {
  if (row.cached) return html`<span class="muted" title=${costText(row)}>cached</span>`;
  if (row.total_cost_usd === null && row.status === "PENDING") return html`<${Dash} reason="call in progress" />`;
  const unknown = row.cost_note ? `unknown cost: ${row.cost_note}` : "unknown cost";
  if (row.billing) return html`<span class="muted"><${Money} usd=${row.total_cost_usd} unknown=${unknown} title="covered by a subscription; by the price it would cost this" /></span>`;
  return html`<${Money} usd=${row.total_cost_usd} unknown=${unknown} />`;
}

const milliseconds = (ms, reason) => (ms === null || ms === undefined ? html`<${Dash} reason=${reason} />` : duration(ms));

function status(row) {
  const word = isRefused(row) ? html`<span class="status" data-kind="bad" data-status=${row.status}><span class="dot" aria-hidden="true"></span>refused</span>` : html`<${Status} status=${row.status} />`;
  return html`<span title=${row.error_message}>${word}${row.error_message && html` <span class="muted call-error">${row.error_message}</span>`}</span>`;
}

/** All columns in their order; `isDefault` ones are shown unless the user chose others. */
export const COLUMNS = [
  { name: "time", label: "Time", sort: "time", width: 11.5, isDefault: true, cell: (row, zone) => html`<time datetime=${row.timestamp} title=${fullMoment(row.timestamp, zone)}>${moment(row.timestamp, zone)}</time>` },
  { name: "flow", label: "Flow", width: 12, isDefault: true, cell: flow },
  { name: "node", label: "Node", width: 9, isDefault: true, cell: node },
  { name: "role", label: "Role", cell: (row) => text(row.agent_role, "no role") },
  { name: "model", label: "Model", width: 10, isDefault: true, cell: (row) => text(row.model_used, "no model") },
  { name: "provider", label: "Provider", width: 8, cell: (row) => text(row.provider, "no provider") },
  { name: "key", label: "Key", isDefault: true, width: 6, cell: (row) => text(row.key_name, "no key") },
  { name: "tags", label: "Tags", cell: (row) => text(row.tags?.split(",").join(", "), "no tags") },
  { name: "session", label: "Session", cell: (row) => text(row.session, "no session") },
  { name: "client", label: "Client", cell: (row) => text(row.client, "no client") },
  { name: "end_user", label: "End user", cell: (row) => text(row.end_user, "no end user") },
  { name: "project", label: "Project", cell: (row) => text(row.project, "no project") },
  { name: "run", label: "Run", cell: (row) => text(row.run_id, "no run") },
  { name: "input", label: "In", title: "Input tokens", sort: "input_tokens", number: true, width: 5.5, isDefault: true, cell: (row) => tokens(row, row.input_tokens) },
  { name: "cached_input", label: "Cached", title: "Input tokens read from the provider's cache", number: true, width: 6, cell: (row) => tokens(row, row.cached_input_tokens) },
  { name: "output", label: "Out", title: "Output tokens", sort: "output_tokens", number: true, width: 5, isDefault: true, cell: (row) => tokens(row, row.output_tokens) },
  { name: "cost", label: "Cost", sort: "cost", number: true, width: 9, isDefault: true, cell: cost },
  { name: "latency", label: "Latency", sort: "latency", number: true, width: 7, isDefault: true, cell: (row) => milliseconds(row.latency_ms, row.status === "PENDING" ? "call in progress" : "unknown latency") },
  { name: "first_token", label: "First token", number: true, width: 7, cell: (row) => milliseconds(row.first_token_ms, "not streamed") },
  { name: "status", label: "Status", width: 13, isDefault: true, cell: status },
];

/** The columns of a card on phones, whatever is chosen for tables. */
const CARD = ["time", "flow", "model", "input", "output", "cost", "latency", "status"];

/**
 * Returns the columns to show; `chosen` are names, or null for the default. Cells are plain elements where possible:
 * while the reader scrolls fast, hundreds of them are made in each frame.
 */
export function shownColumns(chosen, isPhone, zone) {
  const names = isPhone ? CARD : Array.isArray(chosen) ? ["time", ...chosen] : null;
  return COLUMNS.filter(({ name, isDefault }) => (names ? names.includes(name) : isDefault)).map((column) => ({ ...column, cell: (row) => column.cell(row, zone) }));
}
