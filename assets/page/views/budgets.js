/** The view "Budgets": the usage of each budget, and the form that adds and changes one. */

import { html, useEffect, useRef, useState } from "../vendor/preact.js";
import * as api from "../api.js";
import { levelOf, Meter } from "../meter.js";
import { setQuery, useData, useFlowNames, useMessages, useThrottled } from "../state.js";
import { confirmAction, Empty, ErrorNote, Loading, Menu, Page, showError, Time, toast } from "../ui.js";

const PATH = "/api/budget";
/** Limits how often the budgets are fetched while calls are made. */
const REFRESH_PAUSE_MS = 2_000;

/** A first budget that harms nothing: it only warns. */
const FIRST = { name: "Everything", per: "month", limitUsd: "20", hard: false };

export default function Budgets({ query }) {
  const { data, error, reload, setData } = useData(PATH);
  const reloadSoon = useThrottled(reload, REFRESH_PAUSE_MS);
  useMessages(({ type }) => ["LEDGER_UPDATE", "BUDGET_WARNING"].includes(type) && reloadSoon());
  useTick();
  const budgets = data?.budgets;
  const edited = query.get("edit");
  const isFormOpen = budgets && (query.has("new") || edited !== null);
  const change = async (edit) => {
    const saved = await changeBudgets(edit);
    setData(() => saved);
    return saved;
  };
  const close = () => setQuery({ edit: null, new: null });
  const add = html`<button type="button" class="primary" data-testid="budget-add" onClick=${() => setQuery({ new: "budget", edit: null })}>Add budget</button>`;
  return html`
    <${Page} title="Budgets" actions=${add} subtitle="A budget limits the cost or the tokens of a day, a month, a run or a session.">
      <${ErrorNote} title="Cannot load the budgets" error=${error} onRetry=${reload} />
      ${!data && !error && html`<${Loading} />`}
      ${budgets?.length === 0 && html`<${NoBudgets} />`}
      ${budgets?.length > 0 && html`
        <ol class="budget-list" aria-label="Budgets" data-testid="budgets">
          ${budgets.map((budget, at) => html`<${Budget} key=${budget.name} budget=${budget} at=${at} count=${budgets.length} change=${change} />`)}
        </ol>
      `}
      ${isFormOpen && html`<${LazyForm} key=${`edit ${edited}`} edited=${edited} budgets=${budgets} initial=${query.get("new") === "first" ? FIRST : null} change=${change} onClose=${close} />`}
    <//>
  `;
}

/** Renders again at intervals, so that "resets in 3 h" stays right. */
function useTick() {
  const [, tick] = useState(0);
  useEffect(() => {
    const timer = setInterval(() => tick((n) => n + 1), 60_000);
    return () => clearInterval(timer);
  }, []);
}

/** The form of the budget with the name `edited`, or of a new one for null. It is loaded when it is needed. */
function LazyForm({ edited, budgets, ...props }) {
  const [original] = useState(() => budgets.find(({ name }) => name === edited) ?? null);
  const [Form, setForm] = useState(null);
  const [error, setError] = useState(null);
  useEffect(() => {
    import("./budget-form.js").then((module) => setForm(() => module.BudgetForm), setError);
  }, []);
  if (error) return html`<${ErrorNote} title="Cannot load the form" error=${error} onRetry=${() => location.reload()} />`;
  if (edited !== null && !original) return html`<${ErrorNote} title=${`There is no budget “${edited}”`} error=${{}} />`;
  return Form && html`<${Form} original=${original} ...${props} />`;
}

const NoBudgets = () => html`
  <${Empty} title="No budgets yet. Spending has no limit.">
    <p>A good first budget is $20 a month for everything. It only warns, at 80 and at 100 percent, and refuses no call. You can make it a hard limit later.</p>
    <button type="button" data-testid="budget-first" onClick=${() => setQuery({ new: "first", edit: null })}>Set this budget</button>
  <//>
`;

/**
 * Keeps changes that others made in the meantime: reads the current list, then stores the list that `edit(current)`
 * returns together with the index of its change. Retries once if another client saved in between.
 */
async function changeBudgets(edit, isRetry = false) {
  const { budgets: current, version } = await api.get(PATH);
  const { at = null, all } = edit(current);
  try {
    return await api.put(PATH, { budgets: all, version });
  } catch (error) {
    if (error.status === 409 && !isRetry) return changeBudgets(edit, true);
    throw Object.assign(error, { at, names: all.map(({ name }) => name) });
  }
}

const LEVELS = {
  __proto__: null,
  high: ["warn", "Nearly used up"],
  full: ["bad", "Used up"],
};

function Budget({ budget, at, count, change }) {
  const { name, hard, state } = budget;
  const editButton = useRef(null);
  const [kind, word] = (state && LEVELS[levelOf(state)]) ?? [];
  const move = (step) => async () => {
    try {
      await change((all) => ({ all: moved(all, name, step) }));
      editButton.current?.focus();
    } catch (error) {
      showError("Cannot move the budget", error);
    }
  };
  const menu = [
    at > 0 && { label: "Move up", onClick: move(-1), testid: "budget-up" },
    at < count - 1 && { label: "Move down", onClick: move(1), testid: "budget-down" },
    { label: "Delete…", danger: true, onClick: () => deleteBudget(name, change), testid: "budget-delete" },
  ];
  return html`
    <li class="card budget" data-testid="budget" data-name=${name}>
      <div class="section-head">
        <div class="budget-title">
          <h2><bdi>${name}</bdi></h2>
          <span class="badge">${hard ? "hard limit" : "warns only"}</span>
          ${word && html`<span class="status" data-kind=${kind}>${word}</span>`}
        </div>
        <div class="buttons">
          <button type="button" ref=${editButton} data-testid="budget-edit" aria-label=${`Edit: ${name}`} onClick=${() => setQuery({ edit: name, new: null })}>Edit</button>
          <${Menu} label="…" name=${`More: ${name}`} testid="budget-menu" items=${menu} />
        </div>
      </div>
      <${Meter} budget=${budget} />
      <${Terms} budget=${budget} />
    </li>
  `;
}

/** Returns the budgets with the one of this name moved by a step. */
function moved(all, name, step) {
  const at = all.findIndex((budget) => budget.name === name);
  const to = at + step;
  if (at < 0 || to < 0 || to >= all.length) return all;
  const others = all.toSpliced(at, 1);
  return others.toSpliced(to, 0, all[at]);
}

async function deleteBudget(name, change) {
  const isConfirmed = await confirmAction({ title: "Delete this budget?", text: `“${name}” will no longer limit calls. Ledger rows stay.`, action: "Delete budget" });
  if (!isConfirmed) return;
  try {
    await change((all) => ({ all: all.filter((budget) => budget.name !== name) }));
    toast("done", ["Budget “", { name }, "” was deleted"]);
    document.querySelector("[data-testid=budget-add]")?.focus();
  } catch (error) {
    showError("Cannot delete the budget", error);
  }
}

/** What a budget covers, when it resets, and its rules, in words. */
function Terms({ budget }) {
  const { per, hard, state, timezone } = budget;
  const period = ["run", "session"].includes(per) ? `each ${per}` : `per ${per}, in ${timezone}`;
  return html`
    <p class="muted budget-terms" data-testid="budget-terms">
      <span><${Scope} budget=${budget} /></span>
      <span>${period}</span>
      ${state?.to && html`<span>resets <${Time} at=${state.to} ago /> (<${Time} at=${state.to} />)</span>`}
      ${hard && html`<span>refuses calls that might exceed the limit</span>`}
      ${rulesOf(budget).map((rule) => html`<span key=${rule}>${rule}</span>`)}
    </p>
  `;
}

/** Names of filters in words; the flow has a name of its own. */
const FILTERS = { model: "model", key: "key", tag: "tag", client: "client", endUser: "end user", project: "project" };

function Scope({ budget }) {
  const flowName = useFlowNames();
  const { flowId } = budget;
  const parts = Object.entries(FILTERS).filter(([field]) => budget[field]).map(([field, word]) => [word, budget[field]]);
  const hasFlow = (flowId ?? null) !== null;
  if (!parts.length && !hasFlow) return "All calls";
  return html`
    ${hasFlow && html`Flow <a href=${`/flows/${flowId}`}><bdi>${flowName(flowId)}</bdi></a>`}
    ${parts.map(([word, name], index) => html`<span key=${word}>${hasFlow || index > 0 ? `, ${word}` : capital(word)} <bdi>${name}</bdi></span>`)}
  `;
}

const capital = (text) => text[0].toUpperCase() + text.slice(1);

function rulesOf({ hard, onShort, bound, minOutputTokens, allowUnpriced, includeSubscriptions, onLoop }) {
  return [
    hard && onShort === "refuse" && "does not lower output limits",
    hard && (minOutputTokens ?? null) !== null && `lowers output limits to ${minOutputTokens} tokens at least`,
    hard && bound === "strict" && "counts each byte of a prompt as a token",
    allowUnpriced && "allows unknown prices",
    includeSubscriptions && "includes subscriptions",
    onLoop === "stop" && "stops sessions that repeat themselves",
  ].filter(Boolean);
}
