/** The dialog that sets one filter of the view "Calls", with values of the period to choose from. */

import { html, useState } from "../vendor/preact.js";
import { moneyOrUnknown, plural } from "../format.js";
import { address, setQuery, useData, useFlowNames } from "../state.js";
import { Button, Dialog, ErrorNote, Field, Loading } from "../ui.js";
import { STATUSES } from "./calls-rows.js";

/** More values than this are only found by typing. */
const VALUES_MAX = 200;

/** `parameters`: of the API, with all present filters. */
export default function FilterDialog({ filter, value, parameters, onClose }) {
  const apply = (next) => {
    setQuery({ [filter.name]: next });
    onClose();
  };
  const Choice = filter.group ? Values : filter.kind === "several" ? Statuses : Typed;
  return html`<${Dialog} title=${`Filter by ${filter.label.toLowerCase()}`} onClose=${onClose} testid="filter-dialog"><${Choice} ...${{ filter, value, parameters, apply }} /><//>`;
}

function Statuses({ value, apply }) {
  const [chosen, setChosen] = useState(value.split(",").filter(Boolean));
  const toggle = (status) => setChosen(chosen.includes(status) ? chosen.filter((one) => one !== status) : [...chosen, status]);
  const onSubmit = (event) => {
    event.preventDefault();
    apply(STATUSES.filter((status) => chosen.includes(status)).join(","));
  };
  return html`
    <form onSubmit=${onSubmit}>
      <fieldset class="columns-choice">
        <legend class="hidden-text">Statuses to show</legend>
        ${STATUSES.map((status) => html`<label key=${status} class="check"><input type="checkbox" data-testid=${`status-${status}`} checked=${chosen.includes(status)} onChange=${() => toggle(status)} /> ${status.toLowerCase()}</label>`)}
      </fieldset>
      <${Submit} />
    </form>
  `;
}

const Submit = () => html`<p class="buttons form-buttons"><${Button} type="submit" kind="primary" data-testid="filter-apply">Apply<//></p>`;

/** A number or an ID. */
function Typed({ filter, value, apply }) {
  const [typed, setTyped] = useState(value);
  const [fault, setFault] = useState(null);
  const onSubmit = (event) => {
    event.preventDefault();
    const text = typed.trim();
    const isNumber = /^\d+(\.\d+)?$/.test(text) && (filter.unit !== "ms" || !text.includes("."));
    if (text && filter.kind === "number" && !isNumber) return setFault(filter.unit === "ms" ? "Please enter a whole number of milliseconds." : "Please enter an amount in US dollars, such as 0.05.");
    return apply(text);
  };
  const label = filter.unit ? `${filter.label} (${filter.unit === "$" ? "US dollars" : "milliseconds"})` : filter.label;
  return html`
    <form onSubmit=${onSubmit} novalidate>
      <${Field} label=${label} hint=${filter.hint} fault=${fault}>
        ${(attributes) => html`<input ...${attributes} autofocus data-testid="filter-value" autocomplete="off" spellcheck=${false} inputmode=${filter.kind === "number" ? "decimal" : null} value=${typed} onInput=${({ target }) => setTyped(target.value)} />`}
      <//>
      <${Submit} />
    </form>
  `;
}

/** The values of the period with their calls and costs; another value can be typed. */
function Values({ filter, value, parameters, apply }) {
  const [typed, setTyped] = useState("");
  const flowName = useFlowNames();
  const { data, error, isLoading, reload } = useData(address("/api/ledger/summary", { ...parameters, q: null, [filter.name]: null, group_by: filter.group }));
  const isFlow = filter.group === "flow";
  const named = (data?.items ?? []).filter(({ key }) => key !== null && key !== "").map((item) => ({ ...item, value: String(item.key), name: isFlow ? flowName(Number(item.key)) : String(item.key) }));
  const part = typed.trim().toLowerCase();
  const found = named.filter(({ name }) => name.toLowerCase().includes(part)).sort((a, b) => b.calls - a.calls);
  const onSubmit = (event) => {
    event.preventDefault();
    const exact = found.find(({ name }) => name === typed.trim()) ?? (isFlow || found.length === 1 ? found[0] : null);
    if (exact) apply(exact.value);
    else if (typed.trim() && !isFlow) apply(typed.trim());
  };
  return html`
    <form onSubmit=${onSubmit}>
      <${Field} label=${filter.label} hint=${named.length ? null : "Names of calls in this period appear here."}>
        ${(attributes) => html`<input ...${attributes} type="search" autofocus data-testid="filter-value" autocomplete="off" spellcheck=${false} placeholder="Type to search" value=${typed} onInput=${({ target }) => setTyped(target.value)} />`}
      <//>
      ${error ? html`<${ErrorNote} title="Cannot list the values" error=${error} onRetry=${reload} />` : isLoading && html`<${Loading} />`}
      <ul class="filter-values">
        ${found.slice(0, VALUES_MAX).map((item) => html`
          <li key=${item.value}><button type="button" data-testid="filter-option" aria-current=${item.value === value ? "true" : null} onClick=${() => apply(item.value)}>
            <bdi class="cut">${item.name}</bdi><span class="muted">${plural(item.calls, "call")} · ${moneyOrUnknown(item.total_cost_usd)}</span>
          </button></li>
        `)}
      </ul>
      ${!isFlow && part && !found.some(({ name }) => name === typed.trim()) && html`<p class="buttons"><${Button} type="submit" data-testid="filter-apply">Filter by “${typed.trim()}”<//></p>`}
    </form>
  `;
}
