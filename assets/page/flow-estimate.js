/** The estimated cost of a run. */

import { html, useEffect, useState } from "./vendor/preact.js";
import * as api from "./api.js";
import { flowPath } from "./flow-actions.js";
import { count, plural } from "./format.js";
import { Money } from "./ui.js";

const PAUSE_MS = 400;

/** Returns `{ result }`, `{ error }` or null while it is not known. `input` of null asks for nothing. */
export function useEstimate(flowId, input, version = "") {
  const [estimate, setEstimate] = useState(null);
  const text = input === null ? null : api.stringify(input);
  useEffect(() => {
    if (text === null) return setEstimate(null);
    let isCurrent = true;
    const show = (next) => isCurrent && setEstimate(next);
    const timer = setTimeout(() => {
      api.post(`${flowPath(flowId)}/estimate`, { input }).then((result) => show({ result }), (error) => show({ error }));
    }, PAUSE_MS);
    return () => {
      isCurrent = false;
      clearTimeout(timer);
    };
  }, [flowId, text, version]);
  return estimate;
}

/** "$0.024, at most $0.19" */
export function EstimateShort({ estimate }) {
  const { expected, worst } = estimate.result;
  if (!worst.calls) return "free: no calls";
  return html`<span data-testid="estimate"><${Money} usd=${(expected ?? worst).cost} unknown="unknown price" /><span class="muted">, at most <${Money} usd=${worst.cost} unknown="unknown price" /></span></span>`;
}

/** The estimate in a sentence, with its assumptions. */
export function EstimateText({ estimate }) {
  if (!estimate) return "Estimating the cost…";
  if (estimate.error) return `No estimate: ${estimate.error.message}`;
  const { expected, worst, runs, notes = [] } = estimate.result;
  if (!worst.calls) return "This flow makes no calls, so a run is free.";
  const usual = expected ?? worst;
  const source = runs ? `from ${plural(runs, "earlier run")}` : "without earlier runs";
  return html`
    <p>Estimated cost: <strong><${Money} usd=${usual.cost} unknown="unknown price" /></strong>, at most <strong><${Money} usd=${worst.cost} unknown="unknown price" /></strong> (${plural(worst.calls, "call")}, ${count(usual.inputTokens)} → ${count(usual.outputTokens)} tokens, ${source}).</p>
    ${notes.length > 0 && html`<details><summary>Assumptions</summary><ul>${notes.map((note) => html`<li key=${note}>${note}</li>`)}</ul></details>`}
  `;
}
