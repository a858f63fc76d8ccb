/** Models with their prices, and models whose price is missing. */

import { html, useState } from "../vendor/preact.js";
import { count, plural } from "../format.js";
import { address, useData } from "../state.js";
import { Copy, Dash, Empty, ErrorNote, Loading, Money, Section, Time } from "../ui.js";

/** More models are shown on demand. */
const SHOWN_MAX = 20;

export function Models() {
  const { data, error, reload } = useData("/api/models");
  const [text, setText] = useState("");
  const [isAll, showAll] = useState(false);
  const wanted = text.trim().toLowerCase();
  const found = (data?.items ?? []).filter(({ provider, model }) => `${provider}/${model}`.toLowerCase().includes(wanted));
  const shown = isAll || wanted ? found : found.slice(0, SHOWN_MAX);
  const search = data?.items.length > 10 && html`<input type="search" class="model-search" aria-label="Search for a model" placeholder="Search models" data-testid="model-search" value=${text} onInput=${({ target }) => setText(target.value)} />`;
  return html`
    <${Section} title="Models and prices" testid="models" actions=${search}>
      <${MissingPrices} />
      <${ErrorNote} title="Cannot load the models" error=${error} onRetry=${reload} />
      ${!data && !error && html`<${Loading} />`}
      ${data?.items.length === 0 && html`<${Empty} title="No models yet."><p>Models appear here after their first call.</p><//>`}
      ${data && data.items.length > 0 && found.length === 0 && html`<p role="status">No model matches.</p>`}
      ${shown.length > 0 && html`
        <table class="table models" aria-label="Models and prices">
          <thead>
            <tr><th scope="col">Model</th><th scope="col" class="number">Calls</th><th scope="col">Last call</th><th scope="col" class="number">Input</th><th scope="col" class="number">Cached input</th><th scope="col" class="number">Output</th><th scope="col">Source</th></tr>
          </thead>
          <tbody>${shown.map((item) => html`<${Model} key=${`${item.provider}/${item.model}`} item=${item} />`)}</tbody>
        </table>
        <p class="hint">Prices in US dollars for a million tokens.</p>
      `}
      ${shown.length < found.length && html`<div class="buttons"><button type="button" onClick=${() => showAll(true)}>Show all ${count(found.length)} models</button></div>`}
    <//>
  `;
}

function Model({ item: { provider, model, calls, last_seen: at, price, reason } }) {
  const name = `${provider}/${model}`;
  const amount = (usd) => html`<${Money} usd=${price ? usd : null} unknown=${reason ?? "unknown price"} />`;
  return html`
    <tr data-testid="model" data-name=${name}>
      <td data-label="Model">${calls > 0 ? html`<a href=${address("/calls", { provider, model, period: "all" })}><bdi>${name}</bdi></a>` : html`<bdi>${name}</bdi>`}</td>
      <td data-label="Calls" class="number">${count(calls)}</td>
      <td data-label="Last call">${at ? html`<${Time} at=${at} ago />` : html`<${Dash} reason="no calls" />`}</td>
      <td data-label="Input" class="number">${amount(price?.input)}</td>
      <td data-label="Cached input" class="number">${amount(price?.cached_input)}</td>
      <td data-label="Output" class="number">${amount(price?.output)}</td>
      <td data-label="Source" class="source">${price ? html`<bdi>${price.source}</bdi>` : html`<span class="muted">${reason ?? "unknown price"}</span>`}</td>
    </tr>
  `;
}

/** A price file with the models without a price, to fill in. JSON's strings are also TOML's. */
const pricesFile = (items) =>
  items.map(({ provider, model }) => `[[price]]\nprovider = ${JSON.stringify(provider)}\nmodel = ${JSON.stringify(model)}\ninput_per_mtok = ""    # US dollars for a million tokens\noutput_per_mtok = ""\n`).join("\n");

function MissingPrices() {
  const { data, error, reload } = useData("/api/prices/missing");
  if (error) return html`<${ErrorNote} title="Cannot load the models without a price" error=${error} onRetry=${reload} />`;
  if (!data?.items.length) return null;
  const { items } = data;
  const snippet = pricesFile(items);
  return html`
    <div class="card connect-card" data-testid="prices-missing">
      <h3>${plural(items.length, "model")} without a price</h3>
      <p>The cost of their calls is unknown. Add their prices to your price file (<code>--prices FILE</code>); later calls use them at once.</p>
      <ul class="plain">
        ${items.map(({ provider, model, calls, input_tokens: input, output_tokens: output, last_seen: at }) => html`
          <li key=${`${provider}/${model}`} data-testid="price-missing"><a href=${address("/calls", { provider, model, period: "all" })}><bdi>${provider}/${model}</bdi></a> <span class="muted">${plural(calls, "call")}, ${count(input)} tokens in, ${count(output)} out, last <${Time} at=${at} ago /></span></li>
        `)}
      </ul>
      <div class="code-block">
        <div class="code-head"><span class="muted">prices.toml</span><${Copy} text=${snippet} name="entries for the price file" /></div>
        <pre tabindex="0" role="group" aria-label="Entries for the price file">${snippet}</pre>
      </div>
      <p class="hint">For earlier calls, stop the server and run <code>flowledger reprice --from DATE --dry-run</code>, then without <code>--dry-run</code>.</p>
    </div>
  `;
}
