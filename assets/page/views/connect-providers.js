/** The providers: their states and keys in words, and a test call. */

import { html, useState } from "../vendor/preact.js";
import * as api from "../api.js";
import { duration, plural } from "../format.js";
import { useData, useMessages, useThrottled } from "../state.js";
import { Button, Copy, ErrorNote, Loading, Section, Time } from "../ui.js";

/** Limits how often the states are fetched while calls are made. */
const REFRESH_PAUSE_MS = 5_000;

/** Kind of status and words for the states of providers and keys; see docs/api.md. */
const STATES = {
  __proto__: null,
  ok: ["good", "ready"],
  cooling: ["warn", "rate limit reached"],
  benched: ["bad", "key refused"],
  open: ["bad", "failing"],
  half_open: ["warn", "failed before, trying again"],
  missing: ["idle", "no key"],
};

const EXAMPLE = `[providers.mine]                        # the name that models begin with: mine/MODEL
kind = "openai"                         # openai (and compatible servers), anthropic, gemini, ollama, echo
base_url = "http://127.0.0.1:8000/v1"
api_key_env = "MY_API_KEY"              # omit it for no key
`;

const isMissing = ({ keys }) => keys.length > 0 && keys.every(({ state }) => state === "missing");

export function Providers() {
  const { data, error, reload } = useData("/api/providers");
  const reloadSoon = useThrottled(reload, REFRESH_PAUSE_MS);
  useMessages(({ type }) => type === "LEDGER_UPDATE" && reloadSoon());
  const usable = data?.items.filter((provider) => !isMissing(provider)) ?? [];
  const others = data?.items.filter(isMissing) ?? [];
  const row = (provider) => html`<${Provider} key=${provider.name} provider=${provider} onTested=${reload} />`;
  return html`
    <${Section} title="Providers" testid="providers">
      <${ErrorNote} title="Cannot load the providers" error=${error} onRetry=${reload} />
      ${!data && !error && html`<${Loading} />`}
      ${usable.length > 0 && html`<ul class="providers" aria-label="Providers">${usable.map(row)}</ul>`}
      ${others.length > 0 && html`
        <details class="form-part" data-testid="providers-missing">
          <summary>${plural(others.length, "provider")} without a key</summary>
          <p class="hint">Set the variable and restart flowledger.</p>
          <ul class="providers" aria-label="Providers without a key">${others.map(row)}</ul>
        </details>
      `}
      <details class="form-part">
        <summary>Add a provider</summary>
        <p class="hint">Add a section to the configuration file, and start the server with <code>--config FILE</code> and the variable of the key.</p>
        <div class="code-block">
          <div class="code-head"><span class="muted">flowledger.toml</span><${Copy} text=${EXAMPLE} name="example of a provider" /></div>
          <pre tabindex="0" role="group" aria-label="Example of a provider">${EXAMPLE}</pre>
        </div>
      </details>
    <//>
  `;
}

function Provider({ provider, onTested }) {
  const { name, kind, baseUrl, keys } = provider;
  const [result, setResult] = useState(null);
  const test = async () => {
    setResult(null);
    try {
      setResult(await api.post(`/api/providers/${encodeURIComponent(name)}/test`));
    } catch (error) {
      setResult({ ok: false, error: error.message });
    }
    onTested();
  };
  return html`
    <li class="card provider" data-testid="provider" data-name=${name}>
      <div class="section-head">
        <div class="budget-title"><h3><bdi>${name}</bdi></h3><${State} of=${isMissing(provider) ? { state: "missing" } : provider} /></div>
        <${Button} onClick=${test} aria-label=${`Test: ${name}`} data-testid="provider-test">Test<//>
      </div>
      <p class="muted">${kind === "echo" ? "Works offline, is free, and answers with the prompt." : html`API of ${kind} at <bdi>${baseUrl}</bdi>`}</p>
      ${keys.length > 0 && html`<ul class="provider-keys" aria-label=${`Keys of ${name}`}>${keys.map((key) => html`<li key=${key.name}><${KeyState} item=${key} isOnly=${keys.length === 1} /></li>`)}</ul>`}
      ${provider.lastError && html`<p class="fault" data-testid="provider-error">Last error, <${Time} at=${provider.lastErrorAt} ago />: ${provider.lastError}</p>`}
      <div role="status" data-testid="provider-result">${result && html`<${Result} result=${result} />`}</div>
    </li>
  `;
}

function State({ of: { state, until, lastSuccessAt } }) {
  const isUnused = state === "ok" && !lastSuccessAt;
  const [kind, words] = isUnused ? ["idle", "not called yet"] : STATES[state] ?? ["idle", state];
  return html`
    <span class="status" data-kind=${kind} data-testid="provider-state" data-state=${state}><span class="dot" aria-hidden="true"></span>${words}</span>
    ${until && html`<span class="muted">paused until <${Time} at=${until} /></span>`}
    ${!until && lastSuccessAt && html`<span class="muted">last success <${Time} at=${lastSuccessAt} ago /></span>`}
  `;
}

/** A key's variable or file, and its state. The key itself never leaves the server. */
function KeyState({ item, isOnly }) {
  const { name, state, until, weight, lastError, lastErrorAt } = item;
  const words = state === "missing" ? "not set" : state === "ok" ? "set" : STATES[state]?.[1] ?? state;
  const kind = state === "missing" ? "warn" : STATES[state]?.[0] ?? "idle";
  return html`
    <code>${name}</code> <span class="status" data-kind=${kind}>${words}</span>
    ${until && html` <span class="muted">until <${Time} at=${until} /></span>`}
    ${!isOnly && html` <span class="muted">weight ${weight}</span>`}
    ${lastError && html` <span class="fault">last error, <${Time} at=${lastErrorAt} ago />: ${lastError}</span>`}
  `;
}

function Result({ result: { ok, models, error, latencyMs } }) {
  if (!ok) return html`<p class="fault">Test failed: ${error}</p>`;
  return html`<p class="good-text">Test passed in ${duration(latencyMs)}${models > 0 && `: ${plural(models, "model")} listed`}</p>`;
}
