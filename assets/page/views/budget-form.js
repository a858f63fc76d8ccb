/** The form of one budget, in a panel. */

import { html, useState } from "../vendor/preact.js";
import { stringify } from "../api.js";
import { CheckField, Form, isWhole, Options, SelectField, TextField, useForm, wholeOrText, zoneNames } from "../forms.js";
import { settings, useData } from "../state.js";
import { Dialog, toast } from "../ui.js";

/** Filters with the same name in the API; flows and the others are texts. */
const FILTERS = ["model", "key", "tag", "client", "endUser", "project"];
const ADVANCED = ["onShort", "bound", "minOutputTokens", "allowUnpriced", "includeSubscriptions", "onLoop"];
/** Fields that have another name in the form. */
const FIELD_OF = { __proto__: null, limitUsd: "limit", limitTokens: "limit" };
const PERIODS = [["day", "Day"], ["month", "Month"], ["run", "Run"], ["session", "Session"]];
const HARD_HINT = "Without it, the budget only warns, at 80 and at 100 percent.";

/** Returns the values of the form; `budget` is null for a new one. */
function valuesOf(budget) {
  const inTokens = (budget?.limitTokens ?? null) !== null;
  return {
    name: budget?.name ?? "",
    per: budget?.per ?? "month",
    limit: String((inTokens ? budget.limitTokens : budget?.limitUsd) ?? ""),
    unit: inTokens ? "tokens" : "usd",
    flowId: String(budget?.flowId ?? ""),
    ...Object.fromEntries(FILTERS.map((filter) => [filter, budget?.[filter] ?? ""])),
    timezone: budget?.timezone ?? settings.get().zone,
    minOutputTokens: String(budget?.minOutputTokens ?? ""),
    hard: budget?.hard ?? true,
    onShort: budget?.onShort === "refuse",
    bound: budget?.bound === "strict",
    allowUnpriced: budget?.allowUnpriced ?? false,
    includeSubscriptions: budget?.includeSubscriptions ?? false,
    onLoop: budget?.onLoop === "stop",
  };
}

/** Returns the fields that do not apply to the other values; they stay visible, so that the form does not move. */
const disabledBy = ({ per, unit, hard, onShort }) => ({
  timezone: ["run", "session"].includes(per),
  includeSubscriptions: unit === "tokens",
  onLoop: per !== "session" || !hard,
  onShort: !hard,
  bound: !hard,
  minOutputTokens: !hard || onShort,
  allowUnpriced: !hard || unit === "tokens",
});

/** Returns the budget that the API expects. */
function budgetOf(values) {
  const typed = (name) => values[name].trim();
  const isDisabled = disabledBy(values);
  const limit = typed("limit");
  return {
    name: typed("name"),
    per: values.per,
    ...(values.unit === "tokens" ? { limitTokens: wholeOrText(limit) } : { limitUsd: limit }),
    ...(values.flowId ? { flowId: Number(values.flowId) } : {}),
    ...Object.fromEntries(FILTERS.filter(typed).map((filter) => [filter, typed(filter)])),
    hard: values.hard,
    allowUnpriced: values.allowUnpriced,
    ...(values.onShort ? { onShort: "refuse" } : {}),
    ...(values.bound ? { bound: "strict" } : {}),
    ...(typed("minOutputTokens") ? { minOutputTokens: wholeOrText(typed("minOutputTokens")) } : {}),
    ...(values.includeSubscriptions ? { includeSubscriptions: true } : {}),
    ...(values.onLoop && !isDisabled.onLoop ? { onLoop: "stop" } : {}),
    timezone: typed("timezone"),
  };
}

function check({ unit, limit }) {
  if (unit !== "tokens" || isWhole(limit.trim())) return [];
  return [{ field: "limit", message: "must be a whole number of tokens without separators" }];
}

/** A budget without its usage, to notice that another client changed it. */
const definition = ({ state, ...budget }) => stringify(budget);

/**
 * `original`: the budget being edited; null for a new one, with the values of `initial`, if any. `change(edit)` stores
 * the budgets (see budgets.js).
 */
export function BudgetForm({ original, initial, change, onClose }) {
  const [opened] = useState(original);
  const [start] = useState(() => valuesOf(opened ?? initial));
  /** The version that the user has seen; a later one is overwritten only after a notice. */
  const [seen] = useState({ definition: opened && definition(opened) });
  const put = (budget) => (all) => {
    const index = opened ? all.findIndex(({ name }) => name === opened.name) : -1;
    const at = index < 0 ? all.length : index;
    if (opened) assertSeen(seen, all[index]);
    return { at, all: [...all.slice(0, at), budget, ...all.slice(at + 1)] };
  };
  const form = useForm({
    name: "budget",
    initial: start,
    check,
    title: "Cannot save the budget",
    fieldOf: ({ field }) => FIELD_OF[field] ?? field,
    async send(values) {
      const budget = budgetOf(values);
      try {
        await change(put(budget));
      } catch (error) {
        throw placed(error);
      }
      toast("done", ["Budget “", { name: budget.name }, "” was saved"]);
      onClose();
      requestAnimationFrame(() => focusOn(budget.name));
    },
  });
  const close = async () => (await form.guard()) && onClose();
  return html`
    <${Dialog} side title=${opened ? `Edit “${opened.name}”` : "Add budget"} onClose=${onClose} guard=${form.guard} testid="budget-dialog">
      <${Form} form=${form} action="Save" onCancel=${close}><${Fields} form=${form} /><//>
    <//>
  `;
}

const focusOn = (name) => document.querySelector(`[data-testid=budget][data-name=${CSS.escape(name)}] [data-testid=budget-edit]`)?.focus();

/** Throws if the budget has been changed since the user saw it, and counts it as seen. */
function assertSeen(seen, current) {
  const now = current ? definition(current) : null;
  if (seen.definition === now) return;
  seen.definition = now;
  throw new Error(now ? "it was changed meanwhile by another client. Save again to replace that change" : "it was deleted meanwhile. Save again to create it anew");
}

/** Names the form's fields in the faults of a list of budgets, and the other budgets by their names. */
function placed(error) {
  if (error.status !== 422 || !Array.isArray(error.details)) return error;
  const details = error.details.map(({ field, message }) => {
    const [, at, own] = /^budgets\[(\d+)\](?:\.(\w+))?/.exec(field) ?? [null, error.at, field];
    if (Number(at) === Number(error.at)) return { field: own ?? "name", message };
    return { field: "", message: `“${error.names?.[at]}”: ${message}` };
  });
  return Object.assign(error, { details });
}

function Fields({ form }) {
  const { values } = form;
  const isDisabled = disabledBy(values);
  const flows = useData("/api/flows?summary=true&limit=1000").data?.items ?? [];
  const keys = useData("/api/keys").data?.items ?? [];
  const known = flows.some(({ id }) => String(id) === values.flowId) || !values.flowId ? flows : [...flows, { id: values.flowId, name: `flow ${values.flowId}` }];
  const [hasFilters] = useState(() => Boolean(values.flowId) || FILTERS.some((filter) => values[filter]));
  const [isAdvanced] = useState(() => ADVANCED.some((name) => values[name]));
  const text = (name, label, hint, rest = {}) => html`<${TextField} form=${form} name=${name} label=${label} hint=${hint} disabled=${isDisabled[name]} ...${rest} />`;
  const checkbox = (name, label, hint) => html`<${CheckField} form=${form} name=${name} label=${label} hint=${hint} disabled=${isDisabled[name]} />`;
  return html`
    ${text("name", "Name", null, { autofocus: true })}
    <div class="form-row">
      ${text("limit", "Limit", "For example 12.50. Amounts are exact.", { inputmode: "decimal" })}
      <${SelectField} form=${form} name="unit" label="Unit" options=${[["usd", "US dollars"], ["tokens", "Tokens"]]} />
      <${SelectField} form=${form} name="per" label="Period" options=${PERIODS} />
    </div>
    ${checkbox("hard", "Hard limit: refuse calls that might exceed it", HARD_HINT)}
    ${text("timezone", "Time zone", "Days and months begin in this zone.", { list: "budget-zones" })}
    <${Options} id="budget-zones" values=${ZONES} />
    <details class="form-part" open=${hasFilters}>
      <summary>Limit only some calls</summary>
      <div class="form">
        <p class="hint">Leave a field empty for all traffic.</p>
        <${SelectField} form=${form} name="flowId" label="Flow" options=${[["", "All flows and gateway calls"], ...known.map(({ id, name }) => [id, name])]} />
        ${text("model", "Model", "PROVIDER/MODEL; a * at the end matches any rest.", { class: "mono" })}
        ${text("key", "Gateway key", "The name of a key.", { list: "budget-keys" })}
        <${Options} id="budget-keys" values=${keys.map(({ name }) => name)} />
        <div class="form-row">${text("tag", "Tag")}${text("client", "Client", "The program of a client, such as claude-cli.")}</div>
        <div class="form-row">${text("endUser", "End user")}${text("project", "Project")}</div>
      </div>
    </details>
    <details class="form-part" open=${isAdvanced}>
      <summary>Advanced</summary>
      <div class="form">
        ${checkbox("onShort", "Refuse calls instead of lowering their output limit")}
        ${text("minOutputTokens", "Lowest output limit", "Tokens. Leave empty for 1024.", { inputmode: "numeric" })}
        ${checkbox("bound", "Strict: count each byte of a prompt as a token")}
        ${checkbox("allowUnpriced", "Allow calls with an unknown price")}
        ${checkbox("includeSubscriptions", "Include calls that a subscription covers")}
        ${checkbox("onLoop", "Stop a session that repeats itself", "For a hard budget per session.")}
      </div>
    </details>
  `;
}

const ZONES = zoneNames();
