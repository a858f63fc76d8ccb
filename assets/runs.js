/** The state of a run after each message: plain data, no DOM. */

import { itemOf } from "./calls.js";

/** Limits streamed text; its end is kept. */
const TAIL_CHARS = 500;
const NODE_STATES = ["waiting", "running", "completed", "failed", "skipped"];

export const newRun = (runId = null, status = null) => ({ runId, status, error: null, totals: null, nodes: new Map() });

export const isActive = (run) => run.status === "QUEUED" || run.status === "RUNNING";

/** Returns the state of a node of a run; "waiting" before its first message. */
export function nodeOf(run, nodeId) {
  if (!run.nodes.has(nodeId)) run.nodes.set(nodeId, { state: "waiting", attempt: 1, text: "", error: null, usage: null, items: new Map() });
  return run.nodes.get(nodeId);
}

/**
 * Records the ledger row of a map's item. The newest row of an item counts, and settled is newer than pending, so
 * rows may arrive in any order and more than once.
 */
export function recordCall(run, call) {
  const item = itemOf(call);
  if (item === null) return;
  const { items } = nodeOf(run, call.node_id);
  const before = items.get(item);
  if (before && (before.id > call.id || (before.id === call.id && call.status === "PENDING"))) return;
  items.set(item, { id: call.id, status: call.status });
}

/** Counts the items of a map that are done, open and failed. */
export function itemCounts({ items }) {
  const counts = { done: 0, open: 0, failed: 0 };
  for (const { status } of items.values()) counts[{ SUCCESS: "done", PENDING: "open" }[status] ?? "failed"] += 1;
  return counts;
}

/** Returns the state to show: a node that a completed run never reached is skipped. */
export function stateOf(run, nodeId) {
  const { state } = nodeOf(run, nodeId);
  return state === "waiting" && run.status === "COMPLETED" ? "skipped" : state;
}

/** Returns the run from a response of `GET /api/flows/{id}/status`. */
export function fromStatus({ runId, status, nodes, error, startedAt, finishedAt }) {
  const run = { ...newRun(runId, status), error };
  for (const nodeStatus of nodes ?? []) {
    const state = nodeStatus.status?.toLowerCase();
    const node = nodeOf(run, nodeStatus.nodeId);
    node.state = NODE_STATES.includes(state) ? state : "waiting";
    node.attempt = nodeStatus.attempt || 1;
    node.text = nodeStatus.resultPreview ?? "";
    node.error = nodeStatus.error ?? null;
    if (state === "completed") node.usage = usageOf(nodeStatus);
  }
  if (runId && !isActive(run) && startedAt && finishedAt) {
    const usages = [...run.nodes.values()].flatMap((node) => node.usage ?? []);
    run.totals = {
      ms: Date.parse(finishedAt) - Date.parse(startedAt),
      inputTokens: sum(usages, "inputTokens"),
      outputTokens: sum(usages, "outputTokens"),
      cost: usages.some(({ cost }) => cost === null) ? null : sum(usages, "cost"),
    };
  }
  return run;
}

/** Returns the run after a message. A newer run replaces `run`. */
export function advance(run, { type, payload }) {
  const { runId, nodeId } = payload;
  if (!runId) return run;
  // Run ids are version 7 UUIDs, so they sort by time.
  if (run.runId !== runId) {
    if (run.runId && runId < run.runId) return run;
    run = newRun(runId, "RUNNING");
  }
  CHANGES[type]?.(run, payload, nodeId ? nodeOf(run, nodeId) : null);
  return run;
}

const CHANGES = {
  __proto__: null,
  FLOW_STARTED(run) {
    Object.assign(run, { status: "RUNNING", error: null, totals: null });
    stop(run, "failed"); // If the run is resumed, failed nodes wait again.
  },
  NODE_STARTED(run, { attempt }, node) {
    Object.assign(node, { state: "running", attempt, text: "", error: null, usage: null });
  },
  NODE_OUTPUT(run, { delta }, node) {
    if (node.state === "running") node.text = (node.text + delta).slice(-TAIL_CHARS);
  },
  NODE_COMPLETED(run, payload, node) {
    Object.assign(node, { state: "completed", text: payload.resultPreview ?? "", error: null, usage: usageOf(payload) });
  },
  NODE_FAILED(run, { error, attempt, willRetry }, node) {
    Object.assign(node, { state: willRetry ? "running" : "failed", attempt, text: "", error });
  },
  LEDGER_UPDATE(run, { entry }) {
    recordCall(run, entry);
  },
  FLOW_COMPLETED(run, payload) {
    run.status = "COMPLETED"; // Nodes that still wait were skipped: see `stateOf`.
    run.totals = { ms: payload.executionTimeMs, ...usageOf(payload) };
  },
  FLOW_FAILED(run, { error, executionTimeMs }, node) {
    Object.assign(run, { status: "FAILED", error, totals: { ms: executionTimeMs } });
    if (node) Object.assign(node, { state: "failed", error: node.error ?? error });
    stop(run, "running");
  },
  FLOW_CANCELLED(run, { executionTimeMs }) {
    Object.assign(run, { status: "CANCELLED", totals: { ms: executionTimeMs } });
    stop(run, "running");
  },
};

function stop(run, state) {
  for (const node of run.nodes.values()) if (node.state === state) Object.assign(node, { state: "waiting", text: "", error: null });
}

const usageOf = ({ inputTokens, outputTokens, cost = null, latencyMs, cached = false }) => ({
  inputTokens,
  outputTokens,
  cost,
  latencyMs,
  cached,
});

const sum = (items, key) => items.reduce((total, item) => total + (item[key] ?? 0), 0);
