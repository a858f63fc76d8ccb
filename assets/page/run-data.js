/** A run's data while it is shown: the response of the API, and the state after each message. */

import { useEffect, useRef, useState } from "./vendor/preact.js";
import * as api from "./api.js";
import { useData, useMessages, useThrottled } from "./state.js";
import { apply, fromResponse } from "./run-state.js";

/** Limits how often an active run is fetched for its prompts and outputs. */
const REFETCH_PAUSE_MS = 1_500;
/** After a slow answer, the pause is longer by this factor. */
const REST_FACTOR = 10;
/** Messages until then are drawn together: a reader cannot follow more. */
const DRAW_PAUSE_MS = 100;
const DRAW_PAUSE_LARGE_MS = 250;
/** A run with more calls takes longer to draw. */
const CALLS_LARGE = 100;
const CLOCK_MS = 250;

/**
 * Returns { detail, run, error, isDeleted, reload }: `detail` is the response, `run` its state with the messages since.
 * Both are null until the first response.
 */
export function useRun(id) {
  const { data, error, isLoading, tookMs, reload } = useData(`/api/runs/${encodeURIComponent(id)}`);
  const [, drawAgain] = useState(0);
  const [isDeleted, setDeleted] = useState(false);
  const own = useRef({ run: null, detail: null, messages: [] }).current;
  const draw = useThrottled(() => drawAgain((turn) => turn + 1), own.run?.calls.size > CALLS_LARGE ? DRAW_PAUSE_LARGE_MS : DRAW_PAUSE_MS);
  if (data && data !== own.detail) {
    const isFirst = !own.run;
    own.detail = data;
    own.run = fromResponse(data, own.run);
    // The response may be older than messages that came while it was on its way. Later states already have the text.
    for (const message of own.messages) if (isFirst || message.type !== "NODE_OUTPUT") apply(own.run, message);
    own.messages = [];
  }
  const refetch = useThrottled(() => {
    own.messages = [];
    reload();
  }, Math.max(REFETCH_PAUSE_MS, REST_FACTOR * tookMs));
  useMessages((message) => {
    const { type, payload } = message;
    if ((payload?.runId ?? payload?.entry?.run_id) !== id) return;
    if (type === "RUN_DELETED") return setDeleted(true);
    if (isLoading) own.messages.push(message);
    if (!own.run || !apply(own.run, message)) return;
    draw();
    if (type !== "NODE_OUTPUT") refetch();
  }, [id, isLoading]);
  return { detail: own.detail, run: own.run, error, isDeleted, setDeleted, reload };
}

/** Returns the present time, which advances while `isOn`. */
export function useClock(isOn) {
  const [now, setNow] = useState(Date.now());
  useEffect(() => {
    if (!isOn) return undefined;
    setNow(Date.now());
    const timer = setInterval(() => setNow(Date.now()), CLOCK_MS);
    return () => clearInterval(timer);
  }, [isOn]);
  return now;
}

/**
 * Returns { nodes, edges } of the graph that the run started with. A run from before graphs were stored shows the
 * present graph of its flow. Null until it is known, or if the flow is gone.
 */
export function useRunGraph(detail) {
  const [graph, setGraph] = useState(null);
  const flowId = detail?.flowId;
  useEffect(() => {
    if (!detail) return undefined;
    let isCurrent = true;
    graphOf(detail).then(
      (found) => isCurrent && setGraph(found),
      () => isCurrent && setGraph({ nodes: [], edges: [] }),
    );
    return () => (isCurrent = false);
  }, [detail?.runId, flowId]);
  return graph;
}

async function graphOf({ runId, flowId, nodes }) {
  const stored = await api.getIfAny(`/api/runs/${encodeURIComponent(runId)}/graph`);
  if (stored) return stored;
  const flow = await api.getIfAny(`/api/flows/${flowId}`);
  if (flow?.data?.nodes) return { nodes: flow.data.nodes, edges: flow.data.edges ?? [] };
  return { nodes: nodes.map(({ nodeId, label }) => ({ id: nodeId, type: "agent", data: { label } })), edges: [] };
}

