/** A flow's schedule: a form with errors at their fields, and the next run times. */

import * as api from "./api.js";
import { confirmAction, createNote, newId, onceAtATime } from "./dialogs.js";
import { h } from "./dom.js";
import { createField as fieldOf, createZones, faultSummary, LOCAL_ZONE, showFaults as showAt } from "./fields.js";
import { parse, stringify } from "./json.js";

const createField = (name, label, control, hint) => fieldOf("schedule", name, label, control, hint);

export function createSchedule() {
  /** The content: { flow, input, path, schedule }; `schedule` is null if the flow has none. */
  let shown = null;
  let isChanged = false;
  /** Unsaved input by flow id, so that closing the dialog does not lose it. */
  const drafts = new Map();
  const note = createNote();
  const zones = createZones();
  const fields = {
    cron: createField("cron", "Cron expression", h("input", { autocomplete: "off", spellcheck: "false", class: "mono", placeholder: "0 9 * * 1-5" }), "Minute, hour, day of month, month, day of week"),
    timezone: createField("timezone", "Time zone", h("input", { autocomplete: "off", spellcheck: "false", list: zones.root.id })),
    missed: createField("missed", "Missed runs", h("select", {}, h("option", { value: "skip" }, "Skip"), h("option", { value: "once" }, "Run once afterwards")), "Runs that are due while the server is stopped."),
    input: createField("input", "Input (JSON)", h("textarea", { rows: "4", spellcheck: "false", class: "mono" })),
    enabled: createField("enabled", "Enabled", h("input", { type: "checkbox" })),
  };
  const times = h("div", { class: "times", "data-testid": "schedule-times" });
  const save = h("button", { class: "primary", "data-testid": "schedule-save" }, "Save");
  const remove = h("button", { type: "button", class: "danger", "data-testid": "schedule-delete", onclick: () => deleteOnce() }, "Delete…");
  const saveOnce = onceAtATime(save, saveForm);
  const deleteOnce = onceAtATime(remove, deleteSchedule);
  const form = h(
    "form",
    {
      novalidate: true, // The server checks each field.
      oninput: () => (isChanged = true),
      onsubmit: (event) => {
        event.preventDefault();
        saveOnce();
      },
    },
    ...Object.values(fields).map((field) => field.root),
    zones.root,
    times,
    note.root,
    h("div", { class: "buttons" }, save, remove),
  );
  const root = h(
    "section",
    { "aria-labelledby": "schedule-title", "data-testid": "schedule" },
    h("h3", { id: "schedule-title" }, "Schedule"),
    h("p", { class: "muted" }, "Runs this flow at the times of a cron expression."),
    form,
  );

  function show(content) {
    shown = content;
    zones.fill();
    const draft = drafts.get(shown.flow.id);
    isChanged = Boolean(draft);
    write(draft ?? asTyped(shown.schedule ?? { cron: "", timezone: LOCAL_ZONE, missed: "skip", input: shown.input, enabled: true }));
    showFaults([]);
    note.say(draft ? "You have unsaved changes." : "");
    draw();
  }

  function hide() {
    if (shown && isChanged) drafts.set(shown.flow.id, read());
    shown = null;
  }

  function draw() {
    remove.hidden = shown.schedule === null;
    times.replaceChildren(...drawTimes(shown.schedule));
  }

  const read = () => ({
    cron: fields.cron.control.value,
    timezone: fields.timezone.control.value,
    missed: fields.missed.control.value,
    input: fields.input.control.value,
    enabled: fields.enabled.control.checked,
  });

  function write({ cron, timezone, missed, input, enabled }) {
    fields.cron.control.value = cron;
    fields.timezone.control.value = timezone;
    fields.missed.control.value = missed;
    fields.input.control.value = input;
    fields.enabled.control.checked = enabled;
  }

  async function saveForm() {
    const opened = shown;
    const typed = read();
    let input = {};
    try {
      if (typed.input.trim()) input = parse(typed.input);
    } catch (error) {
      return showErrors([{ field: "input", message: `is not valid JSON: ${error.message}` }]);
    }
    try {
      const schedule = await api.put(opened.path, { ...typed, input });
      drafts.delete(opened.flow.id);
      if (shown !== opened) return;
      opened.schedule = schedule;
      isChanged = JSON.stringify(read()) !== JSON.stringify(typed); // The user may have typed more meanwhile.
      showFaults([]);
      draw();
      note.say("Schedule saved.");
    } catch (error) {
      if (shown !== opened) return;
      if (error.status === 422 && Array.isArray(error.details)) showErrors(error.details);
      else note.fail("Cannot save the schedule", error);
    }
  }

  function showErrors(faults) {
    const others = showFaults(faults);
    note.fail("Not saved", faultSummary(faults, others));
    Object.values(fields).find(({ control }) => control.ariaInvalid)?.control.focus();
  }

  const showFaults = (faults) => showAt(fields, faults, ({ field }) => String(field).split(/[.[]/, 1)[0]);

  async function deleteSchedule() {
    const isConfirmed = await confirmAction({
      title: "Delete the schedule?",
      text: `“${shown.flow.name}” will no longer run on a schedule. To pause the schedule instead, turn off “Enabled” and save.`,
      action: "Delete schedule",
    });
    if (!isConfirmed || !shown) return;
    const opened = shown;
    try {
      await api.remove(opened.path);
      if (shown !== opened) return;
      opened.schedule = null;
      draw();
      save.focus();
      note.say("Schedule deleted.");
    } catch (error) {
      note.fail("Cannot delete the schedule", error);
    }
  }

  /** Refreshes the run times only and keeps the input. */
  async function refresh() {
    const opened = shown;
    const schedule = await api.getIfAny(opened.path).catch(() => opened.schedule);
    if (shown !== opened) return;
    opened.schedule = schedule;
    draw();
  }

  return { root, show, hide, refresh };
}

const asTyped = (schedule) => ({ ...schedule, input: stringify(schedule.input, 2) });

function drawTimes(schedule) {
  if (!schedule) return [h("p", { class: "muted" }, "No schedule yet.")];
  if (!schedule.enabled) return [h("p", { class: "muted" }, "Disabled: no runs are scheduled.")];
  const upcoming = schedule.upcoming ?? [];
  if (!upcoming.length) return [h("p", { class: "muted" }, "No more runs are due.")];
  const id = newId("next");
  return [
    h("p", { id, class: "muted" }, `Next runs (${schedule.timezone})`),
    h("ol", { "aria-labelledby": id }, ...upcoming.map((time) => h("li", {}, h("time", { datetime: time, title: time }, inZone(time, schedule.timezone))))),
  ];
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
