/** One suggestion: its reason, evidence and saving, and its actions. */

import { html, useEffect, useState } from "../vendor/preact.js";
import * as api from "../api.js";
import { money } from "../format.js";
import { useMessages } from "../state.js";
import { Button, ErrorNote, Facts, Time, useId } from "../ui.js";
import { evidenceFacts, ExpectedSaving, MeasuredSaving, withMoney } from "./saving-texts.js";

const PAST_WORDS = { __proto__: null, DISMISSED: "Dismissed", WITHDRAWN: "Withdrawn, because it no longer applies,", REVERTED: "Reverted" };
/** Parts that are loaded when they are opened. */
const PARTS = { change: () => import("./saving-change.js"), trial: () => import("./saving-trial.js") };

const nameOf = ({ kind, edit }) => (kind === "model_switch" && edit?.values ? `${edit.values.provider}/${edit.values.model}` : "");
const canApply = ({ status }) => ["OPEN", "DISMISSED"].includes(status);

/**
 * `item`: the suggestion. `most`: the amount at the right end of all bars. `actions`: `apply(body)`, `dismiss()` and
 * `revert()`, which throw the server's errors.
 */
export function SavingCard({ item, most, path, actions }) {
  const titleId = useId("saving");
  const [choice, setChoice] = useState("");
  const [part, setPart] = useState(null);
  const [failure, setFailure] = useState(null);
  const { status, kind } = item;
  const recommended = nameOf(item);
  const alternatives = (canApply(item) && item.alternatives) || [];
  // Prices change, so the selected alternative may no longer save anything.
  const chosen = alternatives.find(({ name }) => name === choice);
  const content = { ...item, ...chosen };
  /** The name is sent, because the recommendation may have changed. */
  const alternative = chosen?.name ?? recommended;
  const body = alternative ? { alternative } : {};
  useEffect(() => {
    setPart(null);
    setFailure(null);
  }, [status]);
  const attempt = (title, act) => async () => {
    setFailure(null);
    await act().catch((error) => setFailure({ title, error }));
  };
  const toggle = (name, label, testid) => html`<button type="button" data-testid=${testid} aria-expanded=${part === name ? "true" : "false"} aria-describedby=${titleId} onClick=${() => setPart(part === name ? null : name)}>${label}</button>`;
  return html`
    <li class="card saving" aria-labelledby=${titleId} data-testid="saving" data-saving-id=${item.id} data-status=${status}>
      <h2 tabindex="-1" id=${titleId}><bdi>${content.title}</bdi></h2>
      <${Place} item=${item} />
      <p data-testid="saving-reason">${withMoney(content.reason)}</p>
      ${status === "OPEN" && content.savingPer30Days && html`<${Interval} saving=${content.savingPer30Days} most=${most} />`}
      ${status === "APPLIED"
        ? html`<dl class="sides"><div><dt>Expected</dt><dd data-testid="saving-expected"><${ExpectedSaving} of=${content} /></dd></div><div><dt>Measured</dt><dd data-testid="saving-measured"><${MeasuredSaving} of=${item.realised} /></dd></div></dl>`
        : html`<p class="saving-estimate" data-testid="saving-estimate"><${ExpectedSaving} of=${content} /></p>`}
      ${alternatives.length > 0 && html`<${Choice} recommended=${recommended} alternatives=${alternatives} value=${chosen?.name ?? ""} onChoice=${setChoice} />`}
      <details class="form-part" data-testid="saving-evidence"><summary>Evidence</summary><${Facts} facts=${evidenceFacts(content.evidence)} /></details>
      <div class="buttons">
        ${status !== "WITHDRAWN" && toggle("change", "Show the change", "saving-show")}
        ${status === "OPEN" && kind === "model_switch" && toggle("trial", "Try it on stored inputs", "saving-try")}
        ${status === "OPEN" && html`<${Button} data-testid="saving-dismiss" aria-describedby=${titleId} onClick=${attempt("Cannot dismiss", actions.dismiss)}>Dismiss<//>`}
        ${status === "APPLIED" && html`<${Button} kind="danger" data-testid="saving-revert" aria-describedby=${titleId} onClick=${attempt("Cannot revert", actions.revert)}>Revert…<//>`}
      </div>
      ${failure && html`<${ErrorNote} ...${failure} testid="saving-error" />`}
      ${part && html`<${LazyPart} key=${part} name=${part} item=${item} path=${path} body=${body} onApply=${actions.apply} />`}
    </li>
  `;
}

/** Labels of nodes by flow, as promises: many suggestions are for the same flow. */
const labels = new Map();

async function fetchLabels(flowId) {
  const flow = await api.getIfAny(`/api/flows/${flowId}`).catch(() => null);
  return Object.fromEntries((flow?.data?.nodes ?? []).map(({ id, data }) => [id, data?.label]));
}

/** Returns a function from ids of a flow's nodes to their labels; without a label, to the id. */
function useNodeLabels(flowId) {
  const [known, setKnown] = useState({});
  const [turn, setTurn] = useState(0);
  useEffect(() => {
    let isCurrent = true;
    if (!labels.has(flowId)) labels.set(flowId, fetchLabels(flowId));
    labels.get(flowId).then((found) => isCurrent && setKnown(found));
    return () => (isCurrent = false);
  }, [flowId, turn]);
  useMessages(({ type, payload }) => {
    if (type !== "FLOW_CHANGED" || payload.flowId !== flowId) return;
    labels.delete(flowId);
    setTurn((before) => before + 1);
  }, [flowId]);
  return (id) => known[id] || id;
}

function Place({ item: { flowId, flowName, nodeId, otherNodeId, status, changedAt } }) {
  const nodes = [nodeId, otherNodeId].filter(Boolean);
  const labelOf = useNodeLabels(flowId);
  return html`
    <p class="muted" data-testid="saving-place">
      <a href=${`/flows/${flowId}`}><bdi>${flowName || `flow ${flowId}`}</bdi></a> · ${nodes.length > 1 ? "nodes" : "node"} ${nodes.map((id, at) => html`${at > 0 && " and "}<bdi key=${id} title=${id}>${labelOf(id)}</bdi>`)}
      ${PAST_WORDS[status] && html` · ${PAST_WORDS[status]} <${Time} at=${changedAt} ago />`}
    </p>
  `;
}

/** The 95 % interval as a bar with a mark at the most likely amount; screen readers get a text. */
function Interval({ saving: { lowUsd, expectedUsd, highUsd }, most }) {
  const share = (amount) => (most > 0 ? Math.max(0, Math.min(100, (100 * amount) / most)) : 0);
  const words = `Between ${money(lowUsd)} and ${money(highUsd)} in 30 days, most likely ${money(expectedUsd)}`;
  return html`
    <div class="interval" role="img" aria-label=${words} data-testid="interval">
      <div class="interval-range" style=${{ insetInlineStart: `${share(lowUsd)}%`, inlineSize: `${share(highUsd) - share(lowUsd)}%` }}></div>
      <div class="interval-mark" style=${{ insetInlineStart: `${share(expectedUsd)}%` }}></div>
    </div>
  `;
}

function Choice({ recommended, alternatives, value, onChoice }) {
  const id = useId("alternative");
  return html`
    <div class="field saving-choice">
      <label for=${id}>Model to use instead</label>
      <select id=${id} data-testid="saving-alternative" value=${value} onChange=${({ target }) => onChoice(target.value)}>
        <option value="" selected=${value === ""}>${recommended} (recommended)</option>
        ${alternatives.map(({ name, savingPer30Days: saving }) => html`<option key=${name} value=${name} selected=${value === name}>${name}: likely saves ${money(saving.expectedUsd)}</option>`)}
      </select>
    </div>
  `;
}

function LazyPart({ name, ...props }) {
  const [Part, setPart] = useState(null);
  const [error, setError] = useState(null);
  useEffect(() => {
    PARTS[name]().then((module) => setPart(() => module.default), setError);
  }, [name]);
  if (error) return html`<${ErrorNote} title="Cannot load this part" error=${error} />`;
  return Part && html`<${Part} ...${props} />`;
}
