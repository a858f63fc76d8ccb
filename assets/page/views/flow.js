/** The view of a flow: its graph with the newest run, a panel for a node, runs and triggers. */

import { html, useEffect, useRef, useState } from "../vendor/preact.js";
import { deleteFlow, duplicateFlow, exportFlow, flowPath, startAtOnce } from "../flow-actions.js";
import { graphOf, inputsOf, nodeOfFlow } from "../flow-document.js";
import { EstimateShort, useEstimate } from "../flow-estimate.js";
import { statesOf, useNewestRun } from "../flow-run.js";
import { duration, plural, TRIGGERS } from "../format.js";
import { Graph, labelOf } from "../graph.js";
import { Definition, NodePanel } from "../node-panel.js";
import { focusOf, isActive, nodeOf, stateOf } from "../run-state.js";
import { address, navigate, rememberFlows, setQuery, useData, useMessages, useThrottled } from "../state.js";
import { Button, Dash, Empty, ErrorNote, Facts, Loading, LongText, Menu, Money, Page, Section, showError, Status, Time } from "../ui.js";

const RUNS = 10;
const RELOAD_MS = 1_000;

/** Loads a module when it is needed first. */
function useModule(load, isNeeded = true) {
  const [module, setModule] = useState(null);
  useEffect(() => {
    if (isNeeded && !module) load().then(setModule, (error) => showError("Cannot load a part of the page", error));
  }, [isNeeded]);
  return module;
}

export default function Flow({ id, query }) {
  const isEditor = id === "new" || query.get("edit") !== null;
  const editor = useModule(() => import("../flow-editor.js"), isEditor);
  if (isEditor) return editor ? html`<${editor.FlowEditor} key=${id} id=${id === "new" ? null : id} />` : html`<${Loading} />`;
  return html`<${FlowView} id=${id} query=${query} />`;
}

function FlowView({ id, query }) {
  const { data: flow, error, reload } = useData(flowPath(id));
  const [isDeleted, setDeleted] = useState(false);
  useMessages(({ type, payload }) => {
    if (type !== "FLOW_CHANGED" || String(payload.flowId) !== id) return;
    if (payload.change === "deleted") setDeleted(true);
    else if (payload.change === "saved") reload();
  }, [id]);
  useEffect(() => flow && rememberFlows([flow]), [flow]);
  if (isDeleted || error?.status === 404) return html`<${Gone} isDeleted=${isDeleted} />`;
  if (!flow) return html`<${Page} title="Flow">${error ? html`<${ErrorNote} title="Cannot load this flow" error=${error} onRetry=${reload} />` : html`<${Loading} />`}<//>`;
  return html`<${Shown} flow=${flow} error=${error} reload=${reload} query=${query} onDeleted=${() => { setDeleted(true); navigate("/flows"); }} />`;
}

const Gone = ({ isDeleted }) => html`
  <${Page} title=${isDeleted ? "Flow deleted" : "Flow not found"} testid="flow-gone">
    <${Empty} title=${isDeleted ? "This flow was deleted. Its runs and ledger rows stay." : "This flow does not exist. It may have been deleted."}><p><a href="/flows">Show all flows</a></p><//>
  <//>
`;

function Shown({ flow, error, reload, query, onDeleted }) {
  const run = useNewestRun(flow.id);
  const summary = useSummary(flow);
  const guard = useRef(null);
  const [isByMouse, setByMouse] = useState(false);
  const selected = nodeOfFlow(flow, query.get("node")) ? query.get("node") : null;
  const select = async (node, event) => {
    if (node !== selected && guard.current && !(await guard.current())) return;
    setByMouse(Boolean(event?.detail));
    setQuery({ node });
  };
  return html`
    <${Page} title=${flow.name} subtitle=${flow.description && html`<bdi>${flow.description}</bdi>`} testid="flow" actions=${html`<${Actions} flow=${flow} onDeleted=${onDeleted} />`}>
      ${error && html`<${ErrorNote} title="Cannot update this flow" error=${error} onRetry=${reload} />`}
      <${FlowFacts} flow=${flow} run=${run} summary=${summary} />
      ${run?.error && html`<${NewestError} flow=${flow} run=${run} />`}
      <div class="graph-area">
        <div class="flow-main">
          <${Graph} graph=${graphOf(flow)} states=${run && statesOf(run)} selected=${selected} onSelect=${select} focusOn=${run && focusOf(run)} label=${`Graph of ${flow.name}`} />
          <div class="flow-parts">
            <${RecentRuns} flow=${flow} />
            <${TriggerPart} flow=${flow} summary=${summary} />
          </div>
        </div>
        ${selected && html`<${NodePart} flow=${flow} run=${run} id=${selected} isByMouse=${isByMouse} reload=${reload} guard=${guard} onClose=${() => select(null)} />`}
      </div>
    <//>
  `;
}

/** The error of the newest run, with a way to its node. */
function NewestError({ flow, run }) {
  const node = run.errorNodeId && nodeOfFlow(flow, run.errorNodeId);
  return html`
    <div class="error-note" data-testid="run-error">
      <p><strong>${node ? html`<bdi>${labelOf(node)}</bdi> failed` : "The newest run failed"}</strong>: ${run.error}</p>
      <a class="button" href=${address(`/runs/${run.runId}`, { node: node && run.errorNodeId })}>Show in the run</a>
    </div>
  `;
}

/** Sums and triggers of the flow. The list finds it by its name, because one flow has no summary of its own. */
function useSummary(flow) {
  const { data, reload } = useData(address("/api/flows", { summary: "true", q: flow.name, limit: 1000 }));
  const soon = useThrottled(reload, RELOAD_MS * 3);
  useMessages(({ type, payload }) => {
    const isOfFlow = String(payload?.flowId) === String(flow.id);
    if (isOfFlow && ["FLOW_CHANGED", "FLOW_STARTED", "FLOW_COMPLETED", "FLOW_FAILED", "FLOW_CANCELLED"].includes(type)) soon();
  }, [flow.id]);
  return data?.items.find(({ id }) => id === flow.id) ?? null;
}

function Actions({ flow, onDeleted }) {
  const [isAsking, setAsking] = useState(false);
  const dialog = useModule(() => import("../run-dialog.js"), isAsking);
  const run = () => (inputsOf(flow).length ? setAsking(true) : startAtOnce(flow));
  return html`
    <${Button} kind="primary" data-testid="run-button" onClick=${run}>Run<//>
    <a class="button" href=${`/flows/${flow.id}?edit=1`} data-testid="edit-button">Edit</a>
    <${Menu} label="More" name="More actions" testid="flow-menu" items=${[
      { label: "Show all runs", href: `/runs?flow_id=${flow.id}` },
      { label: "Show calls", href: `/calls?flow_id=${flow.id}` },
      { label: "Duplicate", onClick: () => duplicateFlow(flow), testid: "flow-duplicate" },
      { label: "Export", onClick: () => exportFlow(flow), testid: "flow-export" },
      { label: "Delete…", danger: true, testid: "flow-delete", onClick: async () => (await deleteFlow(flow)) && onDeleted() },
    ]} />
    ${isAsking && dialog && html`<${dialog.RunDialog} flow=${flow} onClose=${() => setAsking(false)} />`}
  `;
}

function FlowFacts({ flow, run, summary }) {
  // The server refuses an estimate without the required inputs.
  const estimate = useEstimate(flow.id, inputsOf(flow).some(({ isRequired }) => isRequired) ? null : {}, flow.updated_at);
  const progress = run && isActive(run) && [...graphOf(flow).nodes].filter(({ id }) => ["completed", "skipped"].includes(stateOf(run, String(id)))).length;
  return html`<${Facts} testid="flow-facts" facts=${[
    ["Newest run", run ? html`<a class="plain-link" href=${`/runs/${run.runId}`} data-testid="newest-run"><${Status} status=${run.status} testid="run-status" /></a>${progress !== null && progress !== false && html`<span class="muted"> ${progress} of ${plural(graphOf(flow).nodes.length, "node")}</span>`}` : "none yet"],
    ["Cost in 30 days", summary && html`<${Money} usd=${summary.cost_30d} unknown="no known cost" /> <span class="muted">${plural(summary.runs_30d ?? 0, "run")}</span>`],
    ["Estimated cost of a run", estimate?.result && html`<${EstimateShort} estimate=${estimate} />`],
    ["Inputs", inputsOf(flow).length ? html`<bdi>${inputsOf(flow).map(({ name }) => name).join(", ")}</bdi>` : null],
    ["Changed", html`<${Time} at=${flow.updated_at} />`],
  ]} />`;
}

/* The panel of a node. */

function NodePart({ flow, run, id, isByMouse, reload, guard, onClose }) {
  const edit = useModule(() => import("../node-edit.js"));
  /** The version that the form began with: a change elsewhere keeps unsaved input. */
  const base = useRef({});
  if (base.current.id !== id || !guard.current || (base.current.isSaved && base.current.flow !== flow)) base.current = { id, flow, isSaved: false };
  const save = () => {
    base.current.isSaved = true;
    return reload();
  };
  const node = nodeOfFlow(flow, id);
  const edited = base.current.flow;
  if (!edit) return null;
  return html`
    <${NodePanel} title=${labelOf(node)} onClose=${onClose} focusOn=${isByMouse ? "textarea, input" : null}>
      <${edit.NodeEdit} key=${`${id} ${edited.updated_at}`} flow=${edited} node=${nodeOfFlow(edited, id)} onSaved=${save} onGuard=${(ask) => (guard.current = ask)} />
      ${run && html`<${NodeResult} run=${run} id=${id} />`}
      <details class="fold" open=${!edit.editedKeys(node).length}><summary>All settings</summary><${Definition} node=${node} /></details>
    <//>
  `;
}

/** The node in the newest run, in short; the run has all of it. */
function NodeResult({ run, id }) {
  const state = stateOf(run, id);
  const { error, text, usage, attempt } = nodeOf(run, id);
  return html`
    <section class="node-result" aria-label="In the newest run" data-testid="node-result">
      <div class="section-head"><h3>In the newest run</h3><a href=${address(`/runs/${run.runId}`, { node: id })} data-testid="node-run-link">Show in the run</a></div>
      <${Facts} facts=${[
        ["State", html`<${Status} status=${state} />`],
        ["Attempt", attempt > 1 ? attempt : null],
        ["Duration", usage?.latencyMs ? duration(usage.latencyMs) : null],
        ["Cost", usage && (usage.inputTokens || usage.cost) ? html`<${Money} usd=${usage.cost} />` : null],
      ]} />
      ${error && html`<p class="fault">${error}</p>`}
      ${text && html`<${LongText} name=${state === "running" ? "Output so far" : "Output (beginning)"} text=${text} tail=${state === "running"} open=${state === "running" ? true : undefined} testid="node-output" />`}
    </section>
  `;
}

/* Runs and triggers. */

function RecentRuns({ flow }) {
  const { data, error, reload } = useData(`/api/runs?flow_id=${flow.id}&limit=${RUNS}`);
  const soon = useThrottled(reload, RELOAD_MS);
  useMessages(({ type, payload }) => {
    if (String(payload?.flowId) === String(flow.id) && ["FLOW_STARTED", "FLOW_COMPLETED", "FLOW_FAILED", "FLOW_CANCELLED", "RUN_DELETED"].includes(type)) soon();
  }, [flow.id]);
  const runs = data?.items;
  return html`
    <${Section} title="Recent runs" testid="recent-runs" actions=${runs?.length > 0 && html`<a href=${`/runs?flow_id=${flow.id}`}>Show all runs</a>`}>
      <${ErrorNote} title="Cannot load the runs" error=${error} onRetry=${reload} />
      ${runs?.length === 0 && html`<p class="muted">No runs yet.</p>`}
      ${runs?.length > 0 && html`
        <table class="table" aria-label="Recent runs">
          <thead><tr><th scope="col">Started</th><th scope="col">Status</th><th scope="col" class="wide-only">Trigger</th><th scope="col" class="number">Duration</th><th scope="col" class="number">Cost</th></tr></thead>
          <tbody>${runs.map((run) => html`
            <tr key=${run.runId} data-testid="recent-run">
              <td><a href=${`/runs/${run.runId}`}><${Time} at=${run.startedAt ?? run.createdAt} /></a></td>
              <td title=${run.error}><${Status} status=${run.status} /></td>
              <td class="wide-only">${TRIGGERS[run.trigger] ?? run.trigger}</td>
              <td class="number">${run.executionTimeMs === null || run.executionTimeMs === undefined ? html`<${Dash} reason="not over" />` : duration(run.executionTimeMs)}</td>
              <td class="number">${isActive(run) && !Number(run.cost) ? html`<${Dash} reason="no cost yet" />` : html`<${Money} usd=${run.cost} />`}</td>
            </tr>
          `)}</tbody>
        </table>
      `}
    <//>
  `;
}

function TriggerPart({ flow, summary }) {
  const triggers = useModule(() => import("../flow-triggers.js"), summary !== null);
  return html`
    <${Section} title="Triggers" testid="triggers">
      ${summary && triggers ? html`<${triggers.Triggers} flow=${flow} hasHook=${summary.hook} hasSchedule=${summary.schedule !== null} />` : html`<${Loading} />`}
    <//>
  `;
}
