/** The dialog with a flow's triggers: its webhook and its schedule. */

import * as api from "./api.js";
import { createNote, createSheet } from "./dialogs.js";
import { h } from "./dom.js";
import { createHook } from "./hook.js";
import { createSchedule } from "./schedule.js";

export function createTriggers() {
  const sheet = createSheet({ testid: "triggers", onClose: close });
  const hook = createHook();
  const schedule = createSchedule();
  const note = createNote();
  const again = h("button", { type: "button", hidden: true, onclick: () => load() }, "Try again");
  const parts = h("div", { class: "sheet-parts", hidden: true }, hook.root, schedule.root);
  sheet.body.append(note.root, again, parts);
  let shown = null;

  function open(flow, { focusBack, input }) {
    shown = { flow, input };
    parts.hidden = true;
    sheet.open(`Triggers of ${flow.name}`, focusBack);
    return load();
  }

  async function load() {
    const asked = shown;
    if (again === document.activeElement) sheet.close.focus();
    again.hidden = true;
    note.say("Loading…");
    const path = `/api/flows/${asked.flow.id}`;
    try {
      const answers = await Promise.all([api.getIfAny(`${path}/hook`), api.getIfAny(`${path}/schedule`)]);
      if (shown !== asked) return;
      note.say("");
      hook.show({ ...asked, path: `${path}/hook`, hook: answers[0] });
      schedule.show({ ...asked, path: `${path}/schedule`, schedule: answers[1] });
      parts.hidden = false;
    } catch (error) {
      if (shown !== asked) return;
      note.fail("The triggers are not there", error);
      again.hidden = false;
    }
  }

  /** Closing the dialog removes the secret from the page. */
  function close() {
    shown = null;
    hook.hide();
    schedule.hide();
  }

  /** Refreshes the schedule, because a run that has started is no longer the next one. */
  function receive({ type, payload }) {
    const isOurs = type === "FLOW_STARTED" && payload.trigger === "schedule" && payload.flowId === shown?.flow.id;
    if (isOurs && !parts.hidden) schedule.refresh();
  }

  return { open, receive };
}
