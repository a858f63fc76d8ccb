/** The panel of one call: everything that the ledger has of it, and its stored request and response. */

import { html, useEffect, useRef, useState } from "../vendor/preact.js";
import { getIfAny } from "../api.js";
import { count, duration } from "../format.js";
import { address, setQuery, useData, useFlowNames, useMessages } from "../state.js";
import { Copy, CopyLine, Dialog, ErrorNote, Facts, Loading, Money, Section, Status, Time } from "../ui.js";
import { costText, FILTERS, isCounted, isRefused, tokens } from "./calls-rows.js";

const isKnown = (value) => value !== null && value !== undefined;

/** `row`: the row of the list, if it is there. `onStep(±1)` shows the next or previous row, or null. */
export default function CallPanel({ id, row: listed, onClose, onStep, isFirst, isLast }) {
  const { row: fetched, error, isMissing, reload } = useCall(id);
  // The list is newer while the call runs, the fetched row has names.
  const row = listed ? { ...fetched, ...listed } : fetched;
  const body = useRef(null);
  useEffect(() => {
    body.current?.closest(".dialog-body")?.scrollTo(0, 0);
  }, [id]);
  useKeys(onStep, isFirst, isLast);
  const link = () => location.origin + address("/calls", { call: id });
  const actions = html`
    <button type="button" class="icon-button" aria-label="Previous call" title="Previous call (k)" data-testid="call-previous" aria-disabled=${!onStep || isFirst || null} onClick=${() => onStep && !isFirst && onStep(-1)}>↑</button>
    <button type="button" class="icon-button" aria-label="Next call" title="Next call (j)" data-testid="call-next" aria-disabled=${!onStep || isLast || null} onClick=${() => onStep && !isLast && onStep(1)}>↓</button>
    <${Copy} text=${link} name="link to this call" label="Copy link" />
  `;
  return html`
    <${Dialog} side title=${`Call ${id}`} onClose=${onClose} actions=${actions} testid="call-panel">
      <div class="call-panel" ref=${body}>
        ${!row && (error ? html`<${ErrorNote} title="Cannot load the call" error=${error} onRetry=${reload} />` : isMissing ? html`<p>This call does not exist.</p>` : html`<${Loading} />`)}
        ${row && html`<${Call} key=${id} row=${row} hasBody=${fetched?.id === id ? fetched.has_body : undefined} />`}
      </div>
    <//>
  `;
}

/** Fetches a call, and keeps it up to date. */
function useCall(id) {
  const [state, setState] = useState({ id, row: null });
  const [turn, setTurn] = useState(0);
  useEffect(() => {
    let isCurrent = true;
    getIfAny(`/api/ledger/${id}`).then(
      (row) => isCurrent && setState({ id, row, isMissing: row === null }),
      (error) => isCurrent && setState({ id, row: null, error }),
    );
    return () => (isCurrent = false);
  }, [id, turn]);
  useMessages(({ type, payload }) => {
    if (type !== "LEDGER_UPDATE" || payload.entry.id !== id) return;
    setState((before) => ({ ...before, row: { ...before.row, ...payload.entry } }));
    // A body is stored after the call has ended.
    if (payload.entry.status !== "PENDING") setTimeout(() => setTurn((now) => now + 1), 300);
  }, [id]);
  return { ...(state.id === id ? state : { row: null }), reload: () => setTurn((now) => now + 1) };
}

/** j and k, or the arrows beside each other, step through the list. */
function useKeys(onStep, isFirst, isLast) {
  useEffect(() => {
    if (!onStep) return undefined;
    const press = (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest?.("input, textarea, select, pre")) return;
      const step = { __proto__: null, j: 1, ArrowRight: 1, k: -1, ArrowLeft: -1 }[event.key];
      if (!step || (step < 0 ? isFirst : isLast)) return;
      event.preventDefault();
      onStep(step);
    };
    document.addEventListener("keydown", press);
    return () => document.removeEventListener("keydown", press);
  }, [onStep, isFirst, isLast]);
}

/** A value; a press shows all calls with the same one. */
function Filterable({ name, value, children = null }) {
  if (!isKnown(value) || value === "") return null;
  const { label } = FILTERS.find((filter) => filter.name === name);
  return html`<button type="button" class="value-link" title=${`Show all calls with this ${label.toLowerCase()}`} data-testid=${`filter-by-${name}`} onClick=${() => setQuery({ [name]: String(value), call: null }, { replace: false })}><bdi>${children ?? value}</bdi></button>`;
}

function Call({ row, hasBody }) {
  const flowName = useFlowNames();
  const filterable = (name, value, text) => isKnown(value) && value !== "" && html`<${Filterable} name=${name} value=${value}>${text}<//>`;
  const name = row.flow_id === null ? null : (row.flow_name ?? flowName(row.flow_id));
  return html`
    <div class="call-state">
      <${Status} status=${row.status} testid="call-status" />
      ${isRefused(row) && html`<span class="badge">refused by a ${row.refused}</span>`}
      ${row.cached && html`<span class="badge">from the cache</span>`}
      ${row.attempt > 1 && html`<span class="badge">attempt ${row.attempt}</span>`}
      <strong class="call-cost">${row.cached ? costText(row) : html`<${Money} usd=${row.total_cost_usd} unknown=${row.status === "PENDING" ? "call in progress" : "unknown cost"} />`}</strong>
      ${isKnown(row.latency_ms) && html`<span>${duration(row.latency_ms)}</span>`}
    </div>
    ${row.error_message && html`<div class="call-fault"><pre tabindex="0" role="group" aria-label="Error" data-testid="call-error">${row.error_message}</pre><${Copy} text=${row.error_message} name="error" /></div>`}
    <${Facts} testid="call-facts" facts=${[
      ["Time", html`<${Time} at=${row.timestamp} />`],
      ["Model", filterable("model", row.model_used)],
      ["Provider", filterable("provider", row.provider)],
      ["Flow", row.flow_id !== null && html`<a href=${`/flows/${row.flow_id}`}><bdi>${name}</bdi></a> <${Filterable} name="flow_id" value=${row.flow_id}>calls<//>`],
      ["Node", row.node_id !== null && html`${filterable("node", row.node_id, row.node_label ?? row.node_id)}`],
      ["Role", filterable("role", row.agent_role)],
      ["Run", row.run_id && html`<a href=${`/runs/${row.run_id}`} data-testid="ledger-run">Open the run</a> <${Filterable} name="run_id" value=${row.run_id}>calls<//>`],
    ].map(([label, value]) => [label, value || null])} />
    <${Usage} row=${row} />
    <${Costs} row=${row} />
    <${Attribution} row=${row} filterable=${filterable} />
    <${Body} id=${row.id} row=${row} hasBody=${hasBody} />
    <${Identifiers} row=${row} />
  `;
}

function Usage({ row }) {
  const counted = isCounted(row);
  const part = (n) => (counted && isKnown(n) ? count(n) : null);
  return html`
    <${Section} title="Tokens and time" className="call-part">
      <${Facts} facts=${[
        ["Input tokens", tokens(row, row.input_tokens)],
        ["Output tokens", tokens(row, row.output_tokens)],
        ["Read from the provider's cache", part(row.cached_input_tokens)],
        ["Written to the provider's cache", part(row.cache_write_tokens)],
        ["of these for 1 hour", part(row.cache_write_1h_tokens)],
        ["Reasoning tokens", part(row.reasoning_tokens)],
        ["Counts from", counted ? { provider: "the provider", estimated: "an estimate" }[row.usage_source] ?? row.usage_source : null],
        ["Latency", isKnown(row.latency_ms) ? duration(row.latency_ms) : null],
        ["First token", isKnown(row.first_token_ms) ? `after ${duration(row.first_token_ms)}` : null],
        ["Output speed", speed(row)],
      ]} />
    <//>
  `;
}

/** Returns tokens per second after the first token. */
function speed(row) {
  const ms = row.latency_ms - (row.first_token_ms ?? NaN);
  return isCounted(row) && row.output_tokens > 1 && ms > 0 ? `${count(Math.round((row.output_tokens / ms) * 1000))} tokens/s` : null;
}

const SOURCES = { __proto__: null, price: "our price × tokens", provider: "stated by the provider" };

function Costs({ row }) {
  const usd = (value) => (isKnown(value) ? html`<${Money} usd=${value} />` : null);
  return html`
    <${Section} title="Cost" className="call-part">
      <${Facts} testid="call-costs" facts=${[
        ["Cost", row.cached ? costText(row) : html`<${Money} usd=${row.total_cost_usd} unknown=${row.status === "PENDING" ? "call in progress" : "unknown cost"} />`],
        ["Source", SOURCES[row.cost_source] ?? null],
        ["By our price", usd(row.price_cost_usd)],
        ["Stated by the provider", usd(row.provider_cost_usd)],
        ["By a price added later", usd(row.corrected_cost_usd)],
        ["Saved by the cache", usd(row.saved_usd)],
        ["Billing", row.billing ? `covered by a ${row.billing}` : null],
      ]} />
      ${isKnown(row.price_id) && html`<${Price} id=${row.price_id} />`}
      ${row.cost_note && html`<p class="muted" data-testid="call-cost-note">${row.cost_note}</p>`}
    <//>
  `;
}

const PRICE_NAMES = [["input", "Input"], ["cache_read", "Cached input"], ["cache_write", "Cache write"], ["cache_write_1h", "Cache write, 1 hour"], ["output", "Output"], ["reasoning", "Reasoning"]];

/** The price of the calculation, fetched when it is opened. */
function Price({ id }) {
  const [isOpen, setOpen] = useState(false);
  const { data, error, reload } = useData(isOpen ? `/api/prices/${id}` : null);
  const rates = data?.usd_per_mtok ?? {};
  return html`
    <details class="call-price" onToggle=${({ target }) => setOpen(target.open)} data-testid="call-price">
      <summary>Price ${id}</summary>
      ${error && html`<${ErrorNote} title="Cannot load the price" error=${error} onRetry=${reload} />`}
      ${data && html`
        <p class="muted">Dollars for a million tokens of ${data.provider} / ${data.model}, from ${data.source}${data.tiers?.length ? "; other prices for long prompts" : ""}.</p>
        <${Facts} facts=${[...PRICE_NAMES.map(([key, label]) => [label, isKnown(rates[key]) ? html`<${Money} usd=${rates[key]} />` : null]), ["For each request", Number(data.usd_per_request) ? html`<${Money} usd=${data.usd_per_request} />` : null]]} />
      `}
    </details>
  `;
}

function Attribution({ row, filterable }) {
  const facts = [
    ["Key", filterable("key", row.key_name)],
    ["Tags", row.tags ? html`<span class="call-tags">${row.tags.split(",").map((tag) => html`<${Filterable} key=${tag} name="tag" value=${tag} />`)}</span>` : null],
    ["Client", filterable("client", row.client)],
    ["Session", filterable("session", row.session)],
    ["End user", filterable("end_user", row.end_user)],
    ["Project", filterable("project", row.project)],
  ].filter(([, value]) => value);
  if (facts.length === 0) return null;
  return html`<${Section} title="Attribution" className="call-part"><${Facts} facts=${facts} /><//>`;
}

function Identifiers({ row }) {
  const ids = [
    ["Call ID", String(row.id)],
    ["Run ID", row.run_id],
    ["Operation", row.operation_id],
    ["Prompt SHA-256", row.prompt_hash],
  ].filter(([, value]) => value);
  return html`<${Section} title="Identifiers" className="call-part"><dl class="call-ids">${ids.map(([label, value]) => html`<div key=${label}><dt>${label}</dt><dd><${CopyLine} text=${value} name=${label} /></dd></div>`)}</dl><//>`;
}

/** The stored request and response; their code is loaded only if there are some. */
function Body({ id, row, hasBody }) {
  const [Shown, setShown] = useState(null);
  useEffect(() => {
    if (hasBody) import("./call-body.js").then((module) => setShown(() => module.default), () => setShown(() => null));
  }, [hasBody]);
  if (hasBody) return Shown && html`<${Shown} id=${id} />`;
  if (hasBody === undefined || row.status === "PENDING") return null;
  return html`<p class="muted" data-testid="no-body">The request and the response of this call are not stored. To store those of new calls, set <code>bodies_days</code> under <code>[retention]</code> in the configuration file.</p>`;
}

