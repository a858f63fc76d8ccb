/** One suggestion. Updates happen in place, to keep the focus and the reader's position. */

import * as api from "./api.js";
import { createNote, newId, onceAtATime } from "./dialogs.js";
import { h, setText } from "./dom.js";
import { moment, roughly } from "./format.js";
import { createInterval } from "./interval.js";
import { createChange } from "./saving-change.js";
import { createTrial } from "./saving-trial.js";
import { evidenceFacts, expectedSaving, measuredSaving } from "./saving-format.js";

const PAST_WORDS = { __proto__: null, DISMISSED: "Dismissed", WITHDRAWN: "Withdrawn: no longer applies", REVERTED: "Reverted" };

/**
 * `path` is the suggestion's path in the API. `onApply(body)`, `onDismiss()` and `onRevert()` run the actions of
 * their buttons and throw the server's errors; `labelOf(flowId, nodeId)` returns a node's name.
 */
export function createSavingCard({ path, labelOf, onApply, onDismiss, onRevert }) {
  const title = h("h4", { tabindex: "-1" });
  const place = h("p", { class: "muted", "data-testid": "saving-place" });
  const reason = h("p", { "data-testid": "saving-reason" });
  const interval = createInterval();
  const estimate = h("p", { class: "saving-estimate", "data-testid": "saving-estimate" });
  const [expectedFact, measuredFact] = ["expected", "measured"].map((name) => h("dd", { "data-testid": `saving-${name}` }));
  const facts = h("dl", { class: "sides" }, h("div", {}, h("dt", {}, "Expected"), expectedFact), h("div", {}, h("dt", {}, "Measured"), measuredFact));
  const evidence = h("dl", { class: "facts" });
  const details = h("details", { "data-testid": "saving-evidence" }, h("summary", {}, "Evidence"), evidence);
  const note = createNote();

  const selectId = newId("alternative");
  const select = h("select", { id: selectId, "data-testid": "saving-alternative", onchange: () => choose() });
  const choice = h("div", { class: "form-field" }, h("label", { for: selectId }, "Model to use instead"), select);

  const fetchDetails = () => {
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
  const change = createChange({ id: changeId, fetch: fetchDetails, onApply: (version) => onApply({ ...alternative(), version }) });
  const trial = createTrial({ id: trialId, fetch: () => api.get(path), send: (body) => api.post(`${path}/trial`, { ...body, ...alternative() }) });

  const button = (testid, more, act, text) => h("button", { type: "button", "data-testid": testid, onclick: act, ...more }, text);
  const showChange = button("saving-show", { "aria-expanded": "false", "aria-controls": changeId }, () => toggle(showChange, change), "Show the change");
  const showTrial = button("saving-try", { "aria-expanded": "false", "aria-controls": trialId }, () => toggle(showTrial, trial), "Try it on stored inputs");
  const dismiss = button("saving-dismiss", {}, () => dismissOnce(), "Dismiss");
  const revert = button("saving-revert", { class: "danger" }, () => revertOnce(), "Revert…");
  const withNote = (errorTitle, act) => async () => {
    note.say("");
    await act().catch((error) => note.fail(errorTitle, error));
  };
  const dismissOnce = onceAtATime(dismiss, withNote("Cannot dismiss", onDismiss));
  const revertOnce = onceAtATime(revert, withNote("Cannot revert", onRevert));

  const root = h(
    "li",
    { class: "budget saving", "data-testid": "saving" },
    title,
    place,
    reason,
    interval.root,
    estimate,
    facts,
    details,
    choice,
    h("div", { class: "buttons" }, dismiss, showTrial, showChange, revert),
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
  let recommended = "";

  const canApply = () => ["OPEN", "DISMISSED"].includes(shown.status);

  function toggle(opener, part) {
    const opens = !part.isOpen();
    opener.ariaExpanded = String(opens);
    if (opens) part.open();
    else part.close();
  }

  function close(opener, part) {
    if (part.isOpen()) toggle(opener, part);
  }

  function choose() {
    trial.discardEstimate();
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
    setText(measuredFact, measuredSaving(suggestion.realised));
    choice.hidden = !canApply() || !suggestion.alternatives?.length;
    dismiss.hidden = status !== "OPEN";
    showTrial.hidden = status !== "OPEN" || kind !== "model_switch";
    revert.hidden = !isApplied;
    showChange.hidden = status === "WITHDRAWN";
    for (const element of [dismiss, showTrial, showChange, revert]) element.setAttribute("aria-describedby", title.id);
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
    const recommendationChanged = drawnFrom !== "" && recommended !== nameOf(shown);
    drawnFrom = from;
    recommended = nameOf(shown);
    const chosen = select.value;
    select.replaceChildren(
      h("option", { value: "" }, `${recommended} (recommended)`),
      ...alternatives.map(({ name, savingPer30Days: saving }) => h("option", { value: name }, `${name}: likely saves ${roughly(saving.expectedUsd)} USD`)),
    );
    // Prices change, so the selected alternative may no longer save anything.
    select.value = alternatives.some(({ name }) => name === chosen) ? chosen : "";
    if (select.value !== chosen || (recommendationChanged && !chosen)) choose();
  }

  /** Draws the selected change: the recommended one, or an alternative. */
  function drawChosen() {
    const chosen = canApply() && shown.alternatives?.find(({ name }) => name === select.value);
    const content = { ...shown, ...chosen };
    setText(title, content.title);
    setText(reason, content.reason);
    const source = JSON.stringify(content.evidence);
    if (source !== drawnEvidence) {
      drawnEvidence = source;
      evidence.replaceChildren(
        ...evidenceFacts(content.evidence).map(([name, value]) => h("div", { class: value instanceof Node ? "whole" : null }, h("dt", {}, name), h("dd", {}, value))),
      );
    }
    const isOpen = shown.status === "OPEN";
    estimate.hidden = shown.status === "APPLIED";
    setText(estimate, expectedSaving(content));
    setText(expectedFact, expectedSaving(content));
    interval.root.hidden = !isOpen || !content.savingPer30Days;
    if (!interval.root.hidden) interval.update(content.savingPer30Days, most);
  }

  title.id = newId("saving");
  root.setAttribute("aria-labelledby", title.id);
  return { root, title, update, refreshTrial: trial.refresh };
}
