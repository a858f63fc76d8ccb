/** Edits the texts and the model of a node in the panel beside the graph. */

import { html, useEffect } from "./vendor/preact.js";
import * as api from "./api.js";
import { flowPath } from "./flow-actions.js";
import { documentOf, graphOf, nodeOfFlow } from "./flow-document.js";
import { Options, TextField, useForm } from "./forms.js";
import { typeOf } from "./graph.js";
import { useData } from "./state.js";
import { Button, confirmAction, ErrorNote, toast } from "./ui.js";

/** The keys of `data` that can be edited here, by node type. */
const EDITED = {
  __proto__: null,
  agent: ["prompt", "system", "provider", "model"],
  map: ["items", "prompt", "system", "provider", "model"],
  condition: ["expression"],
  template: ["template"],
  output: ["template"],
  http: ["url"],
};
const LABELS = { prompt: "Prompt", system: "System prompt", provider: "Provider", model: "Model", expression: "Expression", template: "Template", items: "Items", url: "URL" };
const ROWS = { prompt: 8, system: 3, template: 6 };

/** Returns the keys that `NodeEdit` shows for a node: those whose values are texts or missing. */
export const editedKeys = (node) => (EDITED[typeOf(node)] ?? []).filter((key) => ["string", "undefined"].includes(typeof node.data?.[key]));

const valuesOf = (node, keys) => Object.fromEntries(keys.map((key) => [key, node.data?.[key] ?? ""]));

/** Returns the document with the changed values of a node; a value that was missing and is still empty stays missing. */
function withNode(flow, id, changes) {
  const document = documentOf(flow);
  const graph = typeof document.data === "string" ? api.parse(document.data) : document.data;
  const nodes = graphOf(flow).nodes.map((node) => {
    if (String(node.id) !== id) return node;
    const data = { ...node.data };
    for (const [key, value] of Object.entries(changes)) {
      if (value === "" && key === "system") delete data[key];
      else data[key] = value;
    }
    return { ...node, data };
  });
  return { ...document, data: { ...graph, nodes } };
}

/** Saves changes of a node on top of the newest document. Returns false if the user keeps the other change. */
async function saveNode(flow, id, changes) {
  const newest = await api.get(flowPath(flow.id));
  const node = nodeOfFlow(newest, id);
  if (!node) throw new Error("the node was deleted meanwhile");
  const before = nodeOfFlow(flow, id);
  const isOverwritten = Object.keys(changes).some((key) => (node.data?.[key] ?? "") !== (before.data?.[key] ?? ""));
  if (isOverwritten && !(await confirmAction({ title: "Overwrite another change?", text: "This node was changed elsewhere since you opened it.", action: "Overwrite" }))) return false;
  await api.put(flowPath(flow.id), withNode(newest, id, changes));
  return true;
}

/** `onSaved()` is called after a save; `onGuard(guard)` gets the function that asks before changes are discarded, or null. */
export function NodeEdit({ flow, node, onSaved, onGuard }) {
  const id = String(node.id);
  const keys = editedKeys(node);
  const initial = valuesOf(node, keys);
  const changesOf = (values) => Object.fromEntries(keys.filter((key) => values[key] !== initial[key]).map((key) => [key, values[key]]));
  const form = useForm({
    name: "node",
    title: "Cannot save the node",
    initial,
    // "data.nodes[2].data.prompt" is the field "prompt".
    fieldOf: ({ field }) => String(field).split(".").at(-1),
    async send(values) {
      if (!(await saveNode(flow, id, changesOf(values)))) return;
      toast("done", ["Saved ", { name: flow.name }]);
      onSaved();
    },
  });
  const isChanged = Object.keys(changesOf(form.values)).length > 0;
  useEffect(() => {
    onGuard(isChanged ? form.guard : null);
    return () => onGuard(null);
  });
  const onKeyDown = (event) => {
    if (!(event.ctrlKey || event.metaKey) || (event.key !== "s" && event.key !== "Enter")) return;
    event.preventDefault();
    if (isChanged) form.submit(event);
  };
  if (!keys.length) return null;
  return html`
    <form noValidate class="node-edit" ref=${form.root} onSubmit=${form.submit} onKeyDown=${onKeyDown} data-testid="node-form" aria-label="Edit the node">
      ${keys.map((key) => (key === "provider" || key === "model" ? null : html`<${TextField} key=${key} form=${form} name=${key} label=${LABELS[key]} multiline=${key in ROWS} rows=${ROWS[key]} class=${key === "expression" || key === "items" ? "mono" : ""} />`))}
      ${keys.includes("model") && html`<${Target} form=${form} />`}
      ${form.problem && html`<${ErrorNote} ...${form.problem} testid="node-problem" />`}
      <div class="buttons">
        <${Button} kind="primary" type="submit" busy=${form.isBusy} disabled=${!isChanged} title="Ctrl+S" data-testid="node-save">Save<//>
        <span class="muted" role="status">${isChanged ? "Not saved yet" : ""}</span>
      </div>
    </form>
  `;
}

/** Provider and model, with names that the server knows. */
function Target({ form }) {
  const { data: providers } = useData("/api/providers");
  const { data: models } = useData("/api/models");
  const chosen = form.values.provider;
  const names = [...new Set((models?.items ?? models ?? []).filter(({ provider }) => provider === chosen).map(({ model }) => model))];
  return html`
    <div class="form-row">
      <${TextField} form=${form} name="provider" label=${LABELS.provider} list="node-providers" />
      <${TextField} form=${form} name="model" label=${LABELS.model} list="node-models" />
      <${Options} id="node-providers" values=${(providers?.items ?? []).map(({ name }) => name)} />
      <${Options} id="node-models" values=${names} />
    </div>
  `;
}
