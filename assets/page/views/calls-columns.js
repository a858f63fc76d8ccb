/** The columns of the view "Calls". */

import { html } from "../vendor/preact.js";
import { count, duration, fullMoment, moment, money, moneyOrUnknown } from "../format.js";
import { useFlowNames } from "../state.js";
import { Dash, Money, Status } from "../ui.js";
import { isCounted, isRefused } from "./calls-filters.js";

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
  return row.node_id === null ? name : html`${name}<span class="phone-only muted"> · <bdi>${row.node_label ?? row.node_id}</bdi></span>`;
}

/** The name of the flow of a live row, which comes without it. */
function FlowName({ id }) {
  const name = useFlowNames()(id);
  return html`<bdi title=${name}>${name}</bdi>`;
}

function node(row) {
  if (row.node_id === null) return html`<${Dash} reason="no node" />`;
  const label = row.node_label ?? row.node_id;
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
