/** The newest run of a flow: from the API, then from messages. */

import { useEffect, useRef, useState } from "./vendor/preact.js";
import { flowPath } from "./flow-actions.js";
import { advance, fromResponse, itemCounts, nodeOf, stateOf } from "./run-state.js";
import { useData, useMessages, useThrottled } from "./state.js";

const DRAW_MS = 100;

/** Returns the newest run (see run-state.js), or null if there is none yet or it is not known yet. */
export function useNewestRun(flowId) {
  const { data, isLoading, reload } = useData(`${flowPath(flowId)}/status`);
  const [, setTurn] = useState(0);
  const draw = useThrottled(() => setTurn((turn) => turn + 1), DRAW_MS);
  const own = useRef({ response: null, run: null, seq: 0, messages: [] }).current;
  const receive = (message) => {
    if (message.seq !== undefined) {
      if (message.seq <= own.seq) return;
      own.seq = message.seq;
    }
    own.run = advance(own.run, message);
  };
  if (data && data !== own.response) {
    own.response = data;
    own.run = fromResponse(data, own.run);
    own.seq = data.seq ?? 0;
    // The response may be older than messages that came while it was on its way.
    const early = own.messages;
    own.messages = [];
    early.forEach(receive);
  }
  useMessages((message) => {
    if (String(message.payload?.flowId) !== String(flowId)) return;
    if (message.type === "FLOW_CHANGED" || message.type === "RUN_DELETED") return void reload();
    if (isLoading || !own.run) own.messages.push(message);
    else receive(message);
    draw();
  }, [flowId, isLoading]);
  useEffect(() => draw(), [data]);
  return own.run?.runId ? own.run : null;
}

/** Returns a function from node ids to what the graph shows of them. */
export const statesOf = (run) => (id) => {
  const { attempt, usage, text } = nodeOf(run, id);
  const counts = itemCounts(run, id);
  return { state: stateOf(run, id), attempt, cost: usage?.cost, ms: usage?.latencyMs, text, items: counts.done + counts.open + counts.failed ? counts : null };
};
