/** The editor of a flow's document as JSON, with its graph beside it. */

import { html, useEffect, useMemo, useRef, useState } from "./vendor/preact.js";
import * as api from "./api.js";
import { createFlow, flowPath } from "./flow-actions.js";
import { documentOf, takeDraft } from "./flow-document.js";
import { plural } from "./format.js";
import { Graph } from "./graph.js";
import { offsetOf, placeOf, scan } from "./json-text.js";
import { guardLeaving, navigate, useMessages } from "./state.js";
import { TextEditor } from "./text-editor.js";
import { Button, confirmAction, ErrorNote, Loading, Page, toast } from "./ui.js";

const LOOK_MS = 150;

const BEGINNING = `{
  "name": "New flow",
  "description": "",
  "data": {
    "nodes": [
      {
        "id": "first",
        "type": "agent",
        "data": {
          "label": "First step",
          "provider": "echo",
          "model": "echo-1",
          "prompt": "Write about {{ input.topic }}"
        }
      }
    ],
    "edges": []
  }
}
`;

const textOf = (flow) => `${api.stringify(documentOf(flow), 2)}\n`;

/** `id` is null for a new flow. */
export function FlowEditor({ id }) {
  const [{ flow, text, error, fault }, setLoaded] = useState(() => (id === null ? beginning() : {}));
  const load = () => api.get(flowPath(id)).then((found) => setLoaded({ flow: found, text: textOf(found) }), (failure) => setLoaded({ fault: failure }));
  useEffect(() => void (id !== null && load()), []);
  if (fault) return html`<${Page} title="Edit flow"><${ErrorNote} title="Cannot load this flow" error=${fault} onRetry=${load} /><//>`;
  if (text === undefined) return html`<${Page} title="Edit flow"><${Loading} /><//>`;
  return html`<${Editor} key=${flow?.updated_at ?? "new"} flow=${flow} text=${text} error=${error} onReload=${load} />`;
}

function beginning() {
  const draft = takeDraft();
  return { flow: null, text: draft?.text ?? BEGINNING, error: draft?.error ?? null, isDraft: draft !== null };
}

/** Returns `{ places, fault, document }` of the text, a moment after it has changed. */
function useScan(text) {
  const [scanned, setScanned] = useState(() => look(text));
  useEffect(() => {
    if (scanned.text === text) return undefined;
    const timer = setTimeout(() => setScanned(look(text)), LOOK_MS);
    return () => clearTimeout(timer);
  }, [text]);
  return scanned;
}

function look(text) {
  const { places, fault } = scan(text);
  const document = fault ? null : api.parse(text);
  return { text, places, fault: fault && { ...fault, ...placeOf(text, fault.offset) }, document };
}

/** Asks before changes are lost, inside the page and when it is closed. */
function useLeaveGuard(isChanged) {
  useEffect(() => {
    if (!isChanged) return undefined;
    const ask = (event) => event.preventDefault();
    addEventListener("beforeunload", ask);
    const release = guardLeaving(() => confirmAction({ title: "Discard your changes?", text: "The flow was not saved.", action: "Discard" }));
    return () => {
      removeEventListener("beforeunload", ask);
      release();
    };
  }, [isChanged]);
}

function Editor({ flow, text: initial, error: firstError, onReload }) {
  const [text, setText] = useState(initial);
  /** The text that the server has. */
  const [saved, setSaved] = useState(flow ? initial : null);
  const version = useRef(flow?.updated_at ?? null);
  const [error, setError] = useState(firstError ?? null);
  const [isChangedElsewhere, setChangedElsewhere] = useState(false);
  const scanned = useScan(text);
  const area = useRef(null);
  const isChanged = text !== (saved ?? BEGINNING);
  const release = useRef(false);
  useLeaveGuard(isChanged && !release.current);
  useMessages(async ({ type, payload }) => {
    if (!flow || type !== "FLOW_CHANGED" || payload.flowId !== flow.id || payload.change !== "saved") return;
    const newest = await api.get(flowPath(flow.id)).catch(() => null);
    if (newest && newest.updated_at !== version.current) setChangedElsewhere(true);
  }, []);
  const faults = faultsOf(error);
  const show = (offset, length = 0) => area.current.jumpTo(offset, length);
  const save = async ({ stays }) => {
    const { fault, document } = look(text);
    if (fault) return show(fault.offset);
    setError(null);
    try {
      const result = flow ? await overwrite(flow.id, version.current, document) : await createFlow(document);
      if (!result) return undefined;
      version.current = result.updated_at;
      setSaved(text);
      setChangedElsewhere(false);
      toast("done", ["Saved ", { name: document.name }]);
      if (flow && stays) return undefined;
      guardLeaving(null);
      navigate(`/flows/${result.id}`, { replace: true });
    } catch (failure) {
      setError(failure);
      const [first] = faultsOf(failure);
      if (first) show(offsetOf(look(text).places, first.field));
    }
    return undefined;
  };
  const back = flow ? `/flows/${flow.id}` : "/flows";
  const marks = [...new Set([scanned.fault?.line, ...faults.map(({ field }) => placeOf(scanned.text, offsetOf(scanned.places, field)).line)].filter(Boolean))];
  return html`
    <${Page} title=${flow ? `Edit ${flow.name}` : "New flow"} testid="flow-editor" actions=${html`<a class="button" href=${back} data-testid="editor-cancel">Cancel</a><${Button} kind="primary" data-testid="editor-save" disabled=${flow && !isChanged} onClick=${() => save({ stays: false })}>${flow ? "Save" : "Create"}<//>`}>
      ${isChangedElsewhere && html`<div class="error-note" role="alert" data-testid="changed-elsewhere"><p><strong>This flow was changed elsewhere.</strong> Saving overwrites that change.</p><${Button} onClick=${async () => (!isChanged || (await confirmAction({ title: "Discard your changes?", text: "The editor loads the newest version.", action: "Discard" }))) && onReload()}>Load the newest version<//></div>`}
      <${Faults} error=${error} faults=${faults} scanned=${scanned} onShow=${show} />
      <div class="editor">
        <div class="editor-text">
          <${TextEditor} value=${text} onInput=${setText} onSave=${() => save({ stays: true })} label="Document of the flow (JSON)" marks=${marks} handle=${area} describedBy="editor-syntax" isInvalid=${scanned.fault !== null || faults.length > 0} testid="editor-text" />
          <${Syntax} fault=${scanned.fault} isChanged=${isChanged} onShow=${show} />
        </div>
        <${Preview} scanned=${scanned} onShow=${show} />
      </div>
    <//>
  `;
}

/** Saves over the version that the editor began with. Returns null if the user keeps another one. */
async function overwrite(id, version, document) {
  const newest = await api.get(flowPath(id));
  const question = { title: "Overwrite another change?", text: "This flow was changed elsewhere since you opened it.", action: "Overwrite" };
  if (newest.updated_at !== version && !(await confirmAction(question))) return null;
  const flow = await api.put(flowPath(id), document);
  return { id, updated_at: flow?.updated_at ?? (await api.get(flowPath(id))).updated_at };
}

/** Returns the faults of a refused document. */
const faultsOf = (error) => (error?.status === 422 && Array.isArray(error.details) ? error.details : []);

function Faults({ error, faults, scanned, onShow }) {
  if (!error) return null;
  if (!faults.length) return html`<${ErrorNote} title="Not saved" error=${error} testid="editor-error" />`;
  return html`
    <div class="error-note editor-faults" role="alert" data-testid="editor-faults">
      <p><strong>Not saved: ${plural(faults.length, "fault")}</strong></p>
      <ul>
        ${faults.map(({ field, message }, at) => {
          const offset = offsetOf(scanned.places, field);
          return html`<li key=${at}><button type="button" class="quiet" data-testid="editor-fault" onClick=${() => onShow(offset)}>Line ${placeOf(scanned.text, offset).line}</button> ${field && html`<code>${field}</code> `}${message}</li>`;
        })}
      </ul>
    </div>
  `;
}

/** The state of the text while it is typed. */
const Syntax = ({ fault, isChanged, onShow }) => html`
  <p class=${fault ? "fault" : "hint"} id="editor-syntax" role="status" data-testid="editor-syntax">
    ${fault ? html`Line ${fault.line}, column ${fault.column}: ${fault.message}. <button type="button" class="quiet" onClick=${() => onShow(fault.offset)}>Show</button>` : `Valid JSON.${isChanged ? " Not saved yet." : ""}`}
  </p>
`;

/** The graph of the last text that was valid. */
function Preview({ scanned, onShow }) {
  const last = useRef(null);
  const data = scanned.document?.data;
  const graph = useMemo(() => (Array.isArray(data?.nodes) ? { nodes: data.nodes.filter((node) => node && typeof node === "object"), edges: Array.isArray(data.edges) ? data.edges : [] } : null), [data]);
  if (graph) last.current = graph;
  const shown = graph ?? last.current;
  const select = (id) => {
    const at = data?.nodes?.findIndex((node) => String(node?.id) === id) ?? -1;
    if (at >= 0) onShow(offsetOf(scanned.places, `data.nodes[${at}]`));
  };
  return html`
    <section class="editor-preview" aria-label="Preview" data-testid="editor-preview">
      ${shown ? html`<${Graph} graph=${shown} onSelect=${select} label="Graph of the text" />` : html`<p class="muted">The graph appears here when the text is a flow.</p>`}
      ${!graph && shown && html`<p class="hint">The graph shows the last valid text.</p>`}
      <p class="hint">Select a node to jump to its lines.</p>
    </section>
  `;
}
