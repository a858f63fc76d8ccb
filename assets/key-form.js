/** The form of a new key and its optional budget. */

import { createNote, newId, onceAtATime } from "./dialogs.js";
import { h } from "./dom.js";
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

/** `onSave(key)` creates the key; `onEnd(isCreated)` is called when the form has closed. */
export function createKeyForm({ onSave, onEnd }) {
  const note = createNote();
  const option = (value, text) => h("option", { value }, text);
  const text = (more) => h("input", { autocomplete: "off", spellcheck: "false", ...more });
  const check = (more) => h("input", { type: "checkbox", ...more });
  const fields = {
    name: createField("name", "Name", text({}), "Shown in the ledger for calls with this key."),
    expiresAt: createField("expiresAt", "Expires on", h("input", { type: "date" }), "The key expires when this day begins in your time zone. Leave empty for no expiry."),
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
  const save = h("button", { class: "primary", "data-testid": "key-save" }, "Create key");
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
      oninput: () => (budgetFields.hidden = !controls.hasBudget.checked),
      onsubmit: (event) => {
        event.preventDefault();
        saveOnce();
      },
    },
    h("h3", { id: titleId }, "Create key"),
    pairs("name", "expiresAt"),
    fields.hasBudget.root,
    budgetFields,
    note.root,
    h("div", { class: "buttons" }, cancel, save),
  );

  /** Keeps input that was neither saved nor discarded. */
  function open() {
    root.hidden = false;
    root.scrollIntoView({ block: "nearest" });
    controls.name.focus();
  }

  function end(isCreated) {
    root.reset();
    budgetFields.hidden = true;
    showFaults(fields, [], () => null);
    note.say("");
    root.hidden = true;
    onEnd(isCreated);
  }

  const typed = (name) => controls[name].value.trim();

  function read() {
    const expiresOn = typed("expiresAt");
    return {
      name: typed("name"),
      ...(expiresOn ? { expiresAt: new Date(`${expiresOn}T00:00`).toISOString() } : {}),
      ...(controls.hasBudget.checked ? { budget: readBudget() } : {}),
    };
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
    const isInTokens = controls.hasBudget.checked && controls.unit.value === "tokens";
    if (isInTokens && !(/^\d+$/.test(typed("limit")) && Number.isSafeInteger(Number(typed("limit"))))) {
      faults.push({ field: "budget.limitTokens", message: "must be a whole number of tokens without separators" });
    }
    return faults;
  }

  async function saveForm() {
    const faults = localFaults();
    if (faults.length) return showErrors(faults);
    try {
      await onSave(read());
      end(true);
    } catch (error) {
      if (error.status === 422 && Array.isArray(error.details)) showErrors(error.details);
      else note.fail("Cannot create the key", error);
    }
  }

  function showErrors(faults) {
    const others = showFaults(fields, faults, ({ field }) => FIELD_OF[field] ?? field);
    note.fail("Not created", faultSummary(faults, others));
    Object.values(controls).find(({ ariaInvalid }) => ariaInvalid)?.focus();
  }

  return { root, open, isOpen: () => !root.hidden };
}
