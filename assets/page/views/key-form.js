/** The form of a key, in a panel: a new one with an optional budget, or the limits of an existing one. */

import { html, useState } from "../vendor/preact.js";
import * as api from "../api.js";
import { CheckField, Form, isWhole, SelectField, TextField, useForm, whole, wholeOrText } from "../forms.js";
import { dateIn, startOfDay } from "../period-picker.js";
import { settings, useData } from "../state.js";
import { Dialog, toast } from "../ui.js";

/** Fields that have another name in the API. */
const FIELD_OF = { __proto__: null, "budget.name": "budgetName", "budget.per": "per", "budget.limitUsd": "limit", "budget.limitTokens": "limit" };
const RATES = ["requestsPerMinute", "tokensPerMinute"];

const dayOf = (rfc3339) => (rfc3339 ? dateIn(settings.get().zone, Date.parse(rfc3339)) : "");

/** Returns the values of the form; `key` is null for a new one. */
const valuesOf = (key) => ({
  name: key?.name ?? "",
  expiresAt: dayOf(key?.expiresAt),
  models: (key?.models ?? []).join("\n"),
  flows: key?.flows ?? [],
  requestsPerMinute: String(key?.requestsPerMinute ?? ""),
  tokensPerMinute: String(key?.tokensPerMinute ?? ""),
  hasBudget: false,
  limit: "",
  unit: "usd",
  per: "month",
  budgetName: "",
  hard: true,
});

function limitsOf(values) {
  const models = values.models.split(/[\n,]/).map((model) => model.trim()).filter(Boolean);
  const number = (name) => (values[name].trim() ? whole(values[name].trim()) : null);
  const [year, month, day] = values.expiresAt.split("-").map(Number);
  return {
    expiresAt: values.expiresAt ? startOfDay(settings.get().zone, year, month, day).toISOString() : null,
    models: models.length ? models : null,
    flows: values.flows,
    requestsPerMinute: number("requestsPerMinute"),
    tokensPerMinute: number("tokensPerMinute"),
  };
}

/** Leaves out unchanged fields, so that the time of an expiry and deleted flows stay. */
function changesOf(values, edited) {
  const before = valuesOf(edited);
  const isSame = (name) => String([values[name]].flat().toSorted()) === String([before[name]].flat().toSorted());
  return Object.fromEntries(Object.entries(limitsOf(values)).filter(([name]) => !isSame(name)));
}

/** Returns a new key with only the limits that are set. */
function newKeyOf(values) {
  const limit = values.limit.trim();
  const budget = {
    ...(values.budgetName.trim() ? { name: values.budgetName.trim() } : {}),
    per: values.per,
    ...(values.unit === "tokens" ? { limitTokens: wholeOrText(limit) } : { limitUsd: limit }),
    hard: values.hard,
    timezone: settings.get().zone,
  };
  return {
    name: values.name.trim(),
    ...Object.fromEntries(Object.entries(limitsOf(values)).filter(([, value]) => value !== null)),
    ...(values.hasBudget ? { budget } : {}),
  };
}

/** Finds input that is not a number, or that the browser drops. */
function check(values) {
  const faults = [];
  if (document.querySelector("[data-testid=key-expiresAt]")?.validity.badInput) faults.push({ field: "expiresAt", message: "must be a complete date or empty" });
  for (const name of RATES) {
    const text = values[name].trim();
    if (text && !isWhole(text)) faults.push({ field: name, message: "must be a whole number without separators" });
  }
  if (values.hasBudget && values.unit === "tokens" && !isWhole(values.limit.trim())) {
    faults.push({ field: "limit", message: "must be a whole number of tokens without separators" });
  }
  return faults;
}

/** `edited`: the key, or null for a new one. `onCreated(created)` gets the new key, which is shown only once. */
export function KeyForm({ edited, onSaved, onCreated, onClose }) {
  const [initial] = useState(() => valuesOf(edited));
  const form = useForm({
    name: "key",
    initial,
    check,
    title: edited ? "Cannot save the key" : "Cannot create the key",
    fieldOf: ({ field }) => FIELD_OF[field] ?? field.replace(/\[\d+\]$/, ""),
    async send(values) {
      if (!edited) {
        const created = await api.post("/api/keys", newKeyOf(values));
        onClose();
        return void onCreated(created);
      }
      await api.patch(`/api/keys/${edited.id}`, changesOf(values, edited));
      onClose();
      onSaved();
      toast("done", ["Key “", { name: edited.name }, "” was saved"]);
    },
  });
  const close = async () => (await form.guard()) && onClose();
  return html`
    <${Dialog} side title=${edited ? `Edit “${edited.name}”` : "Create key"} onClose=${onClose} guard=${form.guard} testid="key-dialog">
      <${Form} form=${form} action=${edited ? "Save" : "Create key"} onCancel=${close}><${Fields} form=${form} edited=${edited} /><//>
    <//>
  `;
}

function Fields({ form, edited }) {
  const text = (name, label, hint, rest) => html`<${TextField} form=${form} name=${name} label=${label} hint=${hint} ...${rest} />`;
  const { hasBudget } = form.values;
  const { zone } = settings.get();
  return html`
    ${text("name", "Name", edited ? "The name cannot change, because ledger rows and budgets refer to it." : "Shown in the ledger for calls with this key.", { autofocus: !edited, disabled: Boolean(edited) })}
    ${text("models", "Models", "PROVIDER/MODEL, one in each line; a * at the end matches any rest. Leave empty for all models.", { multiline: true, class: "mono", autofocus: Boolean(edited) })}
    <div class="form-row">
      ${text("requestsPerMinute", "Requests per minute", "Leave empty for no limit.", { inputmode: "numeric" })}
      ${text("tokensPerMinute", "Tokens per minute", "Leave empty for no limit.", { inputmode: "numeric" })}
    </div>
    ${text("expiresAt", "Expires on", `The key expires when this day begins in ${zone}. Leave empty for no expiry.`, { type: "date" })}
    <${FlowChoice} form=${form} />
    ${!edited && html`<${CheckField} form=${form} name="hasBudget" label="Create a budget for this key" />`}
    ${hasBudget && html`
      <div class="form-row">
        ${text("limit", "Limit", "For example 12.50. Amounts are exact.", { inputmode: "decimal" })}
        <${SelectField} form=${form} name="unit" label="Unit" options=${[["usd", "US dollars"], ["tokens", "Tokens"]]} />
        <${SelectField} form=${form} name="per" label="Period" hint=${`Time zone: ${zone}. To change it, edit the budget.`} options=${[["day", "Day"], ["month", "Month"]]} />
      </div>
      ${text("budgetName", "Budget name", "Leave empty to use the name of the key.")}
      <${CheckField} form=${form} name="hard" label="Hard limit: refuse calls that might exceed it" />
    `}
  `;
}

/** The flows that a key may name, as check boxes. Offers deleted flows too, because a key may still name them. */
function FlowChoice({ form }) {
  const known = useData("/api/flows?summary=true&limit=1000").data?.items ?? [];
  const { flows } = form.values;
  const deleted = flows.filter((flow) => !known.some(({ id }) => id === flow)).map((id) => ({ id, name: `flow ${id}` }));
  const all = [...known, ...deleted];
  const toggle = (id) => ({ target }) => form.set("flows", target.checked ? [...flows, id] : flows.filter((flow) => flow !== id));
  const fault = form.faultOf("flows");
  if (!all.length) return null;
  return html`
    <fieldset class="field flow-choice" data-testid="key-flows">
      <legend class="label">Flows</legend>
      <p class="hint">The flows that calls may name in X-Flowledger-Flow.</p>
      <div class="choices">
        ${all.map(({ id, name }) => html`<label key=${id} class="check"><input type="checkbox" value=${id} checked=${flows.includes(id)} onChange=${toggle(id)} /> <bdi>${name}</bdi></label>`)}
      </div>
      ${fault && html`<p class="fault" data-testid="key-flows-fault">${fault}</p>`}
    </fieldset>
  `;
}
