/** One suggestion. Updates happen in place, to keep the focus and the reader's position. */

import * as api from "./api.js";
import { createNote, newId, onceAtATime } from "./dialogs.js";
import { h, setText } from "./dom.js";
import { moment, roughly } from "./format.js";
import { createInterval } from "./interval.js";
import { createChange } from "./saving-change.js";
import { createTrial } from "./saving-trial.js";
import { evidenceFacts, promised, realised } from "./saving-words.js";

const PAST_WORDS = { __proto__: null, DISMISSED: "Dismissed", WITHDRAWN: "Withdrawn: it holds no longer", REVERTED: "Taken back" };

/**
 * `path` is the suggestion's path in the API. `onApply(body)`, `onDismiss()` and `onTakeBack()` run the actions of
 * their buttons and throw the server's errors; `labelOf(flowId, nodeId)` returns a node's name.
 */
export function createSavingCard({ path, labelOf, onApply, onDismiss, onTakeBack }) {
  const title = h("h4", { tabindex: "-1" });
  const place = h("p", { class: "muted", "data-testid": "saving-place" });
  const reason = h("p", { "data-testid": "saving-reason" });
  const interval = createInterval();
  const promise = h("p", { class: "saving-promise", "data-testid": "saving-promise" });
  const [promiseFact, realisedFact] = ["promised", "realised"].map((name) => h("dd", { "data-testid": `saving-${name}` }));
  const facts = h("dl", { class: "sides" }, h("div", {}, h("dt", {}, "Promised"), promiseFact), h("div", {}, h("dt", {}, "Realised"), realisedFact));
  const evidence = h("dl", { class: "facts" });
  const details = h("details", { "data-testid": "saving-evidence" }, h("summary", {}, "Evidence"), evidence);
  const note = createNote();

  const selectId = newId("alternative");
  const select = h("select", { id: selectId, "data-testid": "saving-alternative", onchange: () => choose() });
  const choice = h("div", { class: "form-field" }, h("label", { for: selectId }, "Model to ask instead"), select);

  const whole = () => {
    const query = select.value && canApply() ? `?alternative=${encodeURIComponent(select.value)}` : "";
    return api.get(`${path}${query}`);
  };
  const nameOf = ({ kind, edit }) => (kind === "model_switch" && edit?.values ? `${edit.values.provider}/${edit.values.model}` : "");
  /** Sends the name, because the recommendation may have changed. */
  const alternative = () => {
    const name = select.value || nameOf(shown);
    return name ? { alternative: name } : {};
  };
  const [changeId, trialId] = [newId("change"), newId("trial")];
  const change = createChange({ id: changeId, fetch: whole, onApply: (version) => onApply({ ...alternative(), version }) });
  const trial = createTrial({ id: trialId, fetch: () => api.get(path), ask: (body) => api.post(`${path}/trial`, { ...body, ...alternative() }) });

  const button = (testid, more, act, text) => h("button", { type: "button", "data-testid": testid, onclick: act, ...more }, text);
  const showChange = button("saving-show", { "aria-expanded": "false", "aria-controls": changeId }, () => toggle(showChange, change), "Show the change");
  const showTrial = button("saving-try", { "aria-expanded": "false", "aria-controls": trialId }, () => toggle(showTrial, trial), "Try it first…");
  const dismiss = button("saving-dismiss", {}, () => dismissOnce(), "Dismiss");
  const takeBack = button("saving-take-back", { class: "danger" }, () => takeBackOnce(), "Take back…");
  const trying = (what, act) => async () => {
    note.say("");
    await act().catch((error) => note.fail(what, error));
  };
  const dismissOnce = onceAtATime(dismiss, trying("Not dismissed", onDismiss));
  const takeBackOnce = onceAtATime(takeBack, trying("Not taken back", onTakeBack));

  const root = h(
    "li",
    { class: "budget saving", "data-testid": "saving" },
    title,
    place,
    reason,
    interval.root,
    promise,
    facts,
    details,
    choice,
    h("div", { class: "buttons" }, dismiss, showTrial, showChange, takeBack),
    note.root,
    trial.root,
    change.root,
  );
  /** The newest state from the server, and the amount at the right end of all bars. */
  let shown = null;
  let most = 0;
  /** The data behind the drawn alternatives and evidence. */
  let drawnFrom = "";
  let drawnEvidence = "";
  /** The name of the change that was recommended at that time. */
  let putForward = "";

  const canApply = () => ["OPEN", "DISMISSED"].includes(shown.status);

  function toggle(opener, part) {
    const isToOpen = !part.isOpen();
    opener.ariaExpanded = String(isToOpen);
    if (isToOpen) part.open();
    else part.close();
  }

  function close(opener, part) {
    if (part.isOpen()) toggle(opener, part);
  }

  function choose() {
    trial.forget();
    if (change.isOpen()) change.open();
    drawChosen();
  }

  function update(suggestion, mostUsd) {
    const before = shown;
    shown = suggestion;
    most = mostUsd;
    const { status, kind, flowName, flowId, nodeId, otherNodeId } = suggestion;
    root.dataset.savingId = suggestion.id;
    root.dataset.status = status;
    const nodes = [nodeId, otherNodeId].filter(Boolean).map((id) => labelOf(flowId, id));
    const past = PAST_WORDS[status] ? ` · ${PAST_WORDS[status]}, ${moment(suggestion.changedAt)}` : "";
    setText(place, `${flowName || `flow ${flowId}`} · ${nodes.join(" and ")}${past}`);
    drawParts();
    const isApplied = status === "APPLIED";
    facts.hidden = !isApplied;
    setText(realisedFact, realised(suggestion.realised));
    choice.hidden = !canApply() || !suggestion.alternatives?.length;
    dismiss.hidden = status !== "OPEN";
    showTrial.hidden = status !== "OPEN" || kind !== "model_switch";
    takeBack.hidden = !isApplied;
    showChange.hidden = status === "WITHDRAWN";
    setText(showChange, isApplied || status === "REVERTED" ? "Show what was changed" : "Show the change");
    for (const it of [dismiss, showTrial, showChange, takeBack]) it.setAttribute("aria-describedby", title.id);
    if (before && before.status !== status) {
      close(showChange, change);
      close(showTrial, trial);
      note.say("");
    }
    drawChosen();
  }

  function drawParts() {
    const { alternatives = [], edit } = shown;
    const from = JSON.stringify([alternatives, edit]);
    if (from === drawnFrom) return;
    const isOther = drawnFrom !== "" && putForward !== nameOf(shown);
    drawnFrom = from;
    putForward = nameOf(shown);
    const chosen = select.value;
    select.replaceChildren(
      h("option", { value: "" }, `${putForward} (put forward)`),
      ...alternatives.map(({ name, savingPer30Days: saving }) => h("option", { value: name }, `${name}, likely ${roughly(saving.expectedUsd)} USD`)),
    );
    // Prices change, so the selected alternative may no longer save anything.
    select.value = alternatives.some(({ name }) => name === chosen) ? chosen : "";
    if (select.value !== chosen || (isOther && !chosen)) choose();
  }

  /** Draws the selected change: the recommended one, or an alternative. */
  function drawChosen() {
    const chosen = canApply() && shown.alternatives?.find(({ name }) => name === select.value);
    const told = { ...shown, ...chosen };
    setText(title, told.title);
    setText(reason, told.reason);
    const ground = JSON.stringify(told.evidence);
    if (ground !== drawnEvidence) {
      drawnEvidence = ground;
      evidence.replaceChildren(
        ...evidenceFacts(told.evidence).map(([name, value]) => h("div", { class: value instanceof Node ? "whole" : null }, h("dt", {}, name), h("dd", {}, value))),
      );
    }
    const isOpen = shown.status === "OPEN";
    promise.hidden = shown.status === "APPLIED";
    setText(promise, promised(told));
    setText(promiseFact, promised(told));
    interval.root.hidden = !isOpen || !told.savingPer30Days;
    if (!interval.root.hidden) interval.update(told.savingPer30Days, most);
  }

  title.id = newId("saving");
  root.setAttribute("aria-labelledby", title.id);
  return { root, title, update, refreshTrial: trial.refresh };
}
