/** The items of a map in a run: counts by state, and each item's prompt, output and attempts. */

import { html, useRef, useState } from "./vendor/preact.js";
import { count, duration, plural } from "./format.js";
import { Attempts, Tokens } from "./run-attempts.js";
import { durationMs, itemOf, sumCalls } from "./run-state.js";
import { Facts, LongText, Money, Status, Time } from "./ui.js";

/** A map may have a thousand items, so the list grows in steps of this size. */
const PAGE_ITEMS = 25;
/** Limits the excerpt of the prompt in an item's summary, in characters. */
const PREVIEW_CHARS = 80;
/** The filters of the list. A failed item whose `onError` output was used is completed, with an error. */
const CHOICES = [
  ["all", () => true, "started"],
  ["failed", ({ status, error }) => status === "FAILED" || (status === "COMPLETED" && Boolean(error)), "failed"],
  ["running", ({ status }) => status === "RUNNING" || status === "WAITING", "running"],
  ["completed", ({ status, error }) => status === "COMPLETED" && !error, "completed"],
  ["cancelled", ({ status }) => status === "CANCELLED", "cancelled"],
];

function callsByItem(calls) {
  const byItem = new Map();
  for (const call of calls) {
    const item = itemOf(call);
    if (!byItem.has(item)) byItem.set(item, []);
    byItem.get(item).push(call);
  }
  return byItem;
}

function Body({ item, calls, sums }) {
  const elapsed = durationMs(item);
  const text = (name, value, testid) => (value ?? null) !== null && html`<${LongText} name=${name} text=${value} testid=${testid} />`;
  return html`
    <div class="item-body">
      <${Facts} facts=${[
        ["Started", html`<${Time} at=${item.startedAt} />`],
        ["Duration", elapsed === null ? null : duration(elapsed)],
        ["Tokens in → out", sums.isCounted ? html`<${Tokens} input=${sums.inputTokens} output=${sums.outputTokens} isEstimated=${sums.isEstimated} />` : null],
        ["Cost", sums.calls > sums.open ? html`<${Money} usd=${sums.unknown ? null : sums.cost} />` : null],
      ]} />
      ${item.error && item.error !== calls.at(-1)?.error_message && html`<p class="fault">${item.error}</p>`}
      ${text("System prompt", item.system, "item-system")}
      ${text("Prompt", item.prompt, "item-prompt")}
      ${text("Output", item.output, "item-output")}
      <${Attempts} calls=${calls} />
    </div>
  `;
}

function Item({ item, calls }) {
  const [isOpen, setOpen] = useState(false);
  const sums = sumCalls(calls);
  const elapsed = durationMs(item);
  const isReplaced = item.status === "COMPLETED" && item.error;
  return html`
    <li data-testid="run-item" data-item=${item.item} data-state=${item.status.toLowerCase()}>
      <details open=${isOpen} onToggle=${({ currentTarget }) => setOpen(currentTarget.open)}>
        <summary>
          <strong>Item ${item.item}</strong>
          ${isReplaced ? html`<span class="status" data-kind="warn"><span class="dot" aria-hidden="true"></span>failed, onError output used</span>` : html`<${Status} status=${item.status} />`}
          <span class="muted">${[calls.length > 1 ? plural(calls.length, "attempt") : null, elapsed === null ? null : duration(elapsed)].filter(Boolean).join(" · ")}</span>
          ${sums.calls > sums.open && html`<span class="muted"><${Money} usd=${sums.unknown ? null : sums.cost} /></span>`}
          <span class="item-preview cut muted"><bdi>${(item.prompt ?? "").slice(0, PREVIEW_CHARS)}</bdi></span>
        </summary>
        ${isOpen && html`<${Body} item=${item} calls=${calls} sums=${sums} />`}
      </details>
    </li>
  `;
}

/** `calls`: all calls of the map's node. */
export function MapItems({ items, calls }) {
  const [chosen, choose] = useState("all");
  const [shownMax, setShownMax] = useState(PAGE_ITEMS);
  const list = useRef(null);
  const matching = items.filter(CHOICES.find(([name]) => name === chosen)[1]);
  const left = matching.length - shownMax;
  const byItem = callsByItem(calls);
  const showMore = () => {
    setShownMax(shownMax + PAGE_ITEMS);
    // The first new item is the next to read.
    requestAnimationFrame(() => list.current?.children[shownMax]?.querySelector("summary").focus());
  };
  const select = (name) => {
    choose(name);
    setShownMax(PAGE_ITEMS);
  };
  return html`
    <section class="section" data-testid="items">
      <h3>Items</h3>
      <div class="buttons" role="group" aria-label="Filter items">
        ${CHOICES.map(([name, matches, word]) => {
          const number = items.filter(matches).length;
          // The selected filter stays visible, so that it can be changed back.
          if (number === 0 && name !== chosen && name !== "all") return null;
          return html`<button key=${name} type="button" class="toggle" aria-pressed=${name === chosen ? "true" : "false"} data-testid=${`items-${name}`} onClick=${() => select(name)}>${count(number)} ${word}</button>`;
        })}
      </div>
      <ol class="run-items" aria-label="Items" ref=${list}>${matching.slice(0, shownMax).map((item) => html`<${Item} key=${item.item} item=${item} calls=${byItem.get(item.item) ?? []} />`)}</ol>
      ${left > 0 && html`<div class="buttons"><button type="button" data-testid="items-more" onClick=${showMore}>Show ${count(Math.min(left, PAGE_ITEMS))} more of ${count(matching.length)}</button></div>`}
    </section>
  `;
}
