/** The dialog that starts a run: the flow's inputs, and the estimated cost. */

import { html, useEffect, useState } from "./vendor/preact.js";
import * as api from "./api.js";
import { flowPath, startRun } from "./flow-actions.js";
import { asTyped, inputsOf, readInput, TYPE_WORDS } from "./flow-document.js";
import { Form, SelectField, TextField, useForm } from "./forms.js";
import { count, plural } from "./format.js";
import { useData } from "./state.js";
import { Dialog, ErrorNote, Loading, Money } from "./ui.js";

const ESTIMATE_PAUSE_MS = 400;

/** `flow` has at least an id and a name; the document is fetched if it is missing. */
export function RunDialog({ flow, onClose }) {
  const { data, error, reload } = useData(flow.data ? null : flowPath(flow.id));
  const whole = flow.data ? flow : data;
  if (whole) return html`<${InputDialog} flow=${whole} onClose=${onClose} />`;
  return html`<${Dialog} title=${`Run ${flow.name}`} onClose=${onClose} testid="run-dialog">${error ? html`<${ErrorNote} title="Cannot load the flow" error=${error} onRetry=${reload} />` : html`<${Loading} />`}<//>`;
}

function InputDialog({ flow, onClose }) {
  const [inputs] = useState(() => inputsOf(flow));
  const form = useForm({
    name: "input",
    title: "Cannot start the run",
    initial: Object.fromEntries(inputs.map(({ name }) => [name, ""])),
    check: (values) => readInput(values, inputs).faults,
    send: (values) => startRun(flow.id, readInput(values, inputs).input).then(onClose),
    fieldOf: ({ field }) => String(field).replace(/^input\.?/, ""),
  });
  return html`
    <${Dialog} title=${`Run ${flow.name}`} onClose=${onClose} guard=${form.guard} testid="run-dialog">
      <${Form} form=${form} action="Run" onCancel=${onClose}>
        ${inputs.map((input) => html`<${InputField} key=${input.name} form=${form} input=${input} />`)}
        <${Estimate} flowId=${flow.id} input=${readInput(form.values, inputs)} />
      <//>
    <//>
  `;
}

function InputField({ form, input: { name, type, default: fallback, isRequired, isDeclared } }) {
  const isOptional = isDeclared && !isRequired;
  const words = [type !== "text" && (TYPE_WORDS[type] ?? type), isOptional && (fallback === undefined ? "optional" : `default: ${asTyped(fallback).slice(0, 200)}`)].filter(Boolean).join("; ");
  const shared = { form, name, label: name, hint: words ? words[0].toUpperCase() + words.slice(1) : null, "aria-required": isRequired ? "true" : null };
  if (type === "boolean") return html`<${SelectField} ...${shared} options=${[["", isOptional ? "Default" : "Choose"], ["true", "true"], ["false", "false"]]} />`;
  if (type === "number") return html`<${TextField} ...${shared} inputmode="decimal" />`;
  return html`<${TextField} ...${shared} multiline rows=${type === "text" ? 2 : 4} spellcheck=${type === "text"} class=${type === "text" ? "" : "mono"} />`;
}

/** The estimated cost of a run with this input; `input` is from `readInput`. */
export function Estimate({ flowId, input: { input, faults } }) {
  const [estimate, setEstimate] = useState(null);
  const text = faults.length ? null : api.stringify(input);
  useEffect(() => {
    if (text === null) return setEstimate(null);
    let isCurrent = true;
    const timer = setTimeout(() => {
      api.post(`${flowPath(flowId)}/estimate`, { input }).then(
        (result) => isCurrent && setEstimate({ result }),
        (error) => isCurrent && setEstimate({ error }),
      );
    }, ESTIMATE_PAUSE_MS);
    return () => {
      isCurrent = false;
      clearTimeout(timer);
    };
  }, [flowId, text]);
  return html`<div class="estimate muted" role="status" data-testid="estimate">${faults.length ? "The estimate needs all inputs." : estimateText(estimate)}</div>`;
}

function estimateText(estimate) {
  if (!estimate) return "Estimating the cost…";
  if (estimate.error) return `No estimate: ${estimate.error.message}`;
  const { expected, worst, runs, notes = [] } = estimate.result;
  if (!worst.calls) return "This flow makes no calls, so a run is free.";
  const source = runs ? `from ${plural(runs, "earlier run")}` : "without earlier runs";
  const [usual, most] = [expected ?? worst, worst];
  return html`
    <p>Estimated cost: <strong><${Money} usd=${usual.cost} unknown="unknown price" /></strong>, at most <strong><${Money} usd=${most.cost} unknown="unknown price" /></strong> (${plural(most.calls, "call")}, ${count(usual.inputTokens)} → ${count(usual.outputTokens)} tokens, ${source}).</p>
    ${notes.length > 0 && html`<details><summary>Assumptions</summary><ul>${notes.map((note) => html`<li key=${note}>${note}</li>`)}</ul></details>`}
  `;
}
