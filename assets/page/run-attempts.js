/** The attempts of a node or of a map's item: one call each, with its result. */

import { html } from "./vendor/preact.js";
import { count, duration, money } from "./format.js";
import { isCounted, isRefused } from "./run-state.js";
import { Dash, Money, Status, Time } from "./ui.js";

/** Token counts of calls; "~" marks estimates. */
export const Tokens = ({ input, output, isEstimated = false }) => html`<span title=${isEstimated ? "estimated, because the provider sent no counts" : "input → output"}>${isEstimated ? "~" : ""}${count(input ?? 0)} → ${count(output ?? 0)}</span>`;

/** Cost of one settled call, with its notes. */
function CallCost({ call }) {
  if (call.cached) return html`cached${call.saved_usd ? `, ${money(call.saved_usd)} saved` : ""}`;
  const corrected = call.corrected_cost_usd ?? null;
  if (call.total_cost_usd === null && corrected !== null) return html`<${Money} usd=${corrected} title="by a price that was added later" />`;
  return html`<${Money} usd=${call.total_cost_usd} unknown=${call.cost_note ?? "unknown cost"} title=${call.cost_note ?? ""} />`;
}

function Attempt({ call }) {
  const isOpen = call.status === "PENDING";
  const isSent = !call.cached && !isRefused(call);
  return html`
    <li data-testid="run-attempt" data-status=${call.status}>
      <div class="attempt-head">
        <span><strong>Attempt ${call.attempt}</strong> ${isRefused(call) ? html`<span class="status" data-kind="bad"><span class="dot" aria-hidden="true"></span>refused by a budget</span>` : html`<${Status} status=${call.status} />`}</span>
        <a href=${`/calls?call=${call.id}`} data-testid="attempt-call">Call ${call.id}</a>
      </div>
      <dl class="attempt-facts">
        <div><dt>Model</dt><dd><bdi>${call.provider}/${call.model_used}</bdi></dd></div>
        <div><dt>Started</dt><dd><${Time} at=${call.timestamp} /></dd></div>
        ${!isOpen && isSent && html`<div><dt>Tokens in → out</dt><dd>${isCounted(call) ? html`<${Tokens} input=${call.input_tokens} output=${call.output_tokens} isEstimated=${call.usage_source === "estimated"} />` : html`<${Dash} reason="no token counts" />`}</dd></div>`}
        ${!isOpen && html`<div><dt>Cost</dt><dd><${CallCost} call=${call} /></dd></div>`}
        ${(call.latency_ms ?? null) !== null && html`<div><dt>Latency</dt><dd>${duration(call.latency_ms)}</dd></div>`}
        ${(call.first_token_ms ?? null) !== null && html`<div><dt>First token</dt><dd>after ${duration(call.first_token_ms)}</dd></div>`}
      </dl>
      ${isOpen && html`<p class="muted">No response yet.</p>`}
      ${call.error_message && html`<p class="fault">${call.error_message}</p>`}
    </li>
  `;
}

export function Attempts({ calls }) {
  if (calls.length === 0) return null;
  return html`
    <section class="section">
      <h3>Attempts</h3>
      <ol class="attempts">${calls.map((call) => html`<${Attempt} key=${call.id} call=${call} />`)}</ol>
    </section>
  `;
}
