/** A budget's usage: a bar with a solid part for spent and a hatched part for held, and the amounts below it. */

import { html } from "./vendor/preact.js";
import { count, exactMoney, money } from "./format.js";

/** Returns true if the limit of a budget is a number of tokens. */
const isInTokens = ({ limitTokens }) => (limitTokens ?? null) !== null;

/** An amount of a budget: dollars with all digits on hover, or tokens; with `bare`, without the word. */
function Amount({ budget, value, bare = false }) {
  if (isInTokens(budget)) return html`<span>${count(value)}${!bare && " tokens"}</span>`;
  return html`<data value=${String(value)} title=${exactMoney(value)}>${money(value)}</data>`;
}

/** The limit of a budget, which is a setting: with all its digits. */
const Limit = ({ budget }) => (isInTokens(budget) ? html`<span>${count(budget.limitTokens)} tokens</span>` : html`<data value=${String(budget.limitUsd)}>${exactMoney(budget.limitUsd)}</data>`);

const textOf = (budget, value) => (isInTokens(budget) ? `${count(value)} tokens` : money(value));

/** Returns how full a budget is: "low", "high" from 80 percent on, or "full". */
export const levelOf = ({ percent }) => (percent >= 100 ? "full" : percent >= 80 ? "high" : "low");

/** `budget` is an item of `GET /api/budget`. Budgets per run or session have no usage of their own, only a limit. */
export function Meter({ budget }) {
  const { name, state, per } = budget;
  const limit = budget.limitUsd ?? budget.limitTokens;
  if (!state) return html`<p class="meter-numbers" data-testid="meter-numbers"><span><${Limit} budget=${budget} /> for each ${per}</span></p>`;
  const { percent, used, spent, held, left } = state;
  const isHeld = Number(held) > 0;
  // A limit of 0 has no shares; then anything used fills the bar.
  const share = (value) => (Number(limit) > 0 ? (100 * Number(value)) / Number(limit) : Number(value) > 0 ? 100 : 0);
  const spentWidth = Math.min(100, share(spent));
  const heldWidth = Math.min(100 - spentWidth, share(held));
  const words = `${count(percent)} %: ${isInTokens(budget) ? count(used) : money(used)} of ${isInTokens(budget) ? textOf(budget, limit) : exactMoney(limit)} used${isHeld ? `, ${textOf(budget, spent)} spent, ${textOf(budget, held)} held` : ""}`;
  return html`
    <div class="meter" role="meter" data-level=${levelOf(state)} aria-label=${`Usage of ${name}`} aria-valuemin="0" aria-valuemax="100" aria-valuenow=${Math.min(100, percent)} aria-valuetext=${words}>
      <div class="meter-spent" style=${{ inlineSize: `${spentWidth}%` }}></div>
      <div class="meter-held" style=${{ inlineSize: `${heldWidth}%` }}></div>
    </div>
    <p class="meter-numbers" data-testid="meter-numbers">
      <span><strong>${count(percent)} %</strong> · <${Amount} budget=${budget} value=${used} bare /> of <${Limit} budget=${budget} /> used${isHeld && html` (<${Amount} budget=${budget} value=${spent} /> spent, <${Amount} budget=${budget} value=${held} /> held)`}</span>
      <span class="muted"><${Amount} budget=${budget} value=${left} /> left</span>
    </p>
  `;
}
