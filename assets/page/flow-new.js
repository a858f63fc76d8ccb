/** The dialog for new flows: from a template, by pasting JSON, or by files. */

import { html, useEffect, useRef, useState } from "./vendor/preact.js";
import * as api from "./api.js";
import { createFlow } from "./flow-actions.js";
import { graphOf, leaveDraft, providersOf } from "./flow-document.js";
import { describe, plural } from "./format.js";
import { navigate } from "./state.js";
import { Button, Dialog, ErrorNote, Loading, toast } from "./ui.js";

const TEMPLATES = ["plan-then-write", "two-views", "draft-review-revise", "branch-by-length", "summarize-list", "support-triage", "summarize-page"];
const FILES_MAX = 200;
/** The server refuses larger documents. */
const FILE_BYTES_MAX = 8 << 20;

/** `files` are imported at once. `onCreated()` is called after each import. */
export function NewFlow({ files = null, onCreated, onClose }) {
  const [results, setResults] = useState(null);
  const input = useRef(null);
  const importAll = async (list) => {
    const all = await importFiles(list, setResults);
    onCreated();
    const created = all.filter(({ flow }) => flow);
    if (all.length !== 1 || !created.length) return;
    onClose();
    toast("done", ["Imported ", { name: created[0].name }]);
    navigate(`/flows/${created[0].flow.id}`);
  };
  useEffect(() => {
    if (files?.length) importAll(files);
  }, []);
  const write = () => {
    onClose();
    navigate("/flows/new");
  };
  if (results) return html`<${Dialog} title="Import flows" onClose=${onClose} testid="import-dialog"><${Results} results=${results} onClose=${onClose} /><//>`;
  return html`
    <${Dialog} title="New flow" onClose=${onClose} testid="new-flow-dialog">
      <${Templates} onClose=${onClose} />
      <section class="new-flow-ways">
        <h3>Your own</h3>
        <div class="buttons">
          <${Button} data-testid="new-paste" onClick=${write}>Write or paste JSON<//>
          <${Button} data-testid="new-files" onClick=${() => input.current.click()}>Import files…<//>
          <input ref=${input} type="file" class="hidden-text" tabindex="-1" aria-label="Files to import" data-testid="file-input" accept=".json,application/json" multiple onChange=${({ target }) => target.files.length && importAll([...target.files])} />
        </div>
        <p class="hint">You can also drop files on the list of flows.</p>
      </section>
    <//>
  `;
}

/* Templates. */

const templateText = async (name) => {
  const response = await fetch(new URL(`./templates/${name}.json`, import.meta.url));
  if (!response.ok) throw new Error(`the server returned status ${response.status}`);
  return response.text();
};

function Templates({ onClose }) {
  const [{ templates, error }, setState] = useState({});
  const load = () => Promise.all(TEMPLATES.map(async (name) => ({ name, document: api.parse(await templateText(name)) }))).then((all) => setState({ templates: all }), (failure) => setState({ error: failure }));
  useEffect(() => void load(), []);
  const create = async (document) => {
    try {
      const flow = await createFlow(document);
      onClose();
      toast("done", ["Created ", { name: document.name }]);
      navigate(`/flows/${flow.id}`);
    } catch (failure) {
      // For example a provider that is not configured: the editor shows where.
      leaveDraft(api.stringify(document, 2), failure);
      onClose();
      navigate("/flows/new");
    }
  };
  return html`
    <section class="new-flow-ways">
      <h3>From a template</h3>
      <${ErrorNote} title="Cannot load the templates" error=${error} onRetry=${load} />
      ${!templates && !error && html`<${Loading} />`}
      <ul class="templates">
        ${templates?.map(({ name, document }) => html`
          <li key=${name}><button type="button" class="template" data-testid=${`template-${name}`} onClick=${() => create(document)}>
            <strong>${document.name}</strong>
            <span>${document.description}</span>
            <span class="muted">${plural(graphOf(document).nodes.length, "node")} · ${providersOf(document).length ? `needs ${providersOf(document).join(", ")}` : "runs offline"}</span>
          </button></li>
        `)}
      </ul>
    </section>
  `;
}

/* Files. */

/** Imports one file after the other and reports after each. Returns the results. */
async function importFiles(files, report) {
  const results = files.slice(0, FILES_MAX).map(({ name }) => ({ file: name }));
  for (const file of files.slice(FILES_MAX)) results.push({ file: file.name, error: new Error(`only ${FILES_MAX} files can be imported at once`) });
  report([...results]);
  for (const [at, file] of files.slice(0, FILES_MAX).entries()) {
    results[at] = await importFile(file);
    report([...results]);
  }
  return results;
}

async function importFile(file) {
  let text = null;
  try {
    if (file.size > FILE_BYTES_MAX) throw new Error("the file is too large");
    text = await file.text();
    const document = api.parse(text);
    const flow = await createFlow(document);
    return { file: file.name, flow, name: document.name };
  } catch (error) {
    return { file: file.name, text, error };
  }
}

function Results({ results, onClose }) {
  const open = ({ text, error }) => {
    leaveDraft(text, error);
    onClose();
    navigate("/flows/new");
  };
  const failed = results.filter(({ error }) => error).length;
  const done = results.filter(({ flow }) => flow).length;
  return html`
    <p role="status" data-testid="import-status">${done + failed < results.length ? `Importing… ${done + failed} of ${results.length}` : `${done} of ${plural(results.length, "file")} imported${failed ? `, ${failed} failed` : ""}.`}</p>
    <ul class="lines">
      ${results.map((result, at) => html`
        <li key=${at} data-testid="import-result">
          <span class="cut" title=${result.file}><bdi>${result.file}</bdi></span>
          ${result.flow && html`<a href=${`/flows/${result.flow.id}`} onClick=${onClose}>Open flow</a>`}
          ${result.error && (result.text === null || result.text === undefined ? html`<span></span>` : html`<button type="button" class="quiet" onClick=${() => open(result)}>Fix in the editor</button>`)}
          ${result.error && html`<p class="whole fault">${describe(result.error)}</p>`}
        </li>
      `)}
    </ul>
    <div class="buttons form-buttons"><button type="button" onClick=${onClose}>Close</button></div>
  `;
}
