/** The dialog that starts a run: the flow's inputs, and the estimated cost. */

import { html, useState } from "./vendor/preact.js";
import { flowPath, startRun } from "./flow-actions.js";
import { asTyped, inputsOf, readInput, TYPE_WORDS } from "./flow-document.js";
import { EstimateText, useEstimate } from "./flow-estimate.js";
import { Form, SelectField, TextField, useForm } from "./forms.js";
import { useData } from "./state.js";
import { Dialog, ErrorNote, Loading } from "./ui.js";

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
  const { input: typed, faults } = readInput(form.values, inputs);
  const estimate = useEstimate(flow.id, faults.length ? null : typed);
  return html`
    <${Dialog} title=${`Run ${flow.name}`} onClose=${onClose} guard=${form.guard} testid="run-dialog">
      <${Form} form=${form} action="Run" onCancel=${onClose}>
        ${inputs.map((input) => html`<${InputField} key=${input.name} form=${form} input=${input} />`)}
        <div class="estimate muted" role="status" data-testid="estimate">${faults.length ? "The estimate needs all inputs." : html`<${EstimateText} estimate=${estimate} />`}</div>
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
