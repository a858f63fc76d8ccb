/** The triggers of a flow: its webhook and its schedule. The page holds a secret only until its dialog closes. */

import { html, useEffect, useState } from "./vendor/preact.js";
import * as api from "./api.js";
import { cronText } from "./cron-text.js";
import { flowPath } from "./flow-actions.js";
import { inputsOf } from "./flow-document.js";
import { useMessages } from "./state.js";
import { Button, confirmAction, Copy, CopyLine, Dialog, ErrorNote, Facts, Loading, LongText, showError, Time, toast } from "./ui.js";

export const Triggers = ({ flow, hasHook, hasSchedule }) => html`
  <div class="triggers">
    <${Webhook} key=${`hook ${flow.id} ${hasHook}`} flow=${flow} isSet=${hasHook} />
    <${Schedule} key=${`schedule ${flow.id} ${hasSchedule}`} flow=${flow} isSet=${hasSchedule} />
  </div>
`;

/** Returns a trigger: `value` is undefined until it is known, then null if there is none. Asks only if it `isSet`. */
function useTrigger(path, isSet) {
  const [{ value, error }, setState] = useState({ value: isSet ? undefined : null, error: null });
  const load = () => api.getIfAny(path).then((found) => setState({ value: found, error: null }), (failure) => setState((before) => ({ ...before, error: failure })));
  useEffect(() => void (isSet && load()), []);
  return { value, error, load, set: (next) => setState({ value: next, error: null }) };
}

/* Webhook. */

/** The browser's address of the server, because a proxy may hide that address from the server. */
const urlOf = ({ slug }) => `${location.origin}/hooks/${slug}`;

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

const curl = (url, secret, input) =>
  [`curl ${quoted(url)}`, `-H ${quoted(`X-Flowledger-Secret: ${secret}`)}`, "-H 'Idempotency-Key: order-17'", `-d ${quoted(api.stringify(input))}`].join(" \\\n  ");

/** An input that shows the names: declared defaults, else "…". */
const exampleInput = (flow) => Object.fromEntries(inputsOf(flow).map(({ name, default: fallback }) => [name, fallback ?? "…"]));

function Webhook({ flow, isSet }) {
  const path = `${flowPath(flow.id)}/hook`;
  const { value: hook, error, load, set } = useTrigger(path, isSet);
  const [created, setCreated] = useState(null);
  const save = async (title) => {
    try {
      const response = await api.put(path);
      set({ slug: response.slug, secretCreatedAt: new Date().toISOString() });
      setCreated(response);
      load(); // For the server's time.
    } catch (failure) {
      showError(title, failure);
    }
  };
  const replace = async () => {
    const isConfirmed = await confirmAction({ title: "Replace the secret?", text: `Programs that use the current secret of “${flow.name}” will be refused. The URL stays the same.`, action: "Replace secret" });
    if (isConfirmed) await save("Cannot replace the secret");
  };
  const remove = async () => {
    const isConfirmed = await confirmAction({ title: "Delete the webhook?", text: `Programs that use it can no longer run “${flow.name}”. A new webhook will have another URL.`, action: "Delete webhook" });
    if (!isConfirmed) return;
    try {
      await api.remove(path);
      set(null);
      toast("done", "Webhook deleted");
    } catch (failure) {
      showError("Cannot delete the webhook", failure);
    }
  };
  return html`
    <section class="card trigger" aria-label="Webhook" data-testid="webhook">
      <h3>Webhook</h3>
      <p class="muted">Another program can run this flow with the webhook’s secret. It does not need the server’s token.</p>
      <${ErrorNote} title="Cannot load the webhook" error=${error} onRetry=${load} />
      ${hook === undefined && !error && html`<${Loading} />`}
      ${hook && html`<${Facts} facts=${[["URL", html`<${CopyLine} text=${urlOf(hook)} name="webhook URL" testid="webhook-url" />`], ["Secret created", html`<${Time} at=${hook.secretCreatedAt} />`]]} />`}
      <div class="buttons">
        ${hook === null && html`<${Button} data-testid="webhook-create" onClick=${() => save("Cannot create the webhook")}>Create webhook<//>`}
        ${hook && html`<${Button} data-testid="webhook-replace" onClick=${replace}>Replace secret…<//><${Button} kind="danger" data-testid="webhook-delete" onClick=${remove}>Delete…<//>`}
      </div>
      ${created && html`<${WebhookCreated} flow=${flow} created=${created} onClose=${() => setCreated(null)} />`}
    </section>
  `;
}

/** Shows a secret once. Closing asks for a confirmation, unless it was copied. */
function WebhookCreated({ flow, created, onClose }) {
  const [isCopied, setCopied] = useState(false);
  const onCopied = () => setCopied(true);
  const guard = () => isCopied || confirmAction({ title: "Close without copying the secret?", text: "The server cannot show it again. You can replace the secret later.", action: "Close" });
  const example = curl(urlOf(created), created.secret, exampleInput(flow));
  return html`
    <${Dialog} title="Webhook secret" onClose=${onClose} guard=${guard} testid="webhook-created">
      <p><strong>This secret is shown only once.</strong> Copy it now. flowledger stores only its hash.</p>
      <div class="secret"><code data-testid="webhook-secret">${created.secret}</code><${Copy} text=${created.secret} name="webhook secret" label="Copy secret" kind="primary" onCopied=${onCopied} autofocus data-testid="webhook-copy" /></div>
      <p class="muted">Use a new Idempotency-Key for each event, and the same key for a retry. Within 24 hours, deliveries with the same key start only one run. For example:</p>
      <div class="code-block">
        <div class="code-head"><span class="muted">Shell</span><${Copy} text=${example} name="curl example" onCopied=${onCopied} /></div>
        <pre tabindex="0" role="group" aria-label="Example with curl" data-testid="webhook-curl">${example}</pre>
      </div>
      <div class="buttons form-buttons"><${Button} data-testid="webhook-done" onClick=${async () => (await guard()) && onClose()}>Done<//></div>
    <//>
  `;
}

/* Schedule. */

const WORDS_OF_MISSED = { __proto__: null, skip: "Skipped", once: "Run once afterwards" };

function Schedule({ flow, isSet }) {
  const path = `${flowPath(flow.id)}/schedule`;
  const { value: schedule, error, load, set } = useTrigger(path, isSet);
  const [form, setForm] = useState(null);
  // A run that has started is no longer the next one.
  useMessages(({ type, payload }) => {
    if (type === "FLOW_STARTED" && payload.trigger === "schedule" && payload.flowId === flow.id && schedule) load();
  }, [flow.id, schedule]);
  const edit = () => import("./schedule-form.js").then((module) => setForm(() => module.ScheduleForm), (failure) => showError("Cannot open the form", failure));
  const turn = async (enabled) => {
    try {
      const { cron, timezone, missed, input } = schedule;
      set(await api.put(path, { cron, timezone, missed, input, enabled }));
    } catch (failure) {
      showError(enabled ? "Cannot enable the schedule" : "Cannot disable the schedule", failure);
    }
  };
  const remove = async () => {
    const isConfirmed = await confirmAction({ title: "Delete the schedule?", text: `“${flow.name}” will no longer run on a schedule. Disable the schedule instead to pause it.`, action: "Delete schedule" });
    if (!isConfirmed) return;
    try {
      await api.remove(path);
      set(null);
      toast("done", "Schedule deleted");
    } catch (failure) {
      showError("Cannot delete the schedule", failure);
    }
  };
  return html`
    <section class="card trigger" aria-label="Schedule" data-testid="schedule">
      <h3>Schedule</h3>
      <p class="muted">Runs this flow at the times of a cron expression.</p>
      <${ErrorNote} title="Cannot load the schedule" error=${error} onRetry=${load} />
      ${schedule === undefined && !error && html`<${Loading} />`}
      ${schedule && html`<${ScheduleFacts} schedule=${schedule} />`}
      <div class="buttons">
        ${schedule === null && html`<${Button} data-testid="schedule-add" onClick=${edit}>Add schedule<//>`}
        ${schedule && html`
          <${Button} data-testid="schedule-edit" onClick=${edit}>Edit<//>
          <${Button} data-testid="schedule-enable" onClick=${() => turn(!schedule.enabled)}>${schedule.enabled ? "Disable" : "Enable"}<//>
          <${Button} kind="danger" data-testid="schedule-delete" onClick=${remove}>Delete…<//>
        `}
      </div>
      ${form && html`<${form} flow=${flow} path=${path} schedule=${schedule} onSaved=${set} onClose=${() => setForm(null)} />`}
    </section>
  `;
}

function ScheduleFacts({ schedule: { cron, timezone, missed, input, enabled, upcoming = [] } }) {
  const text = cronText(cron);
  const next = enabled && upcoming.length > 0 && html`<ol class="times" data-testid="schedule-times">${upcoming.map((time) => html`<li key=${time}><time datetime=${time} title=${time}>${inZone(time, timezone)}</time></li>`)}</ol>`;
  const hasInput = api.stringify(input ?? {}) !== "{}";
  return html`
    <${Facts} facts=${[
      ["When", html`${text && html`<span data-testid="cron-text">${text}</span> `}<code data-testid="schedule-expression">${cron}</code>`],
      ["Time zone", timezone],
      ["Missed runs", WORDS_OF_MISSED[missed] ?? missed],
      [`Next runs (${timezone})`, !enabled ? html`<span data-testid="schedule-times">Disabled: no runs are scheduled.</span>` : (next || html`<span data-testid="schedule-times">No more runs are due.</span>`)],
    ]} />
    ${hasInput && html`<${LongText} name="Input" text=${api.stringify(input, 2)} testid="schedule-input-text" />`}
  `;
}

/** Returns a time in the schedule's zone, or as RFC 3339 if the browser does not know the zone. */
function inZone(rfc3339, timeZone) {
  const form = { weekday: "short", year: "numeric", month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", hourCycle: "h23" };
  try {
    return new Intl.DateTimeFormat("en-US", { ...form, timeZone }).format(new Date(rfc3339));
  } catch {
    return rfc3339;
  }
}
