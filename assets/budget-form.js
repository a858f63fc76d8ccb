/** The form of one budget, with errors at their fields. Input stays until it is saved or discarded. */

import { createNote, newId, onceAtATime } from "./dialogs.js";
import { h, setText } from "./dom.js";
import { createField as fieldOf, createZones, faultSummary, LOCAL_ZONE, showFaults } from "./fields.js";

const createField = (name, label, control, hint) => fieldOf("budget", name, label, control, hint);
/** Leaves other input as it is, for the server's error. */
const wholeOrText = (typed) => (/^\d+$/.test(typed) ? Number(typed) : typed);
/** Fields with the same name in the API that restrict a budget. */
const FILTERS = ["tag", "client", "endUser", "project"];
/** Fields that have another name in the API. */
const FIELD_OF = { __proto__: null, limitUsd: "limit", limitTokens: "limit" };

/**
 * `onSave(original, budget)` stores the budget in place of the one named `original` (null for a new one); its errors
 * may have an index `at` into `names`. The form calls `onEnd({ original, name } or null)` when it has closed.
 */
export function createBudgetForm({ flowNames, onSave, onEnd }) {
  /** The name of the budget being edited; null for a new one. */
  let original = null;
  let isChanged = false;
  const note = createNote();
  const zones = createZones();
  const option = (value, text) => h("option", { value }, text);
  const text = (more) => h("input", { autocomplete: "off", spellcheck: "false", ...more });
  const fields = {
    name: createField("name", "Name", text({})),
    per: createField("per", "Period", h("select", {}, option("day", "Day"), option("month", "Month"), option("run", "Run"), option("session", "Session"))),
    limit: createField("limit", "Limit", text({ inputmode: "decimal" }), "For example 12.50. Amounts are exact."),
    unit: createField("unit", "Unit", h("select", {}, option("usd", "US dollars"), option("tokens", "Tokens"))),
    flowId: createField("flowId", "Flow", h("select", {})),
    model: createField("model", "Model", text({ class: "mono" }), "PROVIDER/MODEL; a * at the end matches any rest. Leave empty for all models."),
    key: createField("key", "Gateway key", text({}), "The name of a key. Leave empty for all traffic."),
    tag: createField("tag", "Tag", text({}), "Leave empty for all traffic."),
    client: createField("client", "Client", text({}), "The program of a client, such as claude-cli. Leave empty for all traffic."),
    endUser: createField("endUser", "End user", text({}), "Leave empty for all traffic."),
    project: createField("project", "Project", text({}), "Leave empty for all traffic."),
    timezone: createField("timezone", "Time zone", text({ list: zones.root.id })),
    minOutputTokens: createField("minOutputTokens", "Lowest output limit", text({ inputmode: "numeric" }), "Tokens. Leave empty for 1024."),
    hard: createField("hard", "Hard limit: refuse calls that might exceed it", h("input", { type: "checkbox" })),
    onShort: createField("onShort", "Refuse calls instead of lowering their output limit", h("input", { type: "checkbox" })),
    bound: createField("bound", "Strict: count each byte of a prompt as a token", h("input", { type: "checkbox" })),
    allowUnpriced: createField("allowUnpriced", "Allow calls with an unknown price", h("input", { type: "checkbox" })),
    includeSubscriptions: createField("includeSubscriptions", "Include calls that a subscription covers", h("input", { type: "checkbox" })),
    onLoop: createField("onLoop", "Stop a session that repeats itself", h("input", { type: "checkbox" })),
  };
  const controls = Object.fromEntries(Object.entries(fields).map(([name, { control }]) => [name, control]));
  const titleId = newId("title");
  const title = h("h3", { id: titleId });
  const save = h("button", { class: "primary", "data-testid": "budget-save" }, "Save");
  const cancel = h("button", { type: "button", "data-testid": "budget-cancel", onclick: () => end(null) }, "Cancel");
  const saveOnce = onceAtATime(save, saveForm);
  const root = h(
    "form",
    {
      class: "budget-form",
      novalidate: true, // The server checks each field.
      hidden: true,
      "data-testid": "budget-form",
      "aria-labelledby": titleId,
      oninput: () => ((isChanged = true), updateDisabled()),
      onsubmit: (event) => {
        event.preventDefault();
        saveOnce();
      },
    },
    title,
    h("div", { class: "pairs" }, ...Object.values(fields).slice(0, -6).map((field) => field.root)),
    fields.hard.root,
    fields.onShort.root,
    fields.bound.root,
    fields.allowUnpriced.root,
    fields.includeSubscriptions.root,
    fields.onLoop.root,
    zones.root,
    note.root,
    h("div", { class: "buttons" }, cancel, save),
  );

  /** `budget` is null for a new one. Opening the same budget again keeps the input. */
  function open(budget) {
    const isSame = !root.hidden && original === (budget?.name ?? null);
    if (!isSame || !isChanged) write(budget);
    root.hidden = false;
    root.scrollIntoView({ block: "nearest" });
    controls.name.focus();
  }

  function write(budget) {
    original = budget?.name ?? null;
    isChanged = false;
    zones.fill();
    fillFlows(budget?.flowId);
    setText(title, budget ? `Edit “${budget.name}”` : "Add budget");
    controls.name.value = budget?.name ?? "";
    controls.per.value = budget?.per ?? "day";
    const inTokens = (budget?.limitTokens ?? null) !== null;
    controls.unit.value = inTokens ? "tokens" : "usd";
    controls.limit.value = String((inTokens ? budget.limitTokens : budget?.limitUsd) ?? "");
    controls.model.value = budget?.model ?? "";
    controls.key.value = budget?.key ?? "";
    for (const filter of FILTERS) controls[filter].value = budget?.[filter] ?? "";
    controls.timezone.value = budget?.timezone ?? LOCAL_ZONE;
    controls.hard.checked = budget?.hard ?? true;
    controls.onShort.checked = budget?.onShort === "refuse";
    controls.bound.checked = budget?.bound === "strict";
    controls.minOutputTokens.value = String(budget?.minOutputTokens ?? "");
    controls.allowUnpriced.checked = budget?.allowUnpriced ?? false;
    controls.includeSubscriptions.checked = budget?.includeSubscriptions ?? false;
    controls.onLoop.checked = budget?.onLoop === "stop";
    showFaults(fields, [], () => null);
    note.say("");
    updateDisabled();
  }

  /** Offers a deleted flow too, because a budget may still name it. */
  function fillFlows(flowId = null) {
    const known = flowNames();
    if (flowId !== null && !known.some(({ id }) => id === flowId)) known.push({ id: flowId, name: `flow ${flowId}` });
    controls.flowId.replaceChildren(option("", "All flows and gateway calls"), ...known.map(({ id, name }) => option(id, name)));
    controls.flowId.value = flowId ?? "";
  }

  /** Disables fields that do not apply; they stay visible, so that the form does not move. */
  function updateDisabled() {
    controls.timezone.disabled = ["run", "session"].includes(controls.per.value);
    controls.includeSubscriptions.disabled = controls.unit.value === "tokens";
    controls.onLoop.disabled = controls.per.value !== "session" || !controls.hard.checked;
    for (const name of ["onShort", "bound"]) controls[name].disabled = !controls.hard.checked;
    controls.minOutputTokens.disabled = !controls.hard.checked || controls.onShort.checked;
    controls.allowUnpriced.disabled = !controls.hard.checked || controls.unit.value === "tokens";
  }

  function read() {
    const typed = (name) => controls[name].value.trim();
    const limit = typed("limit");
    return {
      name: typed("name"),
      per: controls.per.value,
      ...(controls.unit.value === "tokens" ? { limitTokens: Number(limit) } : { limitUsd: limit }),
      ...(typed("flowId") ? { flowId: Number(typed("flowId")) } : {}),
      ...(typed("model") ? { model: typed("model") } : {}),
      ...(typed("key") ? { key: typed("key") } : {}),
      ...Object.fromEntries(FILTERS.filter(typed).map((filter) => [filter, typed(filter)])),
      hard: controls.hard.checked,
      allowUnpriced: controls.allowUnpriced.checked,
      ...(controls.onShort.checked ? { onShort: "refuse" } : {}),
      ...(controls.bound.checked ? { bound: "strict" } : {}),
      ...(typed("minOutputTokens") ? { minOutputTokens: wholeOrText(typed("minOutputTokens")) } : {}),
      ...(controls.includeSubscriptions.checked ? { includeSubscriptions: true } : {}),
      ...(controls.onLoop.checked && !controls.onLoop.disabled ? { onLoop: "stop" } : {}),
      timezone: typed("timezone"),
    };
  }

  async function saveForm() {
    const budget = read();
    const isCount = (number, typed) => /^\d+$/.test(typed) && Number.isSafeInteger(number);
    if ("limitTokens" in budget && !isCount(budget.limitTokens, controls.limit.value.trim())) {
      return showErrors([{ field: "limit", message: "must be a whole number of tokens without separators" }]);
    }
    try {
      await onSave(original, budget);
      end({ original, name: budget.name });
    } catch (error) {
      if (error.status === 422 && Array.isArray(error.details)) showErrors(error.details, error);
      else note.fail("Cannot save the budget", error);
    }
  }

  function showErrors(faults, { at = null, names = [] } = {}) {
    const fieldAt = ({ field }) => {
      const [, place, name = null] = /^budgets\[(\d+)\](?:\.(\w+))?/.exec(field) ?? [null, at, field];
      return Number(place) === Number(at) ? (FIELD_OF[name] ?? name) : null;
    };
    const others = showFaults(fields, faults, fieldAt).map(({ field, message }) => {
      const other = names[/^budgets\[(\d+)\]/.exec(field)?.[1]];
      return { message: other ? `“${other}”: ${message}` : message };
    });
    note.fail("Not saved", faultSummary(faults, others));
    Object.values(controls).find(({ ariaInvalid }) => ariaInvalid)?.focus();
  }

  function end(saved) {
    root.hidden = true;
    isChanged = false;
    onEnd(saved);
  }

  return {
    root,
    open,
    focus: () => controls.name.focus(),
    isOpen: () => !root.hidden,
    isChanged: () => isChanged,
    original: () => original,
    last: () => ({ original, name: original }),
  };
}
