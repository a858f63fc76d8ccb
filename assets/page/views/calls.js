/** The view "Calls": the ledger's rows with filters, order and live updates, all of it in the address. */

import { html, useEffect, useMemo, useRef, useState } from "../vendor/preact.js";
import { currentToken, getBlob } from "../api.js";
import { count, excludedCalls, isCostUnknown, plural, short } from "../format.js";
import { PeriodPicker, usePeriod } from "../period-picker.js";
import { address, setQuery, settings, useData, useFlowNames, useMessages, useStore, useThrottled } from "../state.js";
import { Button, Empty, ErrorNote, Loading, Menu, Money, Page, showError } from "../ui.js";
import { TableEnd, VirtualTable } from "../virtual-table.js";
import { chipText, FAILED, FILTERS, filtersOf, matcher, parametersOf, shownColumns, sortOf, useCallList } from "./calls-rows.js";

const SEARCH_PAUSE_MS = 300;
const SUMS_PAUSE_MS = 4_000;
const keyOf = (row) => row.id;
const dataOf = (row) => ({ "data-entry-id": row.id, "data-status": row.status });

/** Parts that are loaded when they are needed. */
const PARTS = {
  panel: () => import("./call-panel.js"),
  filter: () => import("./calls-filter-dialog.js"),
  columns: () => import("./calls-columns-dialog.js"),
};

function Lazy({ part, ...rest }) {
  const [Part, setPart] = useState(null);
  useEffect(() => {
    PARTS[part]().then((module) => setPart(() => module.default), (error) => showError("Cannot load a part of the page", error));
  }, [part]);
  return Part && html`<${Part} ...${rest} />`;
}

export default function Calls({ query }) {
  const period = usePeriod(query);
  const parameters = parametersOf(query, period);
  const sort = sortOf(query);
  const order = { sort: sort.by === "time" ? null : sort.by, order: sort.order === "desc" ? null : sort.order };
  const [dialog, setDialog] = useState(null);
  const close = () => setDialog(null);
  const isFiltered = filtersOf(query).length > 0 || query.has("q");
  return html`
    <${Page} title="Calls" actions=${html`<${PeriodPicker} query=${query} />`}>
      <div class="calls-head">
        <div class="toolbar">
          <${Search} query=${query} />
          <${QuickFilters} query=${query} sort=${sort} />
          <${Menu} label="Add filter" testid="add-filter" items=${FILTERS.filter(({ kind }) => kind !== "flag").map((filter) => ({ label: filter.label, testid: `add-filter-${filter.name}`, onClick: () => setDialog({ filter }) }))} />
          <span class="toolbar-end">
            <${Button} kind="quiet wide-only" data-testid="choose-columns" onClick=${() => setDialog({ columns: true })}>Columns<//>
            <${Csv} path=${address("/api/ledger.csv", { ...parameters, ...order })} />
          </span>
        </div>
        <${Chips} query=${query} onEdit=${(filter) => setDialog({ filter })} />
        <${SumsLine} parameters=${parameters} />
      </div>
      <${List} key="list" ...${{ query, period, parameters, sort, order, isFiltered }} />
    <//>
    ${dialog?.filter && html`<${Lazy} part="filter" key=${dialog.filter.name} filter=${dialog.filter} value=${query.get(dialog.filter.name) ?? ""} parameters=${parameters} onClose=${close} />`}
    ${dialog?.columns && html`<${Lazy} part="columns" onClose=${close} />`}
  `;
}

/** The table and the panel of the open call. */
function List({ query, period, parameters, sort, order, isFiltered }) {
  const path = address("/api/ledger", { names: true, ...parameters, ...order });
  const matches = useMemo(() => (query.has("q") ? null : matcher(query, period)), [path]);
  const list = useCallList({ path, isNewestFirst: sort.by === "time" && sort.order === "desc", matches });
  const { callColumns, zone } = useStore(settings);
  const isPhone = useIsPhone();
  const columns = useMemo(() => shownColumns(callColumns, isPhone, zone), [callColumns, isPhone, zone]);
  const open = query.get("call") === null ? null : Number(query.get("call"));
  const show = (id, replace) => setQuery({ call: id }, { replace });
  const onClose = () => {
    show(null, true);
    // The panel may have moved on to another call since it was opened.
    requestAnimationFrame(() => document.querySelector(`tr[data-key="${open}"] .row-link`)?.focus());
  };
  const index = open === null ? -1 : list.rows.findIndex(({ id }) => id === open);
  const onStep = index < 0 ? null : (step) => {
    const row = list.rows[index + step];
    if (row) show(row.id, true);
    if (index + step > list.rows.length - 5) list.loadMore();
  };
  const onSort = ({ by, order: direction }) => {
    setQuery({ sort: by === "time" ? null : by, order: direction === "desc" ? null : direction });
    scrollTo({ top: 0, behavior: "instant" });
  };
  // The server examines a limited number of rows for a page. If it found few, it goes on only if the reader wants it.
  const isPaused = list.isLastPageShort && list.next !== null;
  const panel = open !== null && html`<${Lazy} part="panel" id=${open} row=${list.find(open)} onClose=${onClose} onStep=${onStep} isFirst=${index <= 0} isLast=${index === list.rows.length - 1} />`;
  if (list.error && list.isStale) return html`<${ErrorNote} title="Cannot load the calls" error=${list.error} onRetry=${list.load} />${panel}`;
  if (list.isStale && list.rows.length === 0) return html`<${Loading} />${panel}`;
  const isEmpty = list.rows.length === 0 && list.newsCount() === 0 && !isPaused;
  if (isEmpty) return html`<${NoCalls} isFiltered=${isFiltered} period=${period} query=${query} />${panel}`;
  const end = html`<${TableEnd} word="call" shown=${list.rows.length} hasMore=${list.next !== null} isLoading=${list.isLoading && !list.isStale && list.rows.length > 0 && list.next !== null} error=${list.error} onRetry=${list.next === null ? list.load : list.loadMore} searchLabel=${isPaused ? "Search older calls" : null} onSearch=${list.loadMore} />`;
  return html`
    <${VirtualTable}
      label="Calls" className=${`calls ${list.isStale ? "stale" : ""}`} testid="calls" rowTestid="ledger-row" columns=${columns} rows=${list.rows} keyOf=${keyOf} dataOf=${dataOf}
      hrefOf=${(row) => address("/calls", { ...Object.fromEntries(query), call: row.id })}
      onOpen=${(row) => show(row.id, false)} open=${open} sort=${sort} onSort=${onSort}
      news=${list.newsCount()} newsWord="call" isNewsQuiet=${list.areNewsExact} onNews=${list.showNews}
      onMore=${list.next !== null && !list.isLoading && !list.error && !isPaused ? list.loadMore : null} footer=${end}
    />
    ${panel}
  `;
}

/** Returns whether the window is as narrow as a phone, where rows are cards. */
function useIsPhone() {
  const [media] = useState(() => matchMedia("(width < 48rem)"));
  const [isPhone, setPhone] = useState(media.matches);
  useEffect(() => {
    const change = () => setPhone(media.matches);
    media.addEventListener("change", change);
    return () => media.removeEventListener("change", change);
  }, []);
  return isPhone;
}

function Search({ query }) {
  const field = useRef(null);
  const timer = useRef(0);
  const text = query.get("q") ?? "";
  const [typed, setTyped] = useState(text);
  useEffect(() => setTyped(text), [text]);
  useEffect(() => () => clearTimeout(timer.current), []);
  const isWanted = query.get("focus") === "search";
  useEffect(() => {
    if (!isWanted) return;
    setQuery({ focus: null });
    // After the heading, which gets the focus when the view changes.
    setTimeout(() => field.current?.focus(), 50);
  }, [isWanted]);
  const apply = (value) => {
    clearTimeout(timer.current);
    setQuery({ q: value.trim() });
  };
  const onInput = ({ target }) => {
    setTyped(target.value);
    clearTimeout(timer.current);
    timer.current = setTimeout(() => apply(target.value), SEARCH_PAUSE_MS);
  };
  return html`<input ref=${field} type="search" data-search data-testid="calls-search" aria-label="Search calls" placeholder="Search flow, node, model, key, error…" autocomplete="off" spellcheck=${false} value=${typed} onInput=${onInput} onKeyDown=${(event) => event.key === "Enter" && apply(typed)} />`;
}

/** Buttons for the filters and orders that are needed most. */
function QuickFilters({ query, sort }) {
  const toggles = [
    ["Failed", query.get("status") === FAILED, { status: FAILED }, { status: null }],
    ["Most expensive", sort.by === "cost" && sort.order === "desc", { sort: "cost", order: null }, { sort: null }],
    ["Slowest", sort.by === "latency" && sort.order === "desc", { sort: "latency", order: null }, { sort: null }],
    ["Cached", query.get("cached") === "true", { cached: "true" }, { cached: null }],
    ["Unknown cost", query.get("cost") === "unknown", { cost: "unknown" }, { cost: null }],
  ];
  return html`
    <span class="quick-filters" role="group" aria-label="Quick filters">
      ${toggles.map(([label, isOn, on, off]) => html`<button key=${label} type="button" aria-pressed=${String(isOn)} data-testid=${`quick-${label.toLowerCase().replace(" ", "-")}`} onClick=${() => setQuery(isOn ? off : on)}>${label}</button>`)}
    </span>
  `;
}

function Chips({ query, onEdit }) {
  const flowName = useFlowNames();
  const filters = filtersOf(query);
  if (filters.length === 0) return null;
  const clear = () => setQuery(Object.fromEntries(filters.map(({ filter }) => [filter.name, null])));
  return html`
    <ul class="chips" aria-label="Filters">
      ${filters.map(({ filter, value }) => html`
        <li key=${filter.name} class="chip" data-testid="filter-chip" data-filter=${filter.name}>
          <button type="button" class="chip-text" title="Change this filter" onClick=${() => onEdit(filter)} disabled=${filter.kind === "flag"}>${filter.label}: <bdi>${chipText(filter, value, flowName)}</bdi></button>
          <button type="button" aria-label=${`Remove the filter ${filter.label}`} data-testid="remove-filter" onClick=${() => setQuery({ [filter.name]: null })}>×</button>
        </li>
      `)}
      ${filters.length > 1 && html`<li><button type="button" class="quiet" data-testid="clear-filters" onClick=${clear}>Clear all</button></li>`}
    </ul>
  `;
}

/** The sums of all calls that match, also of those that are not loaded. */
function SumsLine({ parameters }) {
  const { data, error, isStale, reload } = useData(address("/api/ledger/summary", { group_by: "status", ...parameters }));
  const soon = useThrottled(reload, SUMS_PAUSE_MS);
  useMessages(({ type }) => type === "LEDGER_UPDATE" && soon(), []);
  if (error) return html`<p class="calls-sums muted">Sums are not available: ${error.message}</p>`;
  if (!data) return html`<p class="calls-sums muted">…</p>`;
  const { total } = data;
  const excluded = excludedCalls(total).join(", ");
  return html`
    <p class=${`calls-sums ${isStale ? "stale" : ""}`} data-testid="calls-sums">
      <strong>${plural(total.calls, "call")}</strong>
      ${total.failed > 0 && html`<span>${count(total.failed)} failed</span>`}
      ${total.pending > 0 && html`<span>${count(total.pending)} in progress</span>`}
      <span><strong><${Money} usd=${isCostUnknown(total) ? null : total.total_cost_usd} unknown=${excluded} /></strong>${excluded && html` <span class="muted">+ ${excluded}</span>`}</span>
      <span title=${`${count(total.input_tokens)} input tokens, ${count(total.output_tokens)} output tokens`}>${short(total.input_tokens)} tokens in, ${short(total.output_tokens)} out</span>
      ${total.cached_calls > 0 && html`<span>${plural(total.cached_calls, "cached response")}</span>`}
    </p>
  `;
}

/** Saves the CSV of exactly the rows that match, in their order. */
function Csv({ path }) {
  const label = html`<span class="wide-only">Download </span>CSV`;
  // A link cannot send a token.
  if (!currentToken()) return html`<a class="button" href=${path} download="ledger.csv" data-testid="ledger-csv">${label}</a>`;
  const save = async () => {
    try {
      const blob = await getBlob(path);
      (await import("../copy.js")).saveFile("ledger.csv", blob);
    } catch (error) {
      showError("Cannot download the calls", error);
    }
  };
  return html`<${Button} data-testid="ledger-csv" onClick=${save}>${label}<//>`;
}

function NoCalls({ isFiltered, period, query }) {
  if (isFiltered) {
    const clear = () => setQuery({ ...Object.fromEntries(filtersOf(query).map(({ filter }) => [filter.name, null])), q: null });
    return html`<${Empty} title="No calls match." testid="ledger-empty"><p>Period: ${period.label.toLowerCase()}.</p><${Button} onClick=${clear}>Clear filters<//><//>`;
  }
  const isAllTime = period.period.name === "all";
  return html`
    <${Empty} title=${isAllTime ? "No calls yet." : `No calls in this period (${period.label.toLowerCase()}).`} testid="ledger-empty">
      <p>Each call of a flow, and each call of a client through the gateway, becomes a row here.</p>
      <p class="buttons">${!isAllTime && html`<${Button} onClick=${() => setQuery({ period: "all", from: null, to: null })}>Show all time<//>`}<a class="button" href="/connect">Connect a client</a><a class="button" href="/flows">Run a flow</a></p>
    <//>
  `;
}
