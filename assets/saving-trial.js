/** A trial of another model on a node's stored inputs: first the estimated cost, then both responses side by side. */

import { createNote, newId, onceAtATime } from "./dialogs.js";
import { h, setText } from "./dom.js";
import { count, duration, moment, plural, roughly, usd } from "./format.js";
import { longText } from "./texts.js";

/** Limits the inputs of one trial, and the default number of inputs. */
const COUNT_MAX = 10;
const COUNT_DEFAULT = 3;

/** `send({ count, confirm })` requests an estimate or the trial; `fetch()` returns the suggestion with its newest trial. */
export function createTrial({ id, send, fetch }) {
  const countId = newId("count");
  const number = h("input", { id: countId, type: "number", min: 1, max: COUNT_MAX, step: 1, value: COUNT_DEFAULT, required: true, "data-testid": "trial-count", oninput: () => discardEstimate() });
  const estimate = h("button", { class: "primary", "data-testid": "trial-estimate" }, "Estimate cost");
  const confirm = h("button", { type: "button", class: "primary", "data-testid": "trial-confirm", onclick: () => runOnce() });
  const estimateDetails = h("div", { class: "saving-part", "data-testid": "trial-cost", hidden: true });
  const note = createNote();
  const results = h("div", { class: "saving-part", "data-testid": "trial-results" });
  const form = h(
    "form",
    {
      class: "trial-form",
      onsubmit: (event) => {
        event.preventDefault();
        estimateOnce();
      },
    },
    h("div", { class: "form-field" }, h("label", { for: countId }, `Newest stored inputs to try (1 to ${COUNT_MAX})`), number),
    h("div", { class: "buttons" }, estimate),
  );
  const root = h("div", { class: "saving-part", id, role: "group", "aria-label": "Trial", "data-testid": "saving-trial", hidden: true }, form, estimateDetails, note.root, results);
  const estimateOnce = onceAtATime(estimate, showEstimate);
  const runOnce = onceAtATime(confirm, run);
  const folds = new Map();
  /** The choice that the displayed estimate belongs to. */
  let confirmedChoice = null;
  /** Increases with each new choice, so that outdated responses are ignored. */
  let latestChoice = 0;
  let shownAt = null;
  /** The focus moves only if the user is still in this part. */
  const hasFocus = () => root.contains(document.activeElement);

  async function open() {
    root.hidden = false;
    number.focus();
    await refresh();
  }

  /** Fetches the newest trial, which may come from another page. */
  async function refresh() {
    if (root.hidden) return;
    const { trial } = await fetch().catch(() => ({})); // An earlier trial is optional.
    if (trial) drawResults(trial);
  }

  /** Discards the estimate, because another choice has another price. */
  function discardEstimate() {
    latestChoice += 1;
    confirmedChoice = null;
    if (estimateDetails.contains(document.activeElement)) number.focus();
    estimateDetails.hidden = true;
    note.say("");
  }

  async function showEstimate() {
    discardEstimate();
    const current = latestChoice;
    const choice = { count: Number(number.value) };
    try {
      const response = await send({ ...choice, confirm: false });
      if (current !== latestChoice) return;
      confirmedChoice = choice;
      drawEstimate(response);
      if (hasFocus()) confirm.focus();
    } catch (error) {
      if (current === latestChoice) note.fail("Cannot estimate the cost", error);
    }
  }

  function drawEstimate({ target, calls, expectedCostUsd: expected, worstCostUsd: worst, answerTokensMax: limit, inputs }) {
    const about = (expected ?? null) === null ? "an unknown cost" : `about ${roughly(expected)} USD`;
    const most = (worst ?? null) === null ? "The maximum cost is unknown." : `The maximum cost is ${roughly(worst)} USD, because responses are cut off after ${count(limit)} tokens.`;
    setText(confirm, `Make ${plural(calls, "call")} for ${about}`);
    estimateDetails.replaceChildren(
      h("p", {}, `${plural(calls, "call")} to ${target} for ${about}. ${most} No call has been made yet.`),
      h("ol", { class: "trial-inputs", "aria-label": "Inputs of the trial" }, ...inputs.map(drawInput)),
      h("div", { class: "buttons" }, confirm),
    );
    estimateDetails.hidden = false;
  }

  async function run() {
    if (!confirmedChoice) return;
    const current = latestChoice;
    note.say("Running the trial…");
    try {
      const { trial } = await send({ ...confirmedChoice, confirm: true });
      drawResults(trial);
      if (current !== latestChoice) return;
      const hadFocus = hasFocus();
      discardEstimate();
      note.say("Trial completed.");
      if (hadFocus) results.querySelector("h5").focus();
    } catch (error) {
      if (current === latestChoice) note.fail("The trial failed", error);
    }
  }

  function drawResults({ at, target, beforeCostUsd: before, afterCostUsd: after, items }) {
    if (at === shownAt) return;
    shownAt = at;
    const money = (cost) => ((cost ?? null) === null ? "unknown cost" : usd(cost));
    results.replaceChildren(
      h("h5", { tabindex: "-1" }, `Trial of ${target}, ${moment(at)}`),
      h("p", {}, `Cost of inputs that both models answered: ${money(before)} before, ${money(after)} in the trial.`),
      h("ol", { class: "trial-items" }, ...items.map((item, index) => drawItem(item, index, at))),
    );
  }

  function drawItem({ runId, item, prompt, before, after }, index, at) {
    const key = (part) => `${at} ${index} ${part}`;
    return h(
      "li",
      { "data-testid": "trial-item" },
      h("p", { class: "muted" }, placeOf("Run", runId, item)),
      longText("Prompt", prompt, { folds, key: key("prompt") }),
      h("div", { class: "sides" }, drawResponse("Before", before, key("before")), drawResponse("After", after, key("after"))),
    );
  }

  /** Shows responses unfolded at any length, so that they can be compared. */
  function drawResponse(name, { model, output, error, inputTokens, outputTokens, costUsd, latencyMs, isCut }, key) {
    const facts = [
      ["Tokens", (inputTokens ?? null) === null ? null : `${count(inputTokens)} in, ${count(outputTokens ?? 0)} out`],
      ["Cost", error ? null : (costUsd ?? null) === null ? "unknown cost" : usd(costUsd)],
      ["Latency", (latencyMs ?? null) === null ? null : duration(latencyMs)],
    ].filter(([, value]) => value !== null);
    if (!folds.has(key)) folds.set(key, true);
    return h(
      "div",
      { class: "side", "data-testid": `trial-${name.toLowerCase()}` },
      h("h6", {}, [name, model].filter(Boolean).join(": ")),
      error ? h("p", { class: "error-text" }, error) : longText("Response", output ?? "", { folds, key }),
      isCut ? h("p", { class: "muted" }, "Cut off at the token limit.") : null,
      h("dl", { class: "facts" }, ...facts.map(([word, value]) => h("div", {}, h("dt", {}, word), h("dd", {}, value)))),
    );
  }

  function close() {
    discardEstimate();
    root.hidden = true;
  }

  return { root, open, close, refresh, discardEstimate, isOpen: () => !root.hidden };
}

const drawInput = ({ runId, item, at, promptPreview }) =>
  h("li", {}, h("span", { class: "muted" }, `${moment(at)}, ${placeOf("run", runId, item)}: `), promptPreview);

const placeOf = (word, runId, item) => `${word} ${runId}${(item ?? null) === null ? "" : `, item ${count(item)}`}`;
