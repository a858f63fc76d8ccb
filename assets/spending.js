/** The cost of calls: a bar for each day, and sums by a chosen group. Fetches only while it is open. */

import * as api from "./api.js";
import { byId, h, setText } from "./dom.js";
import { count, excludedCalls, isCostUnknown, money, moneyOrUnknown, plural } from "./format.js";

const DAYS = 30;
const MS_PER_DAY = 24 * 60 * 60 * 1000;
/** Slow sums are fetched less often: the pause is this many times the duration of the last fetch. */
const REST_FACTOR = 10;
const REST_MIN_MS = 500;
/** Calls that end within this time cause one fetch. */
const SOON_MS = 50;
/** Further groups are merged into one row. */
const ROWS_MAX = 50;
const GROUPS = { model: "Model", provider: "Provider", flow: "Flow", role: "Role", key: "Key", tag: "Tag", client: "Client", session: "Session", end_user: "End user", project: "Project", status: "Status" };
/** The start of each period, in UTC like the ledger's days. */
const PERIODS = {
  month: ["This month", (today) => new Date(today.getTime() - (today.getUTCDate() - 1) * MS_PER_DAY)],
  days: [`Last ${DAYS} days`, firstDay],
  day: ["Today", (today) => today],
  all: ["All time", () => null],
};

/** `flowName(id)` returns a flow's name. */
export function createSpending({ flowName }) {
  const root = byId("spending");
  const by = h("select", { id: "spending-by", "data-testid": "spending-by", onchange: load }, ...Object.entries(GROUPS).map(([value, name]) => h("option", { value }, name)));
  const period = h("select", { id: "spending-period", "data-testid": "spending-period", onchange: load }, ...Object.entries(PERIODS).map(([value, [name]]) => h("option", { value }, name)));
  const bars = h("ol", { class: "days", "aria-label": `Cost per day, last ${DAYS} days (UTC)` });
  const scale = h("p", { class: "muted days-scale" });
  const head = h("tr");
  const body = h("tbody", { "data-testid": "spending-body" });
  const note = h("p", { class: "muted", role: "status", "data-testid": "spending-note" });
  root.append(
    bars,
    scale,
    h("div", { class: "picker spending-choice" }, labelled("Group by", by), labelled("Period", period)),
    h("div", { class: "scroller", tabindex: "0", role: "region", "aria-label": "Spending by group" }, h("table", {}, h("thead", {}, head), body)),
    note,
  );
  let timer = 0;
  let restUntil = 0;
  let latestRequest = 0;
  /** Running loads; more than one only if the choice has changed meanwhile. */
  let loading = 0;

  root.addEventListener("toggle", () => root.open && load());

  /** Loads again; replaces a load that is under way. */
  async function load() {
    const request = ++latestRequest;
    const began = Date.now();
    const today = new Date(Math.floor(began / MS_PER_DAY) * MS_PER_DAY);
    loading++;
    const from = PERIODS[period.value][1](today);
    try {
      const [days, sums] = await Promise.all([fetchSums("day", firstDay(today)), fetchSums(by.value, from)]);
      if (request !== latestRequest) return; // The choice has changed since.
      drawDays(days.items, today);
      drawSums(sums);
    } catch (error) {
      if (request === latestRequest) setText(note, `Cannot load the spending: ${error.message}`);
    } finally {
      loading--;
      restUntil = Date.now() + Math.max(REST_MIN_MS, (Date.now() - began) * REST_FACTOR);
    }
  }

  /** Loads soon, if the part is open. */
  function refresh() {
    if (!root.open || timer) return;
    timer = setTimeout(() => {
      timer = 0;
      if (loading) refresh(); // The running load may lack the newest call.
      else if (root.open) load();
    }, Math.max(SOON_MS, restUntil - Date.now()));
  }

  function drawDays(items, today) {
    const known = new Map(items.map((item) => [item.key, item]));
    const days = Array.from({ length: DAYS }, (_, at) => {
      const date = new Date(firstDay(today).getTime() + at * MS_PER_DAY).toISOString().slice(0, 10);
      return { date, item: known.get(date) };
    });
    const most = Math.max(...days.map(({ item }) => Number(item?.total_cost_usd ?? 0)));
    bars.replaceChildren(
      ...days.map(({ date, item }) => {
        const text = `${date}: ${item ? dayText(item) : "no calls"}`;
        const bar = h("span", { class: "day-bar" });
        const share = most > 0 ? Number(item?.total_cost_usd ?? 0) / most : 0;
        bar.style.blockSize = `${share * 100}%`; // Set through the CSSOM, which the content security policy allows.
        return h("li", { class: "day", title: text, "data-date": date, "data-calls": item ? item.calls : 0 }, bar, h("span", { class: "hidden-text" }, text));
      }),
    );
    setText(scale, `${days[0].date} to ${days.at(-1).date} (UTC) · highest day: ${money(most)}`);
  }

  function drawSums({ items, total }) {
    const cells = (texts) => texts.map((text) => h("td", { class: "number" }, text));
    const row = (name, item) =>
      h("tr", {}, h("th", { scope: "row", title: name }, name), ...cells([cost(item), count(item.calls), count(item.input_tokens), count(item.output_tokens)]));
    head.replaceChildren(
      h("th", { scope: "col" }, GROUPS[by.value]),
      ...["Cost", "Calls", "Tokens in", "Tokens out"].map((name) => h("th", { scope: "col", class: "number" }, name)),
    );
    body.replaceChildren(...items.slice(0, ROWS_MAX).map((item) => row(nameOf(item.key), item)), row("Total", total));
    const left = items.length - ROWS_MAX;
    const excluded = excludedCalls(total);
    const notes = [
      excluded.length && `The cost excludes ${excluded.join(" and ")}.`,
      Number(total.subscription_cost_usd) > 0 && `Subscriptions cover further calls worth ${money(total.subscription_cost_usd)}.`,
      total.estimated_calls && `The tokens of ${plural(total.estimated_calls, "call")} are estimated.`,
      by.value === "tag" && "A call with several tags counts for each tag.",
      left > 0 && `The API has ${plural(left, "more row")}.`,
    ];
    setText(note, notes.filter(Boolean).join(" "));
  }

  const nameOf = (key) => (key === null ? "–" : by.value === "flow" ? flowName(Number(key)) : key);

  root.hidden = false;
  return { refresh };
}

/** Keeps a label beside its select when the line wraps. */
const labelled = (text, select) => h("div", { class: "spending-select" }, h("label", { for: select.id }, text), select);

function fetchSums(group, from) {
  const since = from ? `&from=${encodeURIComponent(from.toISOString())}` : "";
  return api.get(`/api/ledger/summary?group_by=${group}${since}`);
}

function firstDay(today) {
  return new Date(today.getTime() - (DAYS - 1) * MS_PER_DAY);
}

const cost = (item) => (isCostUnknown(item) ? moneyOrUnknown(null) : money(item.total_cost_usd ?? 0));

function dayText(item) {
  const excluded = isCostUnknown(item) ? [] : excludedCalls(item);
  return [cost(item), plural(item.calls, "call"), ...excluded].join(", ");
}
