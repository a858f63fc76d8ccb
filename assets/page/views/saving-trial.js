/** A trial of another model on a node's stored inputs: first the estimated cost, then both responses side by side. */

import { html, useEffect, useRef, useState } from "../vendor/preact.js";
import * as api from "../api.js";
import { count, duration, money, plural } from "../format.js";
import { useMessages } from "../state.js";
import { Button, ErrorNote, Facts, LongText, Money, Time, useId } from "../ui.js";

/** Limits the inputs of one trial, and the default number of inputs. */
const COUNT_MAX = 10;
const COUNT_DEFAULT = 3;

const isKnown = (value) => value !== null && value !== undefined;

/** `body`: the alternative to try, if any. */
export default function SavingTrial({ item, path, body }) {
  const id = useId("trial");
  const field = useRef(null);
  const root = useRef(null);
  const [number, setNumber] = useState(String(COUNT_DEFAULT));
  /** The estimate, and the choice that it belongs to. */
  const [estimate, setEstimate] = useState(null);
  const [failure, setFailure] = useState(null);
  const [results, setResults] = useState(null);
  const [running, setRunning] = useState(null);
  /** Increases with each new choice, so that outdated responses are ignored. */
  const choice = useRef(0);
  const { alternative } = body;
  const send = (more) => api.post(`${path}/trial`, { ...body, ...more });
  // Another choice has another price.
  const discard = () => {
    choice.current += 1;
    setEstimate(null);
    setFailure(null);
  };
  useEffect(discard, [alternative]);
  useEffect(() => field.current.focus(), []);
  useEffect(() => {
    // An earlier trial is optional; it may come from another page.
    api.get(path).then(({ trial }) => trial && setResults(trial), () => {});
  }, [item.changedAt]);
  useMessages(({ type, payload }) => {
    if (type !== "LEDGER_UPDATE") return;
    const { role, flow_id: flowId, status } = payload.entry;
    if (role === "trial" && flowId === item.flowId && status !== "PENDING") setRunning((before) => before && { ...before, done: Math.min(before.all, before.done + 1) });
  }, [item.flowId]);
  const askForCost = async (event) => {
    event.preventDefault();
    discard();
    const current = choice.current;
    const wanted = { count: Number(number) };
    try {
      const response = await send({ ...wanted, confirm: false });
      if (current === choice.current) setEstimate({ ...response, wanted });
    } catch (error) {
      if (current === choice.current) setFailure({ title: "Cannot estimate the cost", error });
    }
  };
  const run = async () => {
    setFailure(null);
    setRunning({ done: 0, all: estimate.calls });
    try {
      const { trial } = await send({ ...estimate.wanted, confirm: true });
      setResults(trial);
      discard();
      requestAnimationFrame(() => root.current?.querySelector("[data-testid=trial-results] h3").focus());
    } catch (error) {
      setFailure({ title: "The trial failed", error });
    } finally {
      setRunning(null);
    }
  };
  return html`
    <div class="saving-part" role="group" aria-label="Trial" data-testid="saving-trial" ref=${root}>
      <form class="trial-form" onSubmit=${askForCost}>
        <div class="field">
          <label for=${id}>Newest stored inputs to try (1 to ${COUNT_MAX})</label>
          <input id=${id} ref=${field} type="number" min="1" max=${COUNT_MAX} step="1" required value=${number} data-testid="trial-count" onInput=${({ target }) => {
            setNumber(target.value);
            discard();
          }} />
        </div>
        <button class=${estimate ? "" : "primary"} data-testid="trial-estimate">Estimate cost</button>
      </form>
      ${estimate && html`<${Estimate} estimate=${estimate} onRun=${run} />`}
      <p role="status" data-testid="trial-progress">${running && `Running the trial: ${count(running.done)} of ${plural(running.all, "call")} finished…`}</p>
      ${failure && html`<${ErrorNote} ...${failure} testid="trial-error" />`}
      ${results && html`<${Results} key=${results.at} results=${results} />`}
    </div>
  `;
}

const about = (usd) => (isKnown(usd) ? `about ${money(usd)}` : "an unknown cost");

function Estimate({ estimate: { target, calls, expectedCostUsd: expected, worstCostUsd: worst, answerTokensMax: limit, inputs }, onRun }) {
  const root = useRef(null);
  useEffect(() => root.current.querySelector("[data-testid=trial-confirm]").focus(), []);
  return html`
    <div class="saving-part" data-testid="trial-cost" ref=${root}>
      <p>
        ${plural(calls, "call")} to <bdi>${target}</bdi> for ${about(expected)}.${" "}
        ${isKnown(worst) ? html`The maximum cost is <${Money} usd=${worst} />, because responses are cut off after ${count(limit)} tokens.` : "The maximum cost is unknown."} No call has been made yet.
      </p>
      <ol class="trial-inputs" aria-label="Inputs of the trial">
        ${inputs.map((input, at) => html`<li key=${at}><span class="muted"><${Time} at=${input.at} />, <${Source} ...${input} />: </span><bdi>${input.promptPreview}</bdi></li>`)}
      </ol>
      <div class="buttons"><${Button} kind="primary" onClick=${onRun} data-testid="trial-confirm">Make ${plural(calls, "call")} for ${about(expected)}<//></div>
    </div>
  `;
}

/** The run, and the item of a map, that an input comes from. */
const Source = ({ runId, item }) => html`<a href=${`/runs/${runId}`}>run <code>${runId.slice(-8)}</code></a>${isKnown(item) && `, item ${count(item)}`}`;

function Results({ results: { at, target, beforeCostUsd: before, afterCostUsd: after, items } }) {
  return html`
    <div class="saving-part" data-testid="trial-results">
      <h3 tabindex="-1">Trial of <bdi>${target}</bdi>, <${Time} at=${at} /></h3>
      <p>Cost of inputs that both models answered: <${Money} usd=${before} /> before, <${Money} usd=${after} /> in the trial.</p>
      <ol class="trial-items">
        ${items.map((item, index) => html`
          <li key=${index} data-testid="trial-item">
            <p class="muted"><${Source} ...${item} /></p>
            <${LongText} name="Prompt" text=${item.prompt} />
            <div class="sides"><${Response} name="Before" response=${item.before} /><${Response} name="After" response=${item.after} /></div>
          </li>
        `)}
      </ol>
    </div>
  `;
}

/** One response, unfolded at any length, so that both can be compared. */
function Response({ name, response: { model, output, error, inputTokens, outputTokens, costUsd, latencyMs, isCut } }) {
  return html`
    <div class="saving-side" data-testid=${`trial-${name.toLowerCase()}`}>
      <h4>${name}${model && html`: <bdi>${model}</bdi>`}</h4>
      ${error ? html`<p class="fault">${error}</p>` : html`<${LongText} name="Response" text=${output ?? ""} open />`}
      ${isCut && html`<p class="muted">Cut off at the token limit.</p>`}
      <${Facts} facts=${[
        ["Tokens", isKnown(inputTokens) ? `${count(inputTokens)} in, ${count(outputTokens ?? 0)} out` : null],
        ["Cost", error ? null : html`<${Money} usd=${costUsd} />`],
        ["Latency", isKnown(latencyMs) ? duration(latencyMs) : null],
      ]} />
    </div>
  `;
}
