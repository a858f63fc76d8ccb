/** The items of a map: counts by state, and each item's prompt, output and attempts. */

import { drawAttempts, durationMs, fact, isCounted, STATE_WORDS, tokens } from "./attempts.js";
import { itemOf } from "./calls.js";
import { h, setText } from "./dom.js";
import { count, duration, moment, moneyOrUnknown, plural } from "./format.js";
import { longText } from "./texts.js";

/** A map may have a thousand items, so the list grows in steps of this size. */
const PAGE_ITEMS = 25;
/** Limits the excerpt of the prompt in an item's summary, in characters. */
const PREVIEW_CHARS = 80;
const NANO = 1e9;
/** The filters of the list. */
const CHOICES = [
  ["all", () => true, "started"],
  ["completed", ({ status }) => status === "COMPLETED", "completed"],
  ["running", ({ status }) => status === "RUNNING" || status === "WAITING", "running"],
  ["failed", ({ status }) => status === "FAILED", "failed"],
  ["cancelled", ({ status }) => status === "CANCELLED", "cancelled"],
];

/** `folds` remembers which parts the user unfolded. */
export function createMapItems({ folds, key }) {
  /** By item number: the element, and the data that it shows. */
  const drawn = new Map();
  let items = [];
  let calls = new Map();
  let chosen = "all";
  let shownMax = PAGE_ITEMS;

  const choices = CHOICES.map(([name, , word]) => ({ name, word, button: h("button", { type: "button", "data-testid": `items-${name}`, onclick: () => choose(name) }) }));
  const list = h("ol", { class: "items", "aria-label": "Items" });
  const more = h("button", { type: "button", "data-testid": "items-more", onclick: showMore });
  const root = h(
    "div",
    { class: "map-items", "data-testid": "items" },
    h("h4", {}, "Items"),
    h("div", { class: "choices", role: "group", "aria-label": "Filter items" }, ...choices.map(({ button }) => button)),
    list,
    h("div", { class: "buttons" }, more),
  );

  function update(newItems, newCalls) {
    items = newItems;
    calls = callsByItem(newCalls);
    draw();
  }

  function choose(name) {
    chosen = name;
    shownMax = PAGE_ITEMS;
    draw();
  }

  function showMore() {
    const first = shownMax;
    shownMax += PAGE_ITEMS;
    draw();
    list.children[first]?.querySelector("summary").focus(); // The first new item is the next to read.
  }

  function draw() {
    for (const { name, word, button } of choices) {
      const number = items.filter(matches(name)).length;
      button.ariaPressed = String(name === chosen);
      // The selected filter stays visible, so that it can be changed back.
      button.hidden = number === 0 && name !== chosen && name !== "all";
      setText(button, `${count(number)} ${word}`);
    }
    const chosenItems = items.filter(matches(chosen));
    const visible = chosenItems.slice(0, shownMax);
    const numbers = new Set(visible.map(({ item }) => item));
    for (const [number, { root: old }] of drawn) {
      if (numbers.has(number)) continue;
      old.remove();
      drawn.delete(number);
    }
    visible.forEach((item, index) => {
      const element = drawItem(item, calls.get(item.item) ?? []);
      if (list.children[index] !== element) list.insertBefore(element, list.children[index] ?? null);
    });
    const left = chosenItems.length - visible.length;
    more.hidden = left <= 0;
    setText(more, `Show ${count(Math.min(left, PAGE_ITEMS))} more of ${count(chosenItems.length)}`);
  }

  /** Redraws an item only if it has changed. */
  function drawItem(item, itemCalls) {
    const source = JSON.stringify([item, itemCalls]);
    const before = drawn.get(item.item);
    if (before?.source === source) return before.root;
    const hadFocus = before?.root.contains(document.activeElement);
    const element = createItem(item, itemCalls, { folds, key: `${key}/${item.item}` });
    before?.root.replaceWith(element);
    if (hadFocus) element.querySelector("summary").focus();
    drawn.set(item.item, { root: element, source });
    return element;
  }

  return { root, update };
}

const matches = (name) => CHOICES.find(([choice]) => choice === name)[1];

function callsByItem(calls) {
  const byItem = new Map();
  for (const call of calls) {
    const item = itemOf(call);
    if (!byItem.has(item)) byItem.set(item, []);
    byItem.get(item).push(call);
  }
  return byItem;
}

function createItem(item, calls, { folds, key }) {
  const elapsed = durationMs(item);
  const ended = calls.filter(({ status }) => status !== "PENDING");
  const numbers = [ended.length ? moneyOrUnknown(costOf(ended)) : null, elapsed === null ? null : duration(elapsed)];
  const word = STATE_WORDS[item.status] ?? item.status.toLowerCase();
  const attempts = calls.length > 1 ? ` · ${plural(calls.length, "attempt")}` : "";
  const summary = h(
    "summary",
    {},
    h("span", { class: "dot" }),
    h("strong", {}, `Item ${item.item}`), // Starts at 0, as in templates and errors.
    h("span", { class: "node-state" }, (item.status === "COMPLETED" && item.error ? "failed, onError output used" : word) + attempts),
    h("span", { class: "node-meta" }, numbers.filter(Boolean).join(" · ")),
    h("span", { class: "item-prompt muted" }, (item.prompt ?? "").slice(0, PREVIEW_CHARS)),
  );
  const details = h("details", { open: folds.get(key) ?? false }, summary);
  const fill = () => details.open && details.children.length === 1 && details.append(drawBody(item, calls, ended, { folds, key }));
  summary.addEventListener("click", () => folds.set(key, !details.open));
  details.addEventListener("toggle", fill);
  fill();
  return h("li", { class: "item", "data-testid": "history-item", "data-item": item.item, "data-state": item.status.toLowerCase() }, details);
}

function drawBody(item, calls, ended, { folds, key }) {
  const text = (name, value, part) => ((value ?? null) === null ? null : longText(name, value, { folds, key: `${key}/${part}`, testid: `item-${part}` }));
  const counted = ended.filter(isCounted);
  const elapsed = durationMs(item);
  return h(
    "div",
    { class: "run-node-body" },
    h(
      "dl",
      { class: "facts" },
      ...fact("Started", moment(item.startedAt)),
      ...fact("Duration", elapsed === null ? null : duration(elapsed)),
      ...fact("Tokens in → out", counted.length ? tokens(sum(counted, "input_tokens"), sum(counted, "output_tokens")) : null),
      ...fact("Cost", ended.length ? moneyOrUnknown(costOf(ended)) : null),
    ),
    item.error && item.error !== calls.at(-1)?.error_message ? h("p", { class: "error-text" }, item.error) : null,
    text("System prompt", item.system, "system"),
    text("Prompt", item.prompt, "prompt"),
    text("Output", item.output, "output"),
    ...drawAttempts(calls),
  );
}

const sum = (calls, key) => calls.reduce((total, call) => total + call[key], 0);

/** Adds in whole nano-dollars, as the ledger does; null if any cost is unknown. */
function costOf(calls) {
  if (calls.some((call) => call.total_cost_usd === null)) return null;
  return calls.reduce((total, call) => total + Math.round(call.total_cost_usd * NANO), 0) / NANO;
}
