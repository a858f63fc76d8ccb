/** A budget's usage: a bar, whose held part is hatched, also for screen readers, and the numbers below it. */

import { h, setText } from "./dom.js";
import { count, money } from "./format.js";

/** `root` is the element around both; its `data-level` says how full the bar is. */
export function createMeter(root) {
  const held = h("div", { class: "meter-held" });
  const fill = h("div", { class: "meter-fill" }, held);
  const bar = h("div", { class: "meter", role: "meter", "aria-valuemin": 0, "aria-valuemax": 100 }, fill);
  const numbers = h("p", { class: "budget-numbers" });
  root.append(bar, numbers);

  function update(budget) {
    const { name, state } = budget;
    root.dataset.name = name;
    root.dataset.level = state ? (state.percent >= 100 ? "full" : state.percent >= 80 ? "high" : "low") : "none";
    bar.hidden = !state;
    const share = state ? `${count(state.percent)} %` : "";
    const isHeld = Number(state?.held ?? 0) > 0;
    const used = state ? `${usageOf(budget, state.used)} used` : `${amount(budget, budget.limitUsd ?? budget.limitTokens)} for each ${budget.per}`;
    const parts = isHeld ? `${amount(budget, state.spent)} spent, ${amount(budget, state.held)} held` : "";
    if (state) {
      bar.ariaLabel = `Usage of ${name}`;
      bar.ariaValueNow = String(Math.min(100, state.percent));
      bar.ariaValueText = `${share}: ${[used, parts].filter(Boolean).join(", ")}`;
      fill.style.inlineSize = `${Math.min(100, state.percent)}%`; // Set through the CSSOM, which the content security policy allows.
      held.style.inlineSize = isHeld ? `${(100 * Number(state.held)) / Number(state.used)}%` : "0";
    }
    setText(numbers, [share, used, parts].filter(Boolean).join(" · "));
  }

  return { update };
}

const isInTokens = ({ limitUsd }) => (limitUsd ?? null) === null;

const amount = (budget, number) => (isInTokens(budget) ? `${count(number)} tokens` : money(number));

const usageOf = (budget, used) =>
  isInTokens(budget) ? `${count(used)} of ${count(budget.limitTokens)} tokens` : `${money(used)} of ${money(budget.limitUsd)}`;
