/** Filters of calls: their names in the address and in the API, and which rows match them. No DOM. */

const listed = (text) => (text ?? "").split(",").filter(Boolean);
const same = (of) => (row, wanted) => String(of(row) ?? "") === wanted;

/**
 * `name` in the address and in the API. `group`: the name in `group_by` that lists the values. `matches(row, value)`
 * is undefined if only the server knows. `kind`: "several" (values separated by commas), "number" or "text".
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
];

export const STATUSES = ["PENDING", "SUCCESS", "FAILED", "TIMEOUT", "CANCELLED", "UNKNOWN"];
/** All calls that ended without a response. */
export const FAILED = "FAILED,TIMEOUT,CANCELLED,UNKNOWN";

/** Names to sort by, as the API calls them. */
export const SORTS = ["time", "cost", "latency", "input_tokens", "output_tokens"];

const isKnown = (value) => value !== null && value !== undefined;

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
  if (filter.unit) return filter.unit === "$" ? `$${value}` : `${value} ${filter.unit}`;
  return value;
}

/** Returns true if the call was refused before it left: no provider was called, and it cost nothing. */
export const isRefused = ({ refused }) => isKnown(refused);
/** Returns false if the row's token counts mean nothing. */
export const isCounted = (row) => row.status !== "PENDING" && !row.cached && !isRefused(row) && row.usage_source !== "none";
