/** The form of a key: a new one with an optional budget, or the limits of an existing one. */

import { createNote, newId, onceAtATime } from "./dialogs.js";
import { h, setText } from "./dom.js";
import { createField as fieldOf, faultSummary, LOCAL_ZONE, showFaults } from "./fields.js";

const createField = (name, label, control, hint) => fieldOf("key", name, label, control, hint);
/** Fields that have another name in the API. */
const FIELD_OF = {
  __proto__: null,
  "budget.name": "budgetName",
  "budget.per": "per",
  "budget.limitUsd": "limit",
  "budget.limitTokens": "limit",
};

/**
 * `onSave(id, key)` creates a key if `id` is null, and otherwise changes these fields of the key. The form calls
 * `onEnd(id, isSaved)` when it has closed.
 */
export function createKeyForm({ flowNames, onSave, onEnd }) {
  /** The key being edited; null for a new one. */
  let edited = null;
  let isChanged = false;
  const note = createNote();
  const option = (value, text) => h("option", { value }, text);
  const text = (more) => h("input", { autocomplete: "off", spellcheck: "false", ...more });
  const check = (more) => h("input", { type: "checkbox", ...more });
  const fields = {
    name: createField("name", "Name", text({}), "Shown in the ledger for calls with this key."),
    expiresAt: createField("expiresAt", "Expires on", h("input", { type: "date" }), "The key expires when this day begins in your time zone. Leave empty for no expiry."),
    models: createField(
      "models",
      "Models",
      h("textarea", { class: "mono", rows: 2, autocomplete: "off", spellcheck: "false" }),
      "PROVIDER/MODEL, one in each line; a * at the end matches any rest. Leave empty for all models.",
    ),
    flows: createField("flows", "Flows", h("select", { multiple: true, size: 3 }), "The flows that calls may name in X-Flowledger-Flow."),
    requestsPerMinute: createField("requestsPerMinute", "Requests per minute", text({ inputmode: "numeric" }), "Leave empty for no limit."),
    tokensPerMinute: createField("tokensPerMinute", "Tokens per minute", text({ inputmode: "numeric" }), "Leave empty for no limit."),
    hasBudget: createField("hasBudget", "Create a budget for this key", check({})),
    limit: createField("limit", "Limit", text({ inputmode: "decimal" }), "For example 12.50. Amounts are exact."),
    unit: createField("unit", "Unit", h("select", {}, option("usd", "US dollars"), option("tokens", "Tokens"))),
    per: createField("per", "Period", h("select", {}, option("day", "Day"), option("month", "Month")), `Time zone: ${LOCAL_ZONE}. To change it, edit the budget.`),
    budgetName: createField("budgetName", "Budget name", text({}), "Leave empty to use the name of the key."),
    hard: createField("hard", "Hard limit: refuse calls that might exceed it", check({ checked: true })),
  };
  const controls = Object.fromEntries(Object.entries(fields).map(([name, { control }]) => [name, control]));
  const pairs = (...names) => h("div", { class: "pairs" }, ...names.map((name) => fields[name].root));
  const budgetFields = h("div", { class: "sheet-fields", hidden: true }, pairs("limit", "unit", "per", "budgetName"), fields.hard.root);
  const titleId = newId("title");
  const title = h("h3", { id: titleId });
  const save = h("button", { class: "primary", "data-testid": "key-save" });
  const cancel = h("button", { type: "button", "data-testid": "key-cancel", onclick: () => end(false) }, "Cancel");
  const saveOnce = onceAtATime(save, saveForm);
  const root = h(
    "form",
    {
      class: "budget-form",
      novalidate: true, // The server checks each field.
      hidden: true,
      "data-testid": "key-form",
      "aria-labelledby": titleId,
      oninput: () => ((isChanged = true), (budgetFields.hidden = !controls.hasBudget.checked)),
      onsubmit: (event) => {
        event.preventDefault();
        saveOnce();
      },
    },
    title,
    pairs("name", "expiresAt", "models", "flows", "requestsPerMinute", "tokensPerMinute"),
    fields.hasBudget.root,
    budgetFields,
    note.root,
    h("div", { class: "buttons" }, cancel, save),
  );

  /** `key` is null for a new one. Opening the same key again keeps input that was neither saved nor discarded. */
  function open(key) {
    const isSame = !root.hidden && edited?.id === key?.id;
    if (!isSame || !isChanged) write(key);
    root.hidden = false;
    root.scrollIntoView({ block: "nearest" });
    (key ? controls.models : controls.name).focus();
  }

  function write(key) {
    root.reset();
    edited = key;
    isChanged = false;
    setText(title, key ? `Edit “${key.name}”` : "Create key");
    setText(save, key ? "Save" : "Create key");
    controls.name.value = key?.name ?? "";
    controls.name.disabled = key !== null; // Ledger rows and budgets refer to the name.
    controls.expiresAt.value = key?.expiresAt ? localDay(key.expiresAt) : "";
    controls.models.value = (key?.models ?? []).join("\n");
    controls.requestsPerMinute.value = key?.requestsPerMinute ?? "";
    controls.tokensPerMinute.value = key?.tokensPerMinute ?? "";
    fillFlows(key?.flows ?? []);
    fields.hasBudget.root.hidden = key !== null;
    budgetFields.hidden = true;
    showFaults(fields, [], () => null);
    note.say("");
  }

  /** Offers deleted flows too, because a key may still name them. */
  function fillFlows(selected) {
    const known = flowNames();
    const deleted = selected.filter((flow) => !known.some(({ id }) => id === flow));
    const all = [...known, ...deleted.map((id) => ({ id, name: `flow ${id}` }))];
    controls.flows.replaceChildren(...all.map(({ id, name }) => h("option", { value: id, selected: selected.includes(id) }, name)));
  }

  function end(isSaved) {
    const id = edited?.id ?? null;
    write(null);
    root.hidden = true;
    onEnd(id, isSaved);
  }

  const typed = (name) => controls[name].value.trim();

  /** Returns the values of the form, and the limits of a new key only if they are set. */
  function read() {
    const limits = readLimits();
    if (edited) return changes(limits);
    return {
      name: typed("name"),
      ...Object.fromEntries(Object.entries(limits).filter(([, value]) => value !== null)),
      ...(controls.hasBudget.checked ? { budget: readBudget() } : {}),
    };
  }

  function readLimits() {
    const expiresOn = typed("expiresAt");
    const models = typed("models").split(/[\n,]/).map((model) => model.trim()).filter(Boolean);
    const number = (name) => (typed(name) ? Number(typed(name)) : null);
    return {
      expiresAt: expiresOn ? new Date(`${expiresOn}T00:00`).toISOString() : null,
      models: models.length ? models : null,
      flows: [...controls.flows.selectedOptions].map(({ value }) => Number(value)),
      requestsPerMinute: number("requestsPerMinute"),
      tokensPerMinute: number("tokensPerMinute"),
    };
  }

  /** Leaves out unchanged fields, so that the time of an expiry and deleted flows stay. */
  function changes(limits) {
    const isSame = {
      __proto__: null,
      expiresAt: typed("expiresAt") === (edited.expiresAt ? localDay(edited.expiresAt) : ""),
      flows: String(limits.flows.toSorted()) === String(edited.flows.toSorted()),
    };
    const isChangedField = ([name, value]) => !(isSame[name] ?? JSON.stringify(value) === JSON.stringify(edited[name]));
    return Object.fromEntries(Object.entries(limits).filter(isChangedField));
  }

  function readBudget() {
    const limit = typed("limit");
    return {
      ...(typed("budgetName") ? { name: typed("budgetName") } : {}),
      per: controls.per.value,
      ...(controls.unit.value === "tokens" ? { limitTokens: Number(limit) } : { limitUsd: limit }),
      hard: controls.hard.checked,
      timezone: LOCAL_ZONE,
    };
  }

  /** Finds inputs that the browser would change before sending. */
  function localFaults() {
    const faults = [];
    if (controls.expiresAt.validity.badInput) faults.push({ field: "expiresAt", message: "must be a complete date or empty" });
    for (const name of ["requestsPerMinute", "tokensPerMinute"]) {
      if (typed(name) && !isCount(typed(name))) faults.push({ field: name, message: "must be a whole number without separators" });
    }
    const isInTokens = controls.hasBudget.checked && controls.unit.value === "tokens";
    if (isInTokens && !isCount(typed("limit"))) {
      faults.push({ field: "budget.limitTokens", message: "must be a whole number of tokens without separators" });
    }
    return faults;
  }

  async function saveForm() {
    const faults = localFaults();
    if (faults.length) return showErrors(faults);
    try {
      await onSave(edited?.id ?? null, read());
      end(true);
    } catch (error) {
      if (error.status === 422 && Array.isArray(error.details)) showErrors(error.details);
      else note.fail(edited ? "Cannot save the key" : "Cannot create the key", error);
    }
  }

  function showErrors(faults) {
    const nameOf = ({ field }) => FIELD_OF[field] ?? field.replace(/\[\d+\]$/, "");
    const others = showFaults(fields, faults, nameOf);
    note.fail(edited ? "Not saved" : "Not created", faultSummary(faults, others));
    Object.values(controls).find(({ ariaInvalid }) => ariaInvalid)?.focus();
  }

  return { root, open, isOpen: () => !root.hidden };
}

const isCount = (text) => /^\d+$/.test(text) && Number.isSafeInteger(Number(text));

/** The date of a time in the browser's zone, as date inputs have it. */
function localDay(rfc3339) {
  const time = new Date(rfc3339);
  const two = (number) => String(number).padStart(2, "0");
  return `${String(time.getFullYear()).padStart(4, "0")}-${two(time.getMonth() + 1)}-${two(time.getDate())}`;
}
