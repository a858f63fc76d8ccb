/** The keys of the gateway's clients: their limits, budgets and spend, and how they are made, replaced and deleted. */

import { html, useState } from "../vendor/preact.js";
import * as api from "../api.js";
import { isCostUnknown, plural } from "../format.js";
import { Meter } from "../meter.js";
import { PeriodPicker, usePeriod } from "../period-picker.js";
import { address, useData, useFlowNames, useMessages, useThrottled } from "../state.js";
import { confirmAction, Empty, ErrorNote, Facts, Loading, Menu, Money, Section, showError, Time, toast } from "../ui.js";

/** Limits how often the keys are fetched while calls are made; slow sums are fetched less often. */
const REFRESH_PAUSE_MS = 2_000;
const REST_FACTOR = 10;
const PATH = "/api/keys";
const GRACE_DEFAULT_S = 3_600;
/** The offered times that a replaced key stays valid, in seconds. */
const GRACES = [[0, "no time"], [GRACE_DEFAULT_S, "1 hour"], [86_400, "1 day"], [604_800, "7 days"], [2_592_000, "30 days"]];

/** `onCreated({ name, key })` gets a new key, which only this page knows. */
export function Keys({ query, onCreated }) {
  const { from, to, label } = usePeriod(query);
  const keys = useData(PATH);
  const budgets = useData("/api/budget");
  const spend = useData(address("/api/ledger/summary", { group_by: "key", from, to }));
  const reload = () => [keys, budgets, spend].forEach((data) => data.reload());
  const reloadSoon = useThrottled(reload, Math.max(REFRESH_PAUSE_MS, REST_FACTOR * (spend.tookMs ?? 0)));
  useMessages(({ type }) => type === "LEDGER_UPDATE" && reloadSoon());
  /** The open dialog: { Part, props }. Its module is loaded when it is needed. */
  const [dialog, setDialog] = useState(null);
  const close = () => setDialog(null);
  const show = async (name, props) => {
    try {
      const { [name]: Part } = name === "KeyForm" ? await import("./key-form.js") : await import("./key-created.js");
      setDialog({ Part, props: { ...props, onClose: close } });
    } catch (error) {
      showError("Cannot open the dialog", error);
    }
  };
  const receive = (created) => {
    onCreated({ name: created.name, key: created.key });
    reload();
    return show("KeyCreated", { created });
  };
  const edit = (key) => show("KeyForm", { edited: key, onSaved: reload, onCreated: receive });
  const items = keys.data?.items;
  const create = html`<button type="button" class="primary" data-testid="key-add" onClick=${() => edit(null)}>Create key</button>`;
  return html`
    <${Section} title="Keys" testid="keys" actions=${html`<${PeriodPicker} query=${query} />${create}`}>
      <p class="muted">A key grants a program access to the gateway only. The ledger shows its name, and a budget can limit it. On a server without a token, programs without a key have access too, and no key’s budget limits them.</p>
      <${ErrorNote} title="Cannot load the keys" error=${keys.error} onRetry=${reload} />
      ${!items && !keys.error && html`<${Loading} />`}
      ${items?.length === 0 && html`<${Empty} title="No keys yet."><p>Create one for each program, so that the ledger tells their calls apart.</p><//>`}
      ${items?.length > 0 && html`
        <ol class="budget-list" aria-label="Keys">
          ${items.map((key) => html`
            <${Key} key=${key.id} item=${key} budgets=${budgets.data?.budgets.filter((budget) => budget.key === key.name) ?? []}
              spend=${spend.data && (spend.data.items.find((sum) => sum.key === key.name) ?? null)} period=${label}
              onEdit=${() => edit(key)} onRotated=${receive} onDeleted=${reload} />
          `)}
        </ol>
      `}
      ${dialog && html`<${dialog.Part} ...${dialog.props} />`}
    <//>
  `;
}

/** `spend`: the sums of the period; null without calls, undefined while they load. */
function Key({ item, budgets, spend, period, onEdit, onRotated, onDeleted }) {
  const { name, expiresAt } = item;
  const isExpired = expiresAt !== null && Date.parse(expiresAt) <= Date.now();
  const menu = [
    { label: "Show calls", href: address("/calls", { key: name }) },
    { label: "Replace…", onClick: () => rotate(item, onRotated), testid: "key-rotate" },
    { label: "Delete…", danger: true, onClick: () => remove(item, budgets, onDeleted), testid: "key-delete" },
  ];
  return html`
    <li class="card budget" data-testid="key" data-key=${name}>
      <div class="section-head">
        <div class="budget-title"><h3><bdi>${name}</bdi></h3>${isExpired && html`<span class="status" data-kind="bad">expired</span>`}</div>
        <div class="buttons">
          <button type="button" data-testid="key-edit" aria-label=${`Edit: ${name}`} onClick=${onEdit}>Edit</button>
          <${Menu} label="…" name=${`More: ${name}`} testid="key-menu" items=${menu} />
        </div>
      </div>
      <${Facts} facts=${[
        [`Spent, ${period.toLowerCase()}`, html`<${Spend} sums=${spend} />`],
        ["Last used", item.lastUsedAt ? html`<${Time} at=${item.lastUsedAt} ago />` : "never"],
        ["Expires", expiresAt === null ? "never" : html`<${Time} at=${expiresAt} />`],
        ["Created", html`<${Time} at=${item.createdAt} />`],
        ...limitFacts(item),
      ]} />
      ${budgets.map((budget) => html`
        <div key=${budget.name} class="own-budget" data-testid="key-budget">
          <${Meter} budget=${budget} />
          <p class="muted">Budget <a href=${address("/budgets", { edit: budget.name })}><bdi>${budget.name}</bdi></a>, ${budget.hard ? "hard limit" : "warns only"}, per ${budget.per}</p>
        </div>
      `)}
    </li>
  `;
}

function Spend({ sums }) {
  if (sums === undefined) return "…";
  if (sums === null) return "no calls";
  return html`<${Money} usd=${isCostUnknown(sums) ? null : (sums.total_cost_usd ?? 0)} /> <span class="muted">in ${plural(sums.calls, "call")}</span>`;
}

/** The limits of a key that are set. */
function limitFacts({ models, flows, requestsPerMinute, tokensPerMinute, formerKeyValidUntil }) {
  const rates = [requestsPerMinute !== null && plural(requestsPerMinute, "request"), tokensPerMinute !== null && plural(tokensPerMinute, "token")].filter(Boolean);
  return [
    ["Models", models?.length ? html`<bdi>${models.join(", ")}</bdi>` : null],
    ["Flows", flows.length ? html`<${FlowNames} ids=${flows} />` : null],
    ["Per minute", rates.join(", ") || null],
    ["Former key", formerKeyValidUntil === null ? null : html`valid until <${Time} at=${formerKeyValidUntil} />`],
  ];
}

function FlowNames({ ids }) {
  const flowName = useFlowNames();
  return ids.map((id, at) => html`<span key=${id}>${at > 0 && ", "}<a href=${`/flows/${id}`}><bdi>${flowName(id)}</bdi></a></span>`);
}

async function rotate({ id, name }, onRotated) {
  let graceSeconds = GRACE_DEFAULT_S;
  const more = html`
    <div class="field">
      <label for="key-grace">The current key stays valid for</label>
      <select id="key-grace" data-testid="key-grace" onChange=${({ target }) => (graceSeconds = Number(target.value))}>
        ${GRACES.map(([seconds, label]) => html`<option key=${seconds} value=${seconds} selected=${seconds === GRACE_DEFAULT_S}>${label}</option>`)}
      </select>
    </div>
  `;
  const text = `“${name}” gets a new key, with the same limits and budgets. The current key is refused after this time.`;
  if (!(await confirmAction({ title: "Replace this key?", text, more, action: "Replace key" }))) return;
  try {
    await onRotated(await api.post(`${PATH}/${id}/rotate`, { graceSeconds }));
  } catch (error) {
    showError("Cannot replace the key", error);
  }
}

async function remove({ id, name }, budgets, onDeleted) {
  const names = `the ${budgets.length === 1 ? "budget" : "budgets"} ${budgets.map((budget) => `“${budget.name}”`).join(", ")}`;
  let withBudgets = false;
  const more = budgets.length > 0 && html`
    <label class="check"><input type="checkbox" data-testid="key-with-budgets" onChange=${({ target }) => (withBudgets = target.checked)} /> <span>Also delete ${names}</span></label>
  `;
  const kept = budgets.length ? " Its budgets stay for a later key of the same name, unless you delete them too." : "";
  const text = `Programs that use “${name}” will be refused. Its ledger rows stay.${kept}`;
  if (!(await confirmAction({ title: "Delete this key?", text, more, action: "Delete key" }))) return;
  try {
    await api.remove(`${PATH}/${id}${withBudgets ? "?with_budgets=true" : ""}`);
    onDeleted();
    toast("done", ["Key “", { name }, withBudgets ? `” and ${names} were deleted` : "” was deleted"]);
    document.querySelector("[data-testid=key-add]")?.focus();
  } catch (error) {
    showError("Cannot delete the key", error);
  }
}
