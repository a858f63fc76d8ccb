/** A trial of another model on a node's stored inputs: first the estimated cost, then both answers side by side. */

import { createNote, newId, onceAtATime } from "./dialogs.js";
import { h, setText } from "./dom.js";
import { count, duration, moment, plural, roughly, usd } from "./format.js";
import { longText } from "./texts.js";

/** Limits the inputs of one trial, and the default number of inputs. */
const COUNT_MAX = 10;
const COUNT_DEFAULT = 3;

/** `ask({ count, confirm })` asks the server; `fetch()` returns the suggestion with its newest trial. */
export function createTrial({ id, ask, fetch }) {
  const countId = newId("count");
  const number = h("input", { id: countId, type: "number", min: 1, max: COUNT_MAX, step: 1, value: COUNT_DEFAULT, required: true, "data-testid": "trial-count", oninput: () => forget() });
  const estimate = h("button", { class: "primary", "data-testid": "trial-estimate" }, "What would it cost?");
  const confirm = h("button", { type: "button", class: "primary", "data-testid": "trial-confirm", onclick: () => runOnce() });
  const told = h("div", { class: "saving-part", "data-testid": "trial-told", hidden: true });
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
    h("div", { class: "form-field" }, h("label", { for: countId }, `Stored inputs to try (1 to ${COUNT_MAX}, the newest)`), number),
    h("div", { class: "buttons" }, estimate),
  );
  const root = h("div", { class: "saving-part", id, role: "group", "aria-label": "Trial", "data-testid": "saving-trial", hidden: true }, form, told, note.root, results);
  const estimateOnce = onceAtATime(estimate, showEstimate);
  const runOnce = onceAtATime(confirm, run);
  const folds = new Map();
  /** The choice that the displayed estimate belongs to. */
  let agreed = null;
  /** Increases with each new choice, so that outdated responses are ignored. */
  let asked = 0;
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
  function forget() {
    asked += 1;
    agreed = null;
    if (told.contains(document.activeElement)) number.focus();
    told.hidden = true;
    note.say("");
  }

  async function showEstimate() {
    forget();
    const turn = asked;
    const choice = { count: Number(number.value) };
    try {
      const answer = await ask({ ...choice, confirm: false });
      if (turn !== asked) return;
      agreed = choice;
      drawEstimate(answer);
      if (hasFocus()) confirm.focus();
    } catch (error) {
      if (turn === asked) note.fail("It cannot be tried", error);
    }
  }

  function drawEstimate({ target, calls, expectedCostUsd: expected, worstCostUsd: worst, answerTokensMax: limit, inputs }) {
    const about = (expected ?? null) === null ? "a price that is not known" : `about ${roughly(expected)} USD`;
    const most = (worst ?? null) === null ? "What they may cost at most is not known." : `They cost ${roughly(worst)} USD at most: an answer is cut off after ${count(limit)} tokens.`;
    setText(confirm, `Make ${plural(calls, "call")} for ${about}`);
    told.replaceChildren(
      h("p", {}, `${plural(calls, "call")} to ${target} for ${about}. ${most} Nothing was asked yet.`),
      h("ol", { class: "trial-inputs", "aria-label": "Inputs that would be tried" }, ...inputs.map(drawInput)),
      h("div", { class: "buttons" }, confirm),
    );
    told.hidden = false;
  }

  async function run() {
    if (!agreed) return;
    const turn = asked;
    note.say("Asking…");
    try {
      const { trial } = await ask({ ...agreed, confirm: true });
      drawResults(trial);
      if (turn !== asked) return;
      const hadFocus = hasFocus();
      forget();
      note.say("These are the answers.");
      if (hadFocus) results.querySelector("h5").focus();
    } catch (error) {
      if (turn === asked) note.fail("It was not tried", error);
    }
  }

  function drawResults({ at, target, beforeCostUsd: before, afterCostUsd: after, items }) {
    if (at === shownAt) return;
    shownAt = at;
    const money = (cost) => ((cost ?? null) === null ? "unknown price" : usd(cost));
    results.replaceChildren(
      h("h5", { tabindex: "-1" }, `Tried ${moment(at)} with ${target}`),
      h("p", {}, `What was answered cost ${money(before)} before, and ${money(after)} in the trial.`),
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
      h("div", { class: "sides" }, drawAnswer("Before", before, key("before")), drawAnswer("After", after, key("after"))),
    );
  }

  /** Shows answers unfolded at any length, so that they can be compared. */
  function drawAnswer(name, { model, output, error, inputTokens, outputTokens, costUsd, latencyMs, isCut }, key) {
    const facts = [
      ["Tokens", (inputTokens ?? null) === null ? null : `${count(inputTokens)} in, ${count(outputTokens ?? 0)} out`],
      ["Cost", error ? null : (costUsd ?? null) === null ? "unknown price" : usd(costUsd)],
      ["Latency", (latencyMs ?? null) === null ? null : duration(latencyMs)],
    ].filter(([, value]) => value !== null);
    if (!folds.has(key)) folds.set(key, true);
    return h(
      "div",
      { class: "side", "data-testid": `trial-${name.toLowerCase()}` },
      h("h6", {}, [name, model].filter(Boolean).join(": ")),
      error ? h("p", { class: "error-text" }, error) : longText("Answer", output ?? "", { folds, key }),
      isCut ? h("p", { class: "muted" }, "Cut off there: it has as many tokens as it may have.") : null,
      h("dl", { class: "facts" }, ...facts.map(([word, value]) => h("div", {}, h("dt", {}, word), h("dd", {}, value)))),
    );
  }

  function close() {
    forget();
    root.hidden = true;
  }

  return { root, open, close, refresh, forget, isOpen: () => !root.hidden };
}

const drawInput = ({ runId, item, at, promptPreview }) =>
  h("li", {}, h("span", { class: "muted" }, `${moment(at)}, ${placeOf("run", runId, item)}: `), promptPreview);

const placeOf = (word, runId, item) => `${word} ${runId}${(item ?? null) === null ? "" : `, item ${count(item)}`}`;
