/** The dialog with all budgets: their usage, and the form that adds and changes one. */

import * as api from "./api.js";
import { createBudgetForm } from "./budget-form.js";
import { confirmAction, createNote, createSheet, onceAtATime } from "./dialogs.js";
import { h, perFrame, setText } from "./dom.js";
import { moment } from "./format.js";
import { createMeter } from "./meter.js";

/** Limits how often the budgets are fetched while calls are made. */
const REFRESH_PAUSE_MS = 2_000;
const PATH = "/api/budget";

/** `flowNames()` returns `{ id, name }` of all flows. */
export function createBudgets({ flowNames }) {
  let isOpen = false;
  let isLoaded = false;
  let isFetching = false;
  /** The newest list from the server. */
  let budgets = [];
  /** By name: { root, update }. */
  const cards = new Map();

  const sheet = createSheet({ testid: "budgets", onClose: () => (isOpen = false) });
  const note = createNote();
  const retry = h("button", { type: "button", hidden: true, onclick: () => load() }, "Retry");
  const list = h("ol", { class: "budgets", "aria-label": "Budgets" });
  const add = h("button", { type: "button", "data-testid": "budget-add", onclick: () => edit(null) }, "Add budget");
  const empty = h("p", { class: "empty" }, "No budgets yet. Spending has no limit.");
  const form = createBudgetForm({ flowNames, onSave: save, onEnd: endEdit });
  const parts = h("div", { class: "sheet-parts", hidden: true }, list, empty, h("div", { class: "buttons" }, add), form.root);
  sheet.body.append(h("p", { class: "muted" }, "A budget limits the cost or the tokens of a day, a month, a run or a session. A hard budget refuses calls that might exceed it."), note.root, retry, parts);

  /** Fetches soon, one time for all requests until then, and only while the dialog is open. */
  const fetchSoon = perFrame(() => isOpen && refreshNow(), REFRESH_PAUSE_MS);

  function open(focusBack) {
    isOpen = true;
    sheet.open("Budgets", focusBack);
    return load();
  }

  async function load() {
    if (retry === document.activeElement) sheet.close.focus();
    retry.hidden = true;
    if (!isLoaded) note.say("Loading…");
    try {
      await fetchAll();
      note.say(form.isOpen() ? "You have unsaved changes." : "");
    } catch (error) {
      note.fail("Cannot load the budgets", error);
      retry.hidden = false;
    }
  }

  async function fetchAll() {
    show((await api.get(PATH)).budgets);
  }

  async function refreshNow() {
    if (isFetching) return fetchSoon();
    isFetching = true;
    try {
      await fetchAll();
      retry.hidden = true;
    } catch {
      // The connection line shows the error, and the next message fetches again.
    } finally {
      isFetching = false;
    }
  }

  function show(newBudgets) {
    budgets = newBudgets;
    isLoaded = true;
    parts.hidden = false;
    draw();
  }

  function draw() {
    const names = new Set(budgets.map(({ name }) => name));
    for (const [name, card] of cards) {
      if (names.has(name)) continue;
      card.root.remove();
      cards.delete(name);
    }
    budgets.forEach((budget, index) => {
      const { name } = budget;
      if (!cards.has(name)) cards.set(name, createCard({ onEdit: () => edit(name), onDelete: () => deleteBudget(name) }));
      const card = cards.get(name);
      card.update(budget, scopeOf(budget));
      if (list.children[index] !== card.root) list.insertBefore(card.root, list.children[index] ?? null);
    });
    list.hidden = budgets.length === 0;
    empty.hidden = budgets.length > 0;
  }

  function scopeOf({ flowId, model, key, tag, client, endUser, project, includeSubscriptions }) {
    const flow = (flowId ?? null) === null ? null : `flow ${flowNames().find(({ id }) => id === flowId)?.name ?? flowId}`;
    const scopes = [flow, model && `model ${model}`, key && `key ${key}`, tag && `tag ${tag}`, client && `client ${client}`, endUser && `end user ${endUser}`, project && `project ${project}`].filter(Boolean);
    return `${scopes.length ? scopes.join(", ") : "all calls"}${includeSubscriptions ? ", subscriptions included" : ""}`;
  }

  /** Refuses to switch while another form has unsaved input. */
  function edit(name) {
    if (form.isOpen() && form.original() !== name && form.isChanged()) {
      note.fail("Another budget is being edited", { message: "save or cancel it first" });
      form.focus();
      return;
    }
    note.say("");
    add.hidden = true;
    form.open(budgets.find((budget) => budget.name === name) ?? null);
  }

  function endEdit(saved) {
    add.hidden = false;
    const { original, name } = saved ?? form.last();
    note.say(saved ? `“${name}” was saved.` : "");
    (cards.get(saved ? name : original)?.editButton ?? add).focus();
  }

  function save(original, budget) {
    return change((current) => {
      const index = current.findIndex(({ name }) => name === original);
      const at = index < 0 ? current.length : index;
      return { at, all: [...current.slice(0, at), budget, ...current.slice(at + 1)] };
    });
  }

  /**
   * Keeps changes that others made in the meantime: reads the current list, then stores the list that `edit(current)`
   * returns together with the index of its change. Retries once if another client saved in between.
   */
  async function change(edit, isRetry = false) {
    const { budgets: current, version } = await api.get(PATH);
    const { at, all } = edit(current);
    try {
      await putAll(all, version);
    } catch (error) {
      if (error.status === 409 && !isRetry) return change(edit, true);
      throw Object.assign(error, { at, names: all.map(({ name }) => name) });
    }
  }

  async function putAll(all, version) {
    // Do not overwrite a number that JavaScript has rounded.
    const inexact = all.find(({ limitTokens }) => (limitTokens ?? null) !== null && !Number.isSafeInteger(limitTokens));
    if (inexact) throw new Error(`the token limit of “${inexact.name}” is too large for this page; change it with the API`);
    show((await api.put(PATH, { budgets: all, version })).budgets);
  }

  async function deleteBudget(name) {
    const isConfirmed = await confirmAction({
      title: "Delete this budget?",
      text: `“${name}” will no longer limit calls. Ledger rows stay.`,
      action: "Delete budget",
    });
    if (!isConfirmed) return;
    try {
      await change((current) => ({ all: current.filter((budget) => budget.name !== name) }));
      note.say(`“${name}” was deleted.`);
      (add.hidden ? sheet.close : add).focus();
    } catch (error) {
      note.fail("Cannot delete the budget", error);
    }
  }

  return { open, refresh: () => isOpen && fetchSoon(), poll: async () => void (isOpen && (await fetchAll())) };
}

/** One budget. Updates happen in place, to keep the focus and the reader's position. */
function createCard({ onEdit, onDelete }) {
  const title = h("h3", {});
  const terms = h("p", { class: "muted" });
  const editButton = h("button", { type: "button", "data-testid": "budget-edit", onclick: onEdit }, "Edit");
  const deleteButton = h("button", { type: "button", class: "danger", "data-testid": "budget-delete", onclick: () => deleteOnce() }, "Delete…");
  const deleteOnce = onceAtATime(deleteButton, onDelete);
  const root = h(
    "li",
    { class: "budget", "data-testid": "budget" },
    h("div", { class: "budget-head" }, title, h("div", { class: "buttons" }, editButton, deleteButton)),
  );
  const meter = createMeter(root);
  root.append(terms);

  function update(budget, scope) {
    const { name, state, per, hard } = budget;
    meter.update(budget);
    setText(title, name);
    editButton.ariaLabel = `Edit: ${name}`;
    deleteButton.ariaLabel = `Delete: ${name}`;
    const until = state?.to ? `; resets ${moment(state.to)} (local time)` : "";
    const unpriced = `${budget.allowUnpriced ? "; allows unknown prices" : ""}${budget.onLoop === "stop" ? "; stops sessions that repeat themselves" : ""}`;
    setText(terms, `${hard ? `Hard: refuses calls over the limit${unpriced}` : "Soft: only warns"} · ${scope} · per ${per}${["run", "session"].includes(per) ? "" : ` in ${budget.timezone}${until}`}`);
  }

  return { root, editButton, update };
}
