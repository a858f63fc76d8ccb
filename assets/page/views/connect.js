/** The view "Connect": set-ups of clients, keys of the gateway, providers, and models with their prices. */

import { html, useEffect, useState } from "../vendor/preact.js";
import { currentToken } from "../api.js";
import { PROTOCOLS, SETUPS } from "../client-setups.js";
import { address, setQuery } from "../state.js";
import { Copy, CopyLine, Page, Section, useId } from "../ui.js";
import { Keys } from "./connect-keys.js";
import { Models } from "./connect-models.js";
import { Providers } from "./connect-providers.js";

const PARTS = [["client", "Client"], ["keys", "Keys"], ["providers", "Providers"], ["models", "Models and prices"]];
/** The text in place of a key. Without a token, the server accepts any text. */
const ANY_KEY = "anything";
const NO_KEY = "YOUR_KEY";

export default function Connect({ query }) {
  /** The key that was just made, until the view is left: { name, key }. The server shows it only once. */
  const [created, setCreated] = useState(null);
  const part = query.get("part");
  useEffect(() => goTo(part && document.getElementById(`connect-${part}`)), [part]);
  const links = PARTS.map(([name, label]) => html`<li key=${name}><a href=${address("/connect", { ...Object.fromEntries(query), part: name })} aria-current=${part === name ? "true" : null}>${label}</a></li>`);
  return html`
    <${Page} title="Connect" subtitle="Point a client at flowledger, and its calls appear in the ledger.">
      <nav class="parts" aria-label="Parts of this view"><ul>${links}</ul></nav>
      <div class="part" id="connect-client" tabindex="-1"><${Clients} query=${query} created=${created} /></div>
      <div class="part" id="connect-keys" tabindex="-1"><${Keys} query=${query} onCreated=${setCreated} /></div>
      <div class="part" id="connect-providers" tabindex="-1"><${Providers} /></div>
      <div class="part" id="connect-models" tabindex="-1"><${Models} /></div>
    <//>
  `;
}

/** How long a part keeps its place while the parts above it load. */
const LOADING_MS = 3_000;

/** Goes to a part of the view, and stays there while the parts above it load, until the reader acts. */
function goTo(target) {
  if (!target) return undefined;
  target.focus({ preventScroll: true });
  const observer = new ResizeObserver(() => target.scrollIntoView());
  observer.observe(target.parentElement);
  for (const part of target.parentElement.children) observer.observe(part);
  const stop = () => observer.disconnect();
  const timer = setTimeout(stop, LOADING_MS);
  for (const type of ["wheel", "pointerdown", "keydown"]) addEventListener(type, stop, { once: true, passive: true });
  return () => {
    stop();
    clearTimeout(timer);
  };
}

function Clients({ query, created }) {
  const id = useId("client");
  const base = location.origin;
  const key = created?.key ?? (currentToken() ? NO_KEY : ANY_KEY);
  const setup = SETUPS.find((of) => of.id === query.get("client")) ?? SETUPS[0];
  const groups = [...new Set(SETUPS.map(({ group }) => group))];
  return html`
    <${Section} title="Set up a client" testid="clients">
      <div class="card connect-card">
        <dl class="base-urls">
          ${PROTOCOLS.map(([of, name, path, note]) => html`
            <div key=${of}><dt>Base URL, ${name}</dt><dd><${CopyLine} text=${base + path} name=${`base URL, ${name}`} testid=${`base-url-${of}`} />${note && html` <span class="hint">${note}</span>`}</dd></div>
          `)}
        </dl>
        <div class="field client-choice">
          <label for=${id}>Client</label>
          <select id=${id} data-testid="client-select" onChange=${({ target }) => setQuery({ client: target.value })}>
            ${groups.map((group) => html`
              <optgroup key=${group} label=${group}>
                ${SETUPS.filter((of) => of.group === group).map((of) => html`<option key=${of.id} value=${of.id} selected=${of.id === setup.id}>${of.name}</option>`)}
              </optgroup>
            `)}
          </select>
        </div>
        ${setup.blocks({ base, key }).map(([title, text]) => html`<${CodeBlock} key=${setup.id + title} title=${title} text=${text} name=${`${setup.name}, ${title}`} />`)}
        ${setup.note && html`<p class="hint">${setup.note}</p>`}
        <p class="hint" data-testid="client-key-hint">${keyHint(created)}</p>
      </div>
    <//>
  `;
}

function keyHint(created) {
  if (created) return html`Contains the key <bdi>${created.name}</bdi>, until you leave this view.`;
  if (currentToken()) return html`Create a key below; it then replaces ${NO_KEY} here.`;
  return "This server runs without a token, so any text works as the key. With a key of your own, the ledger shows its name.";
}

const CodeBlock = ({ title, text, name }) => html`
  <div class="code-block">
    <div class="code-head"><span class="muted">${title}</span><${Copy} text=${text} name=${name} /></div>
    <pre tabindex="0" role="group" aria-label=${name} data-testid="client-code">${text}</pre>
  </div>
`;
