/** The dialog with all budgets: their usage, and the form that adds and changes one. */

import * as api from "./api.js";
import { createBudgetForm } from "./budget-form.js";
import { ask, createNote, createSheet, onceAtATime } from "./dialogs.js";
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
  const again = h("button", { type: "button", hidden: true, onclick: () => load() }, "Try again");
  const list = h("ol", { class: "budgets", "aria-label": "Budgets" });
  const add = h("button", { type: "button", "data-testid": "budget-add", onclick: () => edit(null) }, "Add a budget");
  const empty = h("p", { class: "empty" }, "There are no budgets: nothing limits what is spent.");
  const form = createBudgetForm({ flowNames, onSave: save, onEnd: endEdit });
  const parts = h("div", { class: "sheet-parts", hidden: true }, list, empty, h("div", { class: "buttons" }, add), form.root);
  sheet.body.append(h("p", { class: "muted" }, "What may be spent in a day, a month or a run. A hard budget refuses calls that might go beyond it."), note.root, again, parts);

  /** Fetches soon, one time for all requests until then, and only while the dialog is open. */
  const fetchSoon = perFrame(() => isOpen && refreshNow(), REFRESH_PAUSE_MS);

  function open(focusBack) {
    isOpen = true;
    sheet.open("Budgets", focusBack);
    return load();
  }

  async function load() {
    if (again === document.activeElement) sheet.close.focus();
    again.hidden = true;
    if (!isLoaded) note.say("Loading…");
    try {
      await fetchAll();
      note.say(form.isOpen() ? "What you had typed was not saved yet." : "");
    } catch (error) {
      note.fail("The budgets are not there", error);
      again.hidden = false;
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
      again.hidden = true;
    } catch {
      // The connection line shows the error, and the next message fetches again.
    } finally {
      isFetching = false;
    }
  }

  function show(told) {
    budgets = told;
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
      if (!cards.has(name)) cards.set(name, createCard({ onEdit: () => edit(name), onRemove: () => remove(name) }));
      const card = cards.get(name);
      card.update(budget, scopeOf(budget));
      if (list.children[index] !== card.root) list.insertBefore(card.root, list.children[index] ?? null);
    });
    list.hidden = budgets.length === 0;
    empty.hidden = budgets.length > 0;
  }

  function scopeOf({ flowId, model, key }) {
    const flow = (flowId ?? null) === null ? null : `the flow ${flowNames().find(({ id }) => id === flowId)?.name ?? flowId}`;
    const of = [flow, model && `the model ${model}`, key && `the key ${key}`].filter(Boolean);
    return of.length ? `calls of ${of.join(" and ")}` : "all calls";
  }

  /** Refuses to switch while another form has unsaved input. */
  function edit(name) {
    if (form.isOpen() && form.original() !== name && form.isChanged()) {
      note.fail("Another budget is being edited", { message: "save or discard it first" });
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
    (cards.get(saved ? name : original)?.change ?? add).focus();
  }

  function save(original, budget) {
    return change((present) => {
      const index = present.findIndex(({ name }) => name === original);
      const at = index < 0 ? present.length : index;
      return { at, all: [...present.slice(0, at), budget, ...present.slice(at + 1)] };
    });
  }

  /**
   * Keeps changes that others made meanwhile: reads the present list, then stores the list that `edit(present)` returns
   * together with the index of its change. Retries once if another client saved in between.
   */
  async function change(edit, isAgain = false) {
    const { budgets: present, version } = await api.get(PATH);
    const { at, all } = edit(present);
    try {
      await putAll(all, version);
    } catch (error) {
      if (error.status === 409 && !isAgain) return change(edit, true);
      throw Object.assign(error, { at, names: all.map(({ name }) => name) });
    }
  }

  async function putAll(all, version) {
    // Do not overwrite a number that JavaScript has rounded.
    const inexact = all.find(({ limitTokens }) => (limitTokens ?? null) !== null && !Number.isSafeInteger(limitTokens));
    if (inexact) throw new Error(`“${inexact.name}” allows more tokens than a browser can count exactly; change it by the API`);
    show((await api.put(PATH, { budgets: all, version })).budgets);
  }

  async function remove(name) {
    const isSure = await ask({
      title: "Remove this budget?",
      text: `“${name}” limits nothing any more. What was spent stays in the ledger.`,
      action: "Remove budget",
    });
    if (!isSure) return;
    try {
      await change((present) => ({ all: present.filter((budget) => budget.name !== name) }));
      note.say(`“${name}” was removed.`);
      (add.hidden ? sheet.close : add).focus();
    } catch (error) {
      note.fail("The budget was not removed", error);
    }
  }

  return { open, refresh: () => isOpen && fetchSoon(), poll: async () => void (isOpen && (await fetchAll())) };
}

/** One budget. Updates happen in place, to keep the focus and the reader's position. */
function createCard({ onEdit, onRemove }) {
  const title = h("h3", {});
  const terms = h("p", { class: "muted" });
  const change = h("button", { type: "button", "data-testid": "budget-change", onclick: onEdit }, "Change");
  const removeOnce = () => removing();
  const removeButton = h("button", { type: "button", class: "danger", "data-testid": "budget-remove", onclick: removeOnce }, "Remove…");
  const removing = onceAtATime(removeButton, onRemove);
  const root = h(
    "li",
    { class: "budget", "data-testid": "budget" },
    h("div", { class: "budget-head" }, title, h("div", { class: "buttons" }, change, removeButton)),
  );
  const meter = createMeter(root);
  root.append(terms);

  function update(budget, scope) {
    const { name, state, per, hard } = budget;
    meter.update(budget);
    setText(title, name);
    change.ariaLabel = `Change: ${name}`;
    removeButton.ariaLabel = `Remove: ${name}`;
    const until = state?.to && per !== "run" ? `; begins anew ${moment(state.to)} by this browser’s clock` : "";
    const unpriced = budget.allowUnpriced ? "; lets calls of unknown price through" : "";
    setText(terms, `${hard ? `Hard: refuses beyond it${unpriced}` : "Soft: warns only"} · ${scope} · per ${per}${per === "run" ? "" : ` in ${budget.timezone}${until}`}`);
  }

  return { root, change, update };
}
