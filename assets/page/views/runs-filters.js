/** Filters of the view "Runs": in the address, as chips, and the form that sets them. */

import { html, useEffect, useRef, useState } from "../vendor/preact.js";
import { get } from "../api.js";
import { duration, TRIGGERS } from "../format.js";
import { PeriodPicker } from "../period-picker.js";
import { setQuery, useFlowNames } from "../state.js";
import { useId } from "../ui.js";

const STATUSES = ["QUEUED", "RUNNING", "COMPLETED", "FAILED", "CANCELLED"];
const SEARCH_PAUSE_MS = 300;
const FLOWS_MAX = 1_000;
const BOUNDS = ["min_cost", "max_cost", "min_ms", "max_ms"];
const NAMES = ["flow_id", "status", "trigger", "q", ...BOUNDS];

export const listed = (query, name) => (query.get(name) ?? "").split(",").filter(Boolean);

/** Returns the parameters of `GET /api/runs` for an address and a period. */
export function parametersOf(query, { from, to }) {
  const filters = Object.fromEntries(NAMES.map((name) => [name, query.get(name)]));
  return { ...filters, from, to, sort: query.get("sort") };
}

export const hasFilters = (query) => NAMES.some((name) => query.get(name));

export const clearFilters = () => setQuery(Object.fromEntries(NAMES.map((name) => [name, null])));

/** Adds a value to a list in the address, or removes it. */
function toggle(query, name, value) {
  const before = listed(query, name);
  const after = before.includes(value) ? before.filter((one) => one !== value) : [...before, value];
  setQuery({ [name]: after.join(",") });
}

function Search({ query }) {
  const [text, setText] = useState(query.get("q") ?? "");
  const timer = useRef(0);
  // Back, forward and "Clear" change the address.
  useEffect(() => {
    clearTimeout(timer.current);
    setText(query.get("q") ?? "");
  }, [query.get("q")]);
  useEffect(() => () => clearTimeout(timer.current), []);
  const onInput = ({ target }) => {
    setText(target.value);
    clearTimeout(timer.current);
    timer.current = setTimeout(() => setQuery({ q: target.value.trim() }), SEARCH_PAUSE_MS);
  };
  return html`<input type="search" data-search data-testid="runs-search" aria-label="Search runs" placeholder="Flow, run ID or error" value=${text} onInput=${onInput} />`;
}

/** A number in the address, shown in another unit. */
function Bound({ query, name, label, unit, factor = 1 }) {
  const id = useId("bound");
  const stored = query.get(name);
  const value = stored === null || Number.isNaN(Number(stored)) ? "" : String(Number(stored) / factor);
  const onChange = ({ target }) => {
    if (target.validity.valid) setQuery({ [name]: target.value === "" ? null : String(Math.round(Number(target.value) * factor * 1e9) / 1e9) });
  };
  return html`<div class="field"><label for=${id}>${label} (${unit})</label><input id=${id} type="number" min="0" step="any" inputmode="decimal" value=${value} data-testid=${`filter-${name}`} onChange=${onChange} /></div>`;
}

function FlowField({ query }) {
  const id = useId("flow");
  const [flows, setFlows] = useState(null);
  useEffect(() => {
    get(`/api/flows?summary=true&limit=${FLOWS_MAX}`).then(({ items }) => setFlows(items), () => setFlows([]));
  }, []);
  const chosen = query.get("flow_id") ?? "";
  const sorted = [...(flows ?? [])].sort((a, b) => a.name.localeCompare(b.name));
  return html`
    <div class="field"><label for=${id}>Flow</label>
      <select id=${id} data-testid="filter-flow" onChange=${({ target }) => setQuery({ flow_id: target.value })}>
        <option value="" selected=${chosen === ""}>All flows</option>
        ${sorted.map((flow) => html`<option key=${flow.id} value=${flow.id} selected=${String(flow.id) === chosen}>${flow.name}</option>`)}
      </select>
    </div>
  `;
}

function Form({ query }) {
  return html`
    <div class="runs-filter-form form" data-testid="runs-filter-form">
      <div class="form-row"><${FlowField} query=${query} />
      <fieldset><legend>Trigger</legend>${Object.entries(TRIGGERS).map(([name, label]) => html`<label key=${name} class="check"><input type="checkbox" checked=${listed(query, "trigger").includes(name)} onChange=${() => toggle(query, "trigger", name)} />${label}</label>`)}</fieldset></div>
      <div class="form-row"><${Bound} query=${query} name="min_cost" label="Cost from" unit="$" /><${Bound} query=${query} name="max_cost" label="Cost up to" unit="$" /><${Bound} query=${query} name="min_ms" label="Duration from" unit="s" factor=${1000} /><${Bound} query=${query} name="max_ms" label="Duration up to" unit="s" factor=${1000} /></div>
    </div>
  `;
}

/** The text of each chip and the parameters that it stands for. */
function chipsOf(query, flowName) {
  const flow = query.get("flow_id");
  const chips = [
    flow && ["Flow", flowName(Number(flow)) ?? `flow ${flow}`, { flow_id: null }],
    ...listed(query, "trigger").map((name) => ["Trigger", TRIGGERS[name] ?? name, { trigger: listed(query, "trigger").filter((one) => one !== name).join(",") }]),
    query.get("q") && ["Search", query.get("q"), { q: null }],
    query.get("min_cost") && ["Cost from", `$${query.get("min_cost")}`, { min_cost: null }],
    query.get("max_cost") && ["Cost up to", `$${query.get("max_cost")}`, { max_cost: null }],
    query.get("min_ms") && ["Duration from", duration(Number(query.get("min_ms"))), { min_ms: null }],
    query.get("max_ms") && ["Duration up to", duration(Number(query.get("max_ms"))), { max_ms: null }],
  ];
  return chips.filter(Boolean);
}

/** The toolbar of the view, and the chips of the filters that are set. */
export function Filters({ query }) {
  const [isOpen, setOpen] = useState(false);
  const formId = useId("filters");
  const flowName = useFlowNames();
  const chips = chipsOf(query, flowName);
  const statuses = listed(query, "status");
  return html`
    <div class="section" data-testid="runs-filters">
      <div class="toolbar">
        <${Search} query=${query} />
        <${PeriodPicker} query=${query} />
        <button type="button" aria-expanded=${isOpen ? "true" : "false"} aria-controls=${formId} data-testid="more-filters" onClick=${() => setOpen(!isOpen)}>Filters</button>
      </div>
      <div id=${formId} hidden=${!isOpen}>${isOpen && html`<${Form} query=${query} />`}</div>
      <div class="toolbar" role="group" aria-label="Status">
        ${STATUSES.map((status) => html`<button key=${status} type="button" class="toggle" aria-pressed=${statuses.includes(status) ? "true" : "false"} data-testid=${`status-${status}`} onClick=${() => toggle(query, "status", status)}>${status[0]}${status.slice(1).toLowerCase()}</button>`)}
        ${chips.map(([name, text, changes]) => html`<span key=${name + text} class="chip" data-testid="chip">${name}: <bdi class="cut">${text}</bdi><button type="button" aria-label=${`Remove filter ${name}: ${text}`} onClick=${() => setQuery(changes)}>×</button></span>`)}
        ${(chips.length > 0 || statuses.length > 0) && html`<button type="button" class="quiet" data-testid="clear-filters" onClick=${clearFilters}>Clear filters</button>`}
      </div>
    </div>
  `;
}
