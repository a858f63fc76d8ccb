/** The view of one run: its graph, its nodes over time, the selected node, input and output. */

import { html, useEffect, useRef, useState } from "../vendor/preact.js";
import { stringify } from "../api.js";
import { count, duration, plural } from "../format.js";
import { cancelRun, deleteRun, downloadRun, retryRun, runAgain, TRIGGERS } from "../run-actions.js";
import { useClock, useRun, useRunGraph } from "../run-data.js";
import { callsByNode, focusOf, isActive, isResumable, nodeOf, stateOf, sumCalls } from "../run-state.js";
import { Waterfall } from "../run-waterfall.js";
import { navigate, setQuery } from "../state.js";
import { Button, CopyLine, Dash, Empty, ErrorNote, Facts, Loading, LongText, Menu, Money, Page, Section, Status, Time } from "../ui.js";

const WIDE = matchMedia("(width >= 64rem)");

function useIsWide() {
  const [isWide, setWide] = useState(WIDE.matches);
  useEffect(() => {
    const listen = () => setWide(WIDE.matches);
    WIDE.addEventListener("change", listen);
    return () => WIDE.removeEventListener("change", listen);
  }, []);
  return isWide;
}

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
  return html`<${Money} usd=${sums.cost} />${!hasTotal && isActive(run) && html`<span class="muted"> so far</span>`}${sums.unknown > 0 && html`<span class="muted"> + ${plural(sums.unknown, "call")} with unknown cost</span>`}`;
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
    ["Tokens in → out", hasTokens ? html`${count(input)} → ${count(output)}${isOn ? html`<span class="muted"> so far</span>` : null}` : null],
    ["Cost", html`<span data-testid="run-cost"><${Cost} run=${run} sums=${sums} /></span>`],
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

const textOf = (value) => (typeof value === "string" ? value : stringify(value, 2));

function Texts({ detail }) {
  const hasInput = detail.input !== null && stringify(detail.input) !== "{}";
  const output = detail.output ?? null;
  return html`
    <${Section} title="Input and output" testid="run-texts">
      ${hasInput ? html`<${LongText} name="Input" text=${textOf(detail.input)} testid="run-input" />` : html`<p class="muted">This run has no input of its own; the flow's defaults apply.</p>`}
      ${output !== null ? html`<${LongText} name="Output" text=${textOf(output)} testid="run-output" open />` : html`<p class="muted">${isActive(detail) ? "The output appears when the run ends." : "This run has no output."}</p>`}
    <//>
  `;
}

/** The selected node: beside the graph on wide screens, a sheet on phones. */
function NodePart({ detail, run, graph, nodeId, now, isWide, onClose }) {
  const module = useModule(() => import("../run-node.js"));
  const panel = useModule(() => import("../node-panel.js"));
  const node = nodeOf(run, nodeId);
  const definition = graph?.nodes.find(({ id }) => id === nodeId);
  const content = module && html`
    <${module.NodeRun} run=${run} node=${node} response=${detail.nodes.find((one) => one.nodeId === nodeId)} calls=${callsByNode(run).get(nodeId) ?? []} now=${now} />
    ${definition && panel?.Definition && html`<${Section} title="Definition"><${panel.Definition} node=${definition} graph=${graph} /><//>`}
  `;
  return html`<${Panel} title=${node.label} isWide=${isWide} onClose=${onClose}>${content ?? html`<${Loading} />`}<//>`;
}

function Panel({ title, isWide, onClose, children }) {
  const ui = useModule(() => import("../ui.js"));
  const root = useRef(null);
  const heading = useRef(null);
  useEffect(() => {
    // Who selects by keyboard goes on in the panel, and comes back on closing.
    const from = document.activeElement;
    if (!isWide || !from?.matches(":focus-visible") || from.closest("h1")) return undefined;
    const panel = root.current;
    heading.current.focus();
    return () => (panel.contains(document.activeElement) || document.activeElement === document.body) && from.isConnected && from.focus();
  }, []);
  const onKeyDown = (event) => {
    if (event.key === "Escape" && !event.defaultPrevented) onClose();
  };
  if (!isWide) return ui && html`<${ui.Dialog} title=${title} onClose=${onClose} side testid="node-panel">${children}<//>`;
  return html`
    <aside class="node-panel card" aria-label=${`Node ${title}`} data-testid="node-panel" ref=${root} onKeyDown=${onKeyDown}>
      <header class="section-head"><h2 tabindex="-1" ref=${heading}><bdi>${title}</bdi></h2><button type="button" class="icon-button" aria-label="Close" data-testid="panel-close" onClick=${onClose}>×</button></header>
      ${children}
    </aside>
  `;
}

function Gone({ title, text }) {
  return html`
    <${Page} title=${title} testid="run-gone">
      <${Empty} title=${text}><p class="buttons"><a class="button" href="/runs">Show all runs</a> <a href="/flows">Flows</a></p><//>
    <//>
  `;
}

function GraphPart({ run, graph, selected, onSelect }) {
  const module = useModule(() => import("../graph.js"));
  if (!module || !graph) return null;
  const states = new Map([...run.nodes.keys()].map((id) => [id, stateOf(run, id)]));
  return html`<${module.Graph} nodes=${graph.nodes} edges=${graph.edges} run=${run} states=${(id) => states.get(id) ?? stateOf(run, id)} selected=${selected} onSelect=${onSelect} focus=${focusOf(run)} />`;
}

export default function Run({ id, query }) {
  const { detail, run, error, isDeleted, setDeleted, reload } = useRun(id);
  const graph = useRunGraph(detail);
  const now = useClock(isActive(run));
  const isWide = useIsWide();
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
      <div class=${selected && isWide ? "run-parts with-panel" : "run-parts"}>
        <div class="run-main">
          <${GraphPart} run=${run} graph=${graph} selected=${selected} onSelect=${select} />
          <${Section} title="Timeline"><${Waterfall} run=${run} detail=${detail} now=${now} selected=${selected} onSelect=${select} /><//>
          <${Texts} detail=${detail} />
        </div>
        ${selected && html`<${NodePart} key=${selected} detail=${detail} run=${run} graph=${graph} nodeId=${selected} now=${now} isWide=${isWide} onClose=${() => setQuery({ node: null })} />`}
      </div>
    <//>
  `;
}
