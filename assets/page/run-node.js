/** A node of a run: its state, prompt, output (streaming as it comes), attempts and items. */

import { html, useLayoutEffect, useMemo, useRef } from "./vendor/preact.js";
import { count, duration, plural } from "./format.js";
import { Attempts, Tokens } from "./run-attempts.js";
import { MapItems } from "./run-items.js";
import { durationMs, itemCounts, stateOf, sumCalls } from "./run-state.js";
import { Value } from "./run-texts.js";
import { Copy, Facts, LongText, Money, Status, Time } from "./ui.js";

/** The reader follows the end of a stream while it is at most this far away, in pixels. */
const END_TOLERANCE = 24;

/** Text that grows: shows its end, unless the reader scrolled up. */
function StreamText({ text, isCut }) {
  const pre = useRef(null);
  const isFollowing = useRef(true);
  useLayoutEffect(() => {
    if (isFollowing.current && pre.current) pre.current.scrollTop = pre.current.scrollHeight;
  }, [text]);
  const onScroll = ({ currentTarget: { scrollHeight, scrollTop, clientHeight } }) => {
    isFollowing.current = scrollHeight - scrollTop - clientHeight <= END_TOLERANCE;
  };
  return html`
    <div class="stream">
      <div class="section-head"><h3>Output <span class="status" data-kind="live"><span class="dot" aria-hidden="true"></span>streaming</span> <span class="muted">${plural(text.length, "character")}</span></h3><${Copy} name="Output so far" text=${() => text} /></div>
      ${isCut && html`<p class="hint" data-testid="stream-cut">The page was opened while this text was streaming. The earlier part appears when the node ends.</p>`}
      <pre ref=${pre} tabindex="0" role="group" aria-label="Output so far" data-testid="stream-text" onScroll=${onScroll}>${isCut && text ? "…" : ""}${text}</pre>
    </div>
  `;
}

/** The items of a running map, by their calls. */
function itemsText(run, nodeId) {
  const { done, open, failed } = itemCounts(run, nodeId);
  return [done && `${count(done)} completed`, open && `${count(open)} running`, failed && `${count(failed)} failed`].filter(Boolean).join(" · ");
}

function facts(run, node, state, calls, now) {
  const sums = sumCalls(calls);
  const isRunning = state === "running";
  const elapsed = durationMs({ ...node, finishedAt: isRunning ? new Date(now).toISOString() : node.finishedAt });
  const cost = html`<${Money} usd=${sums.unknown ? null : sums.cost} unknown=${calls.find((call) => call.total_cost_usd === null)?.cost_note ?? "unknown cost"} />`;
  return [
        ["Started", node.startedAt ? html`<${Time} at=${node.startedAt} />` : null],
    ["Duration", node.startedAt && elapsed !== null ? duration(elapsed) : null],
    ["Tokens in → out", sums.isCounted ? html`<${Tokens} input=${sums.inputTokens} output=${sums.outputTokens} isEstimated=${sums.isEstimated} />` : null],
    [isRunning ? "Cost so far" : "Cost", sums.calls > sums.open ? cost : null],
    ["Items", isRunning ? itemsText(run, node.nodeId) : null],
  ];
}

const IDLE = {
  waiting: "This node has not started.",
  skipped: "This node is on a branch that was not taken.",
};

/** `node`: of the run's state; `response`: the same node in the API's response, with its texts; `calls`: its calls. */
export function NodeRun({ run, node, response, calls, now }) {
  const state = stateOf(run, node.nodeId);
  const text = (name, value, testid) => (value ?? null) !== null && value !== "" && html`<${LongText} name=${name} text=${value} testid=${testid} />`;
  const isStreaming = state === "running" && (node.text !== "" || node.isTextCut) && !response?.items;
  // The response may be a moment older than the end of the node.
  const output = response?.output ?? (state === "completed" ? node.text : null);
  // The same element until an item or a call changes, so that a long list is not compared at each message.
  const items = useMemo(() => response?.items && html`<${MapItems} items=${response.items} calls=${calls} />`, [response, calls]);
  const isCached = node.usage?.cached || (calls.length > 0 && calls.at(-1).cached);
  // If there was an attempt, it already shows the last error.
  const error = node.error && node.error !== calls.at(-1)?.error_message ? node.error : null;
  return html`
    <div class="node-run" data-testid="node-run" data-node-id=${node.nodeId} data-state=${state}>
      <p class="buttons"><${Status} status=${state} testid="node-status" />${node.attempt > 1 && html`<span class="badge">attempt ${node.attempt}</span>`}${isCached && html`<span class="badge">cached</span>`}</p>
      ${IDLE[state] && html`<p class="muted">${IDLE[state]}</p>`}
      ${node.startedAt && !IDLE[state] && html`<${Facts} facts=${facts(run, node, state, calls, now)} />`}
      ${error && html`<p class="fault" data-testid="node-error">${error}</p>`}
      ${isStreaming && html`<${StreamText} key=${`${node.nodeId} ${node.attempt}`} text=${node.text} isCut=${node.isTextCut} />`}
      ${!isStreaming && (output ?? "") !== "" && html`<${Value} key=${node.nodeId} name="Output" value=${output} testid="node-output" open />`}
      ${text("Prompt as sent", response?.prompt, "node-prompt")}
      ${text("System prompt as sent", response?.system, "node-system")}
      ${items ?? html`<${Attempts} calls=${calls} />`}
    </div>
  `;
}
