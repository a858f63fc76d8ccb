/** The dialog with a flow's triggers: its webhook and its schedule. */

import * as api from "./api.js";
import { createNote, createSheet } from "./dialogs.js";
import { h } from "./dom.js";
import { createSchedule } from "./schedule.js";
import { createWebhook } from "./webhook.js";

export function createTriggers() {
  const sheet = createSheet({ testid: "triggers", onClose: close });
  const webhook = createWebhook();
  const schedule = createSchedule();
  const note = createNote();
  const retry = h("button", { type: "button", hidden: true, onclick: () => load() }, "Retry");
  const parts = h("div", { class: "sheet-parts", hidden: true }, webhook.root, schedule.root);
  sheet.body.append(note.root, retry, parts);
  let shown = null;

  function open(flow, { focusBack, input }) {
    shown = { flow, input };
    parts.hidden = true;
    sheet.open(`Triggers of ${flow.name}`, focusBack);
    return load();
  }

  async function load() {
    const opened = shown;
    if (retry === document.activeElement) sheet.close.focus();
    retry.hidden = true;
    note.say("Loading…");
    const path = `/api/flows/${opened.flow.id}`;
    try {
      const [hook, savedSchedule] = await Promise.all([api.getIfAny(`${path}/hook`), api.getIfAny(`${path}/schedule`)]);
      if (shown !== opened) return;
      note.say("");
      webhook.show({ ...opened, path: `${path}/hook`, hook });
      schedule.show({ ...opened, path: `${path}/schedule`, schedule: savedSchedule });
      parts.hidden = false;
    } catch (error) {
      if (shown !== opened) return;
      note.fail("Cannot load the triggers", error);
      retry.hidden = false;
    }
  }

  /** Closing the dialog removes the secret from the page. */
  function close() {
    shown = null;
    webhook.hide();
    schedule.hide();
  }

  /** Refreshes the schedule, because a run that has started is no longer the next one. */
  function receive({ type, payload }) {
    const isScheduledRun = type === "FLOW_STARTED" && payload.trigger === "schedule" && payload.flowId === shown?.flow.id;
    if (isScheduledRun && !parts.hidden) schedule.refresh();
  }

  return { open, receive };
}
