/** The view of one run: its graph, its nodes over time, the selected node, input and output. */

import { html, useEffect, useMemo, useState } from "../vendor/preact.js";
import { stringify } from "../api.js";
import { count, duration, plural, TRIGGERS } from "../format.js";
import { Graph } from "../graph.js";
import { cancelRun, deleteRun, downloadRun, retryRun, runAgain } from "../run-actions.js";
import { useClock, useRun, useRunGraph } from "../run-data.js";
import { callsByNode, durationMs, focusOf, isActive, isResumable, itemCounts, itemOf, nodeOf, stateOf, sumCalls } from "../run-state.js";
import { Value } from "../run-texts.js";
import { Waterfall } from "../run-waterfall.js";
import { navigate, setQuery } from "../state.js";
import { Button, CopyLine, Dash, Empty, ErrorNote, Facts, Loading, Menu, Money, Page, Section, Status, Time } from "../ui.js";

/** Loads a part of the view when it is needed first. */
function useModule(load, isNeeded = true) {
  const [module, setModule] = useState(null);
  useEffect(() => {
    if (isNeeded && !module) load().then(setModule, () => {});
  }, [isNeeded]);
  return module;
}

/** The cost of a run: of its calls until it has ended, then the sum that the server wrote. */
function Cost({ run, sums }) {
  const total = run.totals?.cost;
  const hasTotal = !isActive(run) && total !== undefined;
  if (hasTotal && total !== null) return html`<${Money} usd=${total} />`;
  if (!hasTotal && sums.calls === sums.open) return isActive(run) ? html`<span class="muted">none yet</span>` : html`<${Dash} reason="no calls" />`;
  if (sums.cost === null) return html`<${Dash} reason="unknown cost" />`;
  return html`<${Money} usd=${sums.cost} />${sums.unknown > 0 && html`<span class="muted"> + ${plural(sums.unknown, "call")} with unknown cost</span>`}`;
}

function RunFacts({ detail, run, now }) {
  const sums = sumCalls(run.calls.values());
  const isOn = isActive(run);
  const startedAt = run.startedAt ?? detail.startedAt;
  const elapsed = isOn ? startedAt && Math.max(0, now - Date.parse(startedAt)) : (run.totals?.ms ?? null);
  const [input, output] = !isOn && run.totals?.inputTokens !== undefined ? [run.totals.inputTokens, run.totals.outputTokens] : [sums.inputTokens, sums.outputTokens];
  const hasTokens = sums.isCounted || input > 0;
  return html`<${Facts} testid="run-facts" facts=${[
    ["Status", html`<${Status} status=${run.status} testid="run-status" />`],
    ["Trigger", TRIGGERS[detail.trigger] ?? detail.trigger],
    ["Started", html`<${Time} at=${startedAt ?? detail.createdAt} />`],
    ["Duration", (elapsed ?? null) === null ? null : duration(elapsed)],
    [isOn ? "Tokens so far" : "Tokens in → out", hasTokens ? `${count(input)} → ${count(output)}` : null],
    [isOn ? "Cost so far" : "Cost", html`<span data-testid="run-cost"><${Cost} run=${run} sums=${sums} /></span>`],
    ["Calls", sums.calls ? html`<a href=${`/calls?run_id=${detail.runId}&period=all`}>${plural(sums.calls, "call")}</a>` : null],
  ]} />`;
}

function Actions({ detail, run, onDeleted, reload }) {
  const isOn = isActive(run);
  const remove = async () => {
    if (await deleteRun({ ...detail, calls: [...run.calls.keys()] })) onDeleted();
  };
  const after = (act) => async () => (await act(detail)) && reload();
  return html`
    ${isOn && html`<${Button} kind="danger" data-testid="run-cancel" onClick=${after(cancelRun)}>Cancel<//>`}
    ${isResumable(run) && html`<${Button} kind="primary" data-testid="run-retry" title="Finished nodes keep their outputs." onClick=${after(retryRun)}>${run.status === "FAILED" ? "Retry from failed node" : "Retry"}<//>`}
    <${Button} data-testid="run-again" title="Starts a new run of this flow with the same input." onClick=${() => runAgain(detail)}>Run again<//>
    <${Menu} label="More" name="More actions" testid="run-menu" items=${[
      { label: "Download as JSON", onClick: () => downloadRun(detail), testid: "run-download" },
      !isOn && { label: "Delete run…", danger: true, onClick: remove, testid: "run-delete" },
    ]} />
  `;
}

/** The error of a run, with a way to its node. */
function RunError({ run, onSelect }) {
  if (!run.error) return null;
  const node = run.errorNodeId && run.nodes.get(run.errorNodeId);
  return html`
    <div class="error-note" data-testid="run-error">
      <p>${node && html`<strong><bdi>${node.label}</bdi> failed</strong>: `}${run.error}</p>
      ${node && html`<button type="button" data-testid="show-failed" onClick=${() => onSelect(node.nodeId)}>Show node</button>`}
    </div>
  `;
}

/** Returns the output of a run: of its output nodes, as the API has it, or else of its last nodes. */
function outputOf(detail, graph) {
  const output = detail.output ?? null;
  if (output !== null || !graph || isActive(detail) || graph.nodes.some(({ type }) => type === "output")) return output;
  const sources = new Set(graph.edges.map(({ source }) => String(source)));
  const last = detail.nodes.filter((node) => !sources.has(node.nodeId) && (node.output ?? null) !== null);
  return last.length < 2 ? (last[0]?.output ?? null) : Object.fromEntries(last.map((node) => [node.nodeId, node.output]));
}

function Texts({ detail, graph }) {
  const hasInput = detail.input !== null && stringify(detail.input) !== "{}";
  const output = outputOf(detail, graph);
  return html`
    <${Section} title="Input and output" testid="run-texts">
      ${hasInput ? html`<${Value} name="Input" value=${detail.input} testid="run-input" />` : html`<p class="muted">This run has no input of its own; the flow's defaults apply.</p>`}
      ${output !== null ? html`<${Value} name="Output" value=${output} testid="run-output" open />` : html`<p class="muted">${isActive(detail) ? "The output appears when the run ends." : "This run has no output."}</p>`}
    <//>
  `;
}

/** The selected node: beside the graph on wide screens, a sheet on phones. */
function NodePart({ detail, run, graph, nodeId, now, onClose }) {
  const part = useModule(() => import("../run-node.js"));
  const panel = useModule(() => import("../node-panel.js"));
  const node = nodeOf(run, nodeId);
  const definition = useMemo(() => {
    const found = panel && graph?.nodes.find(({ id }) => String(id) === nodeId);
    return found && html`<details class="fold"><summary>Definition</summary><${panel.Definition} node=${found} /></details>`;
  }, [panel, graph, nodeId]);
  if (!part || !panel) return null;
  return html`
    <${panel.NodePanel} title=${node.label} onClose=${onClose}>
      <${part.NodeRun} key=${nodeId} run=${run} node=${node} response=${detail.nodes.find((one) => one.nodeId === nodeId)} calls=${callsByNode(run).get(nodeId) ?? []} now=${now} />
      ${definition}
    <//>
  `;
}

function Gone({ title, text }) {
  return html`
    <${Page} title=${title} testid="run-gone">
      <${Empty} title=${text}><p class="buttons"><a class="button" href="/runs">Show all runs</a> <a href="/flows">Flows</a></p><//>
    <//>
  `;
}

/** Returns a function from node ids to what the graph shows of them. */
function useGraphStates(run, now) {
  const byNode = callsByNode(run);
  return (id) => {
    const node = run.nodes.get(id);
    if (!node) return { state: stateOf(run, id) };
    const state = stateOf(run, id);
    const calls = byNode.get(id) ?? [];
    const sums = sumCalls(calls);
    const ms = durationMs({ ...node, finishedAt: state === "running" ? new Date(now).toISOString() : node.finishedAt });
    const isMap = calls.some((call) => itemOf(call) !== null);
    return { state, attempt: node.attempt, cost: sums.calls > sums.open && !sums.unknown ? sums.cost : null, ms: node.startedAt ? ms : null, items: isMap ? itemCounts(run, id) : null, text: node.text };
  };
}

function GraphPart({ run, graph, now, selected, onSelect }) {
  const states = useGraphStates(run, now);
  if (!graph) return null;
  return html`<${Graph} graph=${graph} states=${states} selected=${selected} onSelect=${onSelect} focusOn=${focusOf(run)} label="Graph of the run" />`;
}

export default function Run({ id, query }) {
  const { detail, run, error, isDeleted, setDeleted, reload } = useRun(id);
  const graph = useRunGraph(detail);
  const now = useClock(isActive(run));
  // The same element while the response is the same, so that it is not compared at each message.
  const texts = useMemo(() => detail && html`<${Texts} detail=${detail} graph=${graph} />`, [detail, graph]);
  if (isDeleted) return html`<${Gone} title="Run deleted" text="This run was deleted. Its ledger rows stay." />`;
  if (error?.status === 404) return html`<${Gone} title="Run not found" text="This run does not exist. It may have been deleted, or the retention period has ended." />`;
  if (!detail) return html`<${Page} title="Run">${error ? html`<${ErrorNote} title="Cannot load this run" error=${error} onRetry=${reload} />` : html`<${Loading} />`}<//>`;
  const selected = run.nodes.has(query.get("node")) ? query.get("node") : null;
  const select = (nodeId) => setQuery({ node: nodeId === selected ? null : nodeId });
  const onDeleted = () => {
    setDeleted(true);
    navigate("/runs");
  };
  return html`
    <${Page} title=${detail.flowName} name=${`Run of ${detail.flowName}`} subtitle=${html`Run <${CopyLine} text=${detail.runId} name="run ID" testid="run-id" /> of flow <a href=${`/flows/${detail.flowId}`} data-testid="run-flow"><bdi>${detail.flowName}</bdi></a>`} testid="run" actions=${html`<${Actions} detail=${detail} run=${run} onDeleted=${onDeleted} reload=${reload} />`}>
      ${error && html`<${ErrorNote} title="Cannot update this run" error=${error} onRetry=${reload} />`}
      <${RunError} run=${run} onSelect=${(nodeId) => setQuery({ node: nodeId })} />
      <${RunFacts} detail=${detail} run=${run} now=${now} />
      <div class="graph-area">
        <div class="run-main">
          <${GraphPart} run=${run} graph=${graph} now=${now} selected=${selected} onSelect=${select} />
          <${Section} title="Timeline"><${Waterfall} run=${run} detail=${detail} now=${now} selected=${selected} onSelect=${select} /><//>
          ${texts}
        </div>
        ${selected && html`<${NodePart} detail=${detail} run=${run} graph=${graph} nodeId=${selected} now=${now} onClose=${() => setQuery({ node: null })} />`}
      </div>
    <//>
  `;
}
