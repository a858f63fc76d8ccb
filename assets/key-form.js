/** The form of a new key and its optional budget. */

import { createNote, newId, onceAtATime } from "./dialogs.js";
import { h } from "./dom.js";
import { createField as fieldOf, showFaults, ZONE_HERE } from "./fields.js";

const createField = (name, label, control, hint) => fieldOf("key", name, label, control, hint);
/** Fields that have another name in the API. */
const FIELD_OF = {
  __proto__: null,
  "budget.name": "budgetName",
  "budget.per": "per",
  "budget.limitUsd": "limit",
  "budget.limitTokens": "limit",
};

/** `onSave(key)` creates the key; `onEnd(isMade)` is called when the form has closed. */
export function createKeyForm({ onSave, onEnd }) {
  const note = createNote();
  const option = (value, text) => h("option", { value }, text);
  const text = (more) => h("input", { autocomplete: "off", spellcheck: "false", ...more });
  const check = (more) => h("input", { type: "checkbox", ...more });
  const fields = {
    name: createField("name", "Name", text({}), "Calls with this key have it in the ledger."),
    expiresAt: createField("expiresAt", "Expires on", h("input", { type: "date" }), "As that day begins by this browser’s clock; never where it is empty."),
    hasBudget: createField("hasBudget", "With a budget of its own", check({})),
    limit: createField("limit", "Limit", text({ inputmode: "decimal" }), "A number such as 12.50; kept exactly as it is."),
    unit: createField("unit", "Counted in", h("select", {}, option("usd", "US dollars"), option("tokens", "tokens"))),
    per: createField("per", "For each", h("select", {}, option("day", "day"), option("month", "month")), `By the clock of ${ZONE_HERE}; Budgets can change it.`),
    budgetName: createField("budgetName", "Name of the budget", text({}), "That of the key where it is empty."),
    hard: createField("hard", "Hard: refuse calls that might go beyond it", check({ checked: true })),
  };
  const controls = Object.fromEntries(Object.entries(fields).map(([name, { control }]) => [name, control]));
  const pairs = (...names) => h("div", { class: "pairs" }, ...names.map((name) => fields[name].root));
  const ofBudget = h("div", { class: "sheet-fields", hidden: true }, pairs("limit", "unit", "per", "budgetName"), fields.hard.root);
  const titleId = newId("title");
  const save = h("button", { class: "primary", "data-testid": "key-save" }, "Create key");
  const discard = h("button", { type: "button", "data-testid": "key-discard", onclick: () => end(false) }, "Discard");
  const saveOnce = onceAtATime(save, saveForm);
  const root = h(
    "form",
    {
      class: "budget-form",
      novalidate: true, // The server checks each field.
      hidden: true,
      "data-testid": "key-form",
      "aria-labelledby": titleId,
      oninput: () => (ofBudget.hidden = !controls.hasBudget.checked),
      onsubmit: (event) => {
        event.preventDefault();
        saveOnce();
      },
    },
    h("h3", { id: titleId }, "Create a key"),
    pairs("name", "expiresAt"),
    fields.hasBudget.root,
    ofBudget,
    note.root,
    h("div", { class: "buttons" }, discard, save),
  );

  /** Keeps input that was neither saved nor discarded. */
  function open() {
    root.hidden = false;
    root.scrollIntoView({ block: "nearest" });
    controls.name.focus();
  }

  function end(isMade) {
    root.reset();
    ofBudget.hidden = true;
    showFaults(fields, [], () => null);
    note.say("");
    root.hidden = true;
    onEnd(isMade);
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
      timezone: ZONE_HERE,
    };
  }

  /** Finds inputs that the browser would change before sending. */
  function misread() {
    const faults = [];
    if (controls.expiresAt.validity.badInput) faults.push({ field: "expiresAt", message: "must be a whole date, or empty" });
    const isOfTokens = controls.hasBudget.checked && controls.unit.value === "tokens";
    if (isOfTokens && !(/^\d+$/.test(typed("limit")) && Number.isSafeInteger(Number(typed("limit"))))) {
      faults.push({ field: "budget.limitTokens", message: "must be a whole number of tokens, without separators" });
    }
    return faults;
  }

  async function saveForm() {
    const faults = misread();
    if (faults.length) return refuse(faults);
    try {
      await onSave(read());
      end(true);
    } catch (error) {
      if (error.status === 422 && Array.isArray(error.details)) refuse(error.details);
      else note.fail("The key was not made", error);
    }
  }

  function refuse(faults) {
    const others = showFaults(fields, faults, ({ field }) => FIELD_OF[field] ?? field);
    note.fail("Not made", { message: "something is to be mended", details: others });
    Object.values(controls).find(({ ariaInvalid }) => ariaInvalid)?.focus();
  }

  return { root, open, isOpen: () => !root.hidden };
}
