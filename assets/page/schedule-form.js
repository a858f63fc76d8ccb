/** The form of a flow's schedule. */

import { html } from "./vendor/preact.js";
import * as api from "./api.js";
import { cronText } from "./cron-text.js";
import { inputsOf } from "./flow-document.js";
import { CheckField, Form, Options, SelectField, TextField, useForm, zoneNames } from "./forms.js";
import { settings } from "./state.js";
import { Dialog, toast } from "./ui.js";

const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

function readInput(text) {
  if (!text.trim()) return {};
  const input = api.parse(text);
  if (!isObject(input)) throw new Error("must be a JSON object");
  return input;
}

function check({ input }) {
  try {
    readInput(input);
    return [];
  } catch (error) {
    return [{ field: "input", message: error instanceof SyntaxError ? `is not valid JSON: ${error.message}` : error.message }];
  }
}

const EXAMPLES = [["0 9 * * 1-5", "Weekdays at 09:00"], ["0 * * * *", "Every hour"], ["*/15 * * * *", "Every 15 minutes"], ["0 6 1 * *", "First day of the month"]];

/** `schedule` is null for a new one. */
export function ScheduleForm({ flow, path, schedule, onSaved, onClose }) {
  const { cron = "", timezone = settings.get().zone, missed = "skip", enabled = true } = schedule ?? {};
  const input = schedule?.input ?? Object.fromEntries(inputsOf(flow).filter(({ default: fallback }) => fallback === undefined).map(({ name }) => [name, ""]));
  const form = useForm({
    name: "schedule",
    title: "Cannot save the schedule",
    initial: { cron, timezone, missed, enabled, input: api.stringify(input, 2) },
    check,
    // "input.topic" is shown at the input.
    fieldOf: ({ field }) => String(field).split(/[.[]/, 1)[0],
    async send(values) {
      onSaved(await api.put(path, { ...values, input: readInput(values.input) }));
      toast("done", "Schedule saved");
      onClose();
    },
  });
  const text = cronText(form.values.cron);
  return html`
    <${Dialog} title=${schedule ? "Edit schedule" : "Add schedule"} onClose=${onClose} guard=${form.guard} testid="schedule-dialog">
      <${Form} form=${form} action="Save" onCancel=${async () => (await form.guard()) && onClose()}>
        <${TextField} form=${form} name="cron" label="Cron expression" class="mono" placeholder="0 9 * * 1-5" hint="Minute, hour, day of month, month, day of week" />
        <p class="hint" role="status" data-testid="cron-text">${text ?? (form.values.cron.trim() ? "The next runs are shown after saving." : "")}</p>
        <div class="buttons">${EXAMPLES.map(([example, label]) => html`<button key=${example} type="button" class="quiet" onClick=${() => form.set("cron", example)}>${label}</button>`)}</div>
        <${TextField} form=${form} name="timezone" label="Time zone" list="schedule-zones" />
        <${Options} id="schedule-zones" values=${zoneNames()} />
        <${SelectField} form=${form} name="missed" label="Missed runs" hint="Runs that are due while the server is stopped." options=${[["skip", "Skip"], ["once", "Run once afterwards"]]} />
        <${TextField} form=${form} name="input" label="Input (JSON)" multiline rows="4" class="mono" />
        <${CheckField} form=${form} name="enabled" label="Enabled" />
      <//>
    <//>
  `;
}
