/**
 * The state of a run: plain data without DOM, from a response of the API and the messages after it. The functions
 * change the run that they are given, because a copy for each of many messages would be slow.
 */

const NODE_STATES = ["waiting", "running", "completed", "failed", "skipped", "cancelled"];
const NANO = 1e9;

/**
 * `nodes` by node id, `calls` (ledger rows) by row id. `totals` is null until the run has ended:
 * { ms, inputTokens, outputTokens, cost }, where a cost of null is unknown.
 */
const newRun = (runId = null, status = null) => ({
  runId,
  status,
  error: null,
  errorNodeId: null,
  startedAt: null,
  finishedAt: null,
  totals: null,
  nodes: new Map(),
  calls: new Map(),
});

export const isActive = (run) => run?.status === "QUEUED" || run?.status === "RUNNING";

/** Returns true if `resume` can continue the run. */
export const isResumable = (run) => run?.status === "FAILED" || run?.status === "CANCELLED";

/**
 * Returns a node of a run; it waits before its first message. `text` is its output so far, `isTextCut` is true if
 * its beginning was streamed before this page listened.
 */
export function nodeOf(run, nodeId) {
  if (!run.nodes.has(nodeId)) {
    run.nodes.set(nodeId, { nodeId, label: nodeId, state: "waiting", attempt: 1, startedAt: null, finishedAt: null, text: "", isTextCut: false, error: null, usage: null });
  }
  return run.nodes.get(nodeId);
}

/** Returns the state to show: a node that a completed run never reached is skipped. */
export function stateOf(run, nodeId) {
  const state = run.nodes.get(nodeId)?.state ?? "waiting";
  return state === "waiting" && run.status === "COMPLETED" ? "skipped" : state;
}

/** Returns the node to look at first: the failed one, else the first running one; null if there is none. */
export function focusOf(run) {
  const inState = (wanted) => [...run.nodes.values()].find(({ state }) => state === wanted)?.nodeId;
  return (run.status === "FAILED" ? run.errorNodeId : null) ?? inState("failed") ?? inState("running") ?? null;
}

/**
 * Returns the run of a response of `GET /api/runs/{id}` or `GET /api/flows/{id}/status`. From `before`, an earlier
 * state of the same run, it keeps streamed text and calls, which the response may lack.
 */
export function fromResponse(response, before = null) {
  const { runId, status, error = null, errorNodeId = null, startedAt = null, finishedAt = null } = response;
  const run = { ...newRun(runId, status), error, errorNodeId, startedAt, finishedAt };
  const known = before?.runId === runId ? before : null;
  for (const one of response.nodes ?? []) readNode(nodeOf(run, one.nodeId), one, known?.nodes.get(one.nodeId));
  if (known) run.calls = known.calls;
  for (const call of response.calls ?? []) recordCall(run, call);
  if (runId && !isActive(run)) run.totals = totalsOf(response, run);
  return run;
}

function readNode(node, response, before) {
  const state = response.status?.toLowerCase();
  node.label = response.label ?? node.nodeId;
  node.state = NODE_STATES.includes(state) ? state : "waiting";
  node.attempt = response.attempt || 1;
  node.startedAt = response.startedAt ?? null;
  node.finishedAt = response.finishedAt ?? null;
  node.error = response.error ?? null;
  const isStreaming = node.state === "running" && before?.state === "running" && before.attempt === node.attempt;
  node.text = isStreaming ? before.text : (response.output ?? response.resultPreview ?? "");
  node.isTextCut = node.state === "running" && (isStreaming ? before.isTextCut : true);
  if (node.state === "completed") node.usage = usageOf(response);
}

function totalsOf({ executionTimeMs, startedAt, finishedAt, inputTokens, outputTokens, cost, nodes }, run) {
  const ms = executionTimeMs ?? (startedAt && finishedAt ? Date.parse(finishedAt) - Date.parse(startedAt) : null);
  if (cost !== undefined) return { ms, inputTokens, outputTokens, cost };
  if (!nodes) return { ms };
  const usages = [...run.nodes.values()].flatMap((node) => node.usage ?? []);
  return { ms, inputTokens: sum(usages, "inputTokens"), outputTokens: sum(usages, "outputTokens"), cost: usages.some((usage) => usage.cost === null) ? null : sum(usages, "cost") };
}

/** Applies a message about any run; a newer run replaces `run`. Returns the run to show. */
export function advance(run, message) {
  const { runId } = message.payload;
  if (!runId) return run;
  // Run ids are version 7 UUIDs, so they sort by time.
  if (run.runId !== runId) {
    if (run.runId && runId < run.runId) return run;
    run = newRun(runId, "RUNNING");
  }
  apply(run, message);
  return run;
}

/** Applies a message about this run. Returns false if the message changes nothing. */
export function apply(run, { type, payload }) {
  const change = CHANGES[type];
  if (!change) return false;
  change(run, payload, payload.nodeId ? nodeOf(run, payload.nodeId) : null);
  return true;
}

const CHANGES = {
  __proto__: null,
  FLOW_STARTED(run, { timestamp }) {
    Object.assign(run, { status: "RUNNING", error: null, errorNodeId: null, totals: null, startedAt: run.startedAt ?? timestamp, finishedAt: null });
    // If the run is resumed, its unfinished nodes wait again.
    move(run, "failed", "waiting");
    move(run, "cancelled", "waiting");
  },
  NODE_STARTED(run, { attempt, label, timestamp }, node) {
    node.label = label ?? node.label;
    // A repeated message must not remove streamed text.
    if (node.state === "running" && node.attempt === attempt && node.text) return;
    Object.assign(node, { state: "running", attempt, startedAt: timestamp, finishedAt: null, text: "", isTextCut: false, error: null, usage: null });
  },
  NODE_OUTPUT(run, { delta }, node) {
    if (node.state === "running") node.text += delta;
  },
  NODE_COMPLETED(run, payload, node) {
    // The streamed text is whole; the preview is only its beginning.
    const isWhole = !node.isTextCut && node.text.startsWith(payload.resultPreview ?? "");
    Object.assign(node, { state: "completed", finishedAt: payload.timestamp, text: isWhole && node.text ? node.text : (payload.resultPreview ?? ""), isTextCut: false, error: null, usage: usageOf(payload) });
  },
  NODE_FAILED(run, { error, attempt, willRetry, timestamp }, node) {
    Object.assign(node, { state: willRetry ? "running" : "failed", attempt, finishedAt: willRetry ? null : timestamp, text: "", isTextCut: false, error });
  },
  LEDGER_UPDATE(run, { entry }) {
    recordCall(run, entry);
  },
  FLOW_COMPLETED(run, payload) {
    const { executionTimeMs: ms, inputTokens, outputTokens, cost = null, timestamp } = payload;
    // Nodes that still wait were skipped: see `stateOf`.
    Object.assign(run, { status: "COMPLETED", finishedAt: timestamp, totals: { ms, inputTokens, outputTokens, cost } });
  },
  FLOW_FAILED(run, { error, executionTimeMs, nodeId, timestamp }, node) {
    Object.assign(run, { status: "FAILED", error, errorNodeId: nodeId ?? run.errorNodeId, finishedAt: timestamp, totals: { ms: executionTimeMs } });
    if (node) Object.assign(node, { state: "failed", finishedAt: node.finishedAt ?? timestamp, error: node.error ?? error });
    move(run, "running", "cancelled", timestamp);
  },
  FLOW_CANCELLED(run, { executionTimeMs, timestamp }) {
    Object.assign(run, { status: "CANCELLED", finishedAt: timestamp, totals: { ms: executionTimeMs } });
    move(run, "running", "cancelled", timestamp);
  },
};

function move(run, from, to, finishedAt = null) {
  for (const node of run.nodes.values()) if (node.state === from) Object.assign(node, { state: to, finishedAt, text: "", error: null });
}

/**
 * Records a ledger row. The newest version of a row counts, and settled is newer than pending, so rows may arrive in
 * any order and more than once.
 */
function recordCall(run, call) {
  const before = run.calls.get(call.id);
  if (before && before.status !== "PENDING" && call.status === "PENDING") return;
  run.calls.set(call.id, call);
  sorted.delete(run);
}

const usageOf = ({ inputTokens, outputTokens, cost = null, latencyMs, cached = false }) => ({ inputTokens, outputTokens, cost, latencyMs, cached });

const sum = (items, key) => items.reduce((total, item) => total + (item[key] ?? 0), 0);

/* Calls. */

/** Results of `callsByNode`, until a call is recorded. */
const sorted = new WeakMap();

/** Returns the calls of a run by node id, each list in order of time. */
export function callsByNode(run) {
  if (sorted.has(run)) return sorted.get(run);
  const byNode = new Map();
  const calls = [...run.calls.values()].sort((a, b) => a.id - b.id);
  for (const call of calls) {
    const id = call.node_id;
    if (!byNode.has(id)) byNode.set(id, []);
    byNode.get(id).push(call);
  }
  sorted.set(run, byNode);
  return byNode;
}

/** Returns the index of the map item that a call is for, or null if there is none. */
export function itemOf({ operation_id: operation, node_id: nodeId }) {
  const end = /\[(\d+)\]$/.exec(operation ?? "");
  return end && nodeId !== null && operation.slice(0, end.index).endsWith(`:${nodeId}`) ? Number(end[1]) : null;
}

/** Counts the items of a map by the newest call of each: { done, open, failed }. */
export function itemCounts(run, nodeId) {
  const newest = new Map();
  for (const call of callsByNode(run).get(nodeId) ?? []) {
    const item = itemOf(call);
    if (item !== null && !(newest.get(item)?.id > call.id)) newest.set(item, call);
  }
  const counts = { done: 0, open: 0, failed: 0 };
  for (const { status } of newest.values()) counts[{ SUCCESS: "done", PENDING: "open" }[status] ?? "failed"] += 1;
  return counts;
}

/** Returns true if the call was refused before it left: no provider was called, and it cost nothing. */
export const isRefused = ({ refused }) => (refused ?? null) !== null;

/** Returns true if the token counts of a call are known. */
export const isCounted = (call) => call.status !== "PENDING" && call.usage_source !== "none";

/**
 * Sums calls: { calls, open, cost, unknown, inputTokens, outputTokens, isEstimated }. `cost` is the sum of the known
 * costs, or null if none is known; `unknown` counts ended calls without a known cost. Adds in whole nano-dollars, as
 * the ledger does.
 */
export function sumCalls(calls) {
  const sums = { calls: 0, open: 0, cost: 0, unknown: 0, inputTokens: 0, outputTokens: 0, isCounted: false, isEstimated: false };
  let known = 0;
  for (const call of calls) {
    sums.calls += 1;
    if (call.status === "PENDING") {
      sums.open += 1;
      continue;
    }
    if (call.total_cost_usd === null || call.total_cost_usd === undefined) sums.unknown += 1;
    else {
      known += 1;
      sums.cost += Math.round(Number(call.total_cost_usd) * NANO);
    }
    if (!isCounted(call)) continue;
    sums.isCounted = true;
    sums.isEstimated ||= call.usage_source === "estimated";
    sums.inputTokens += call.input_tokens ?? 0;
    sums.outputTokens += call.output_tokens ?? 0;
  }
  sums.cost = known || !sums.unknown ? sums.cost / NANO : null;
  return sums;
}

/** Returns the time from start to end of a node or an item in ms, or null if it has not ended. */
export function durationMs({ startedAt, finishedAt, latencyMs = null }) {
  if (startedAt && finishedAt) return Math.max(0, Date.parse(finishedAt) - Date.parse(startedAt));
  return latencyMs;
}
