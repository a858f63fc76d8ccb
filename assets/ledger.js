/** The ledger table: one row per call, newest first, updated in place. */

import * as api from "./api.js";
import { isRefused } from "./calls.js";
import { dash, h, perFrame, prefersStillness, setText } from "./dom.js";
import { costText, count, duration, moment, money } from "./format.js";

const PAGE_ROWS = 50;
/** Limits the rows in the page; older ones are in the CSV. */
const ROWS_MAX = 500;
/** More new rows than this are not highlighted: it would flicker and slow the page. */
const FLASHES_MAX = 20;
/** A new row on top moves all others, which takes browsers tens of milliseconds with 500 rows. */
const DRAW_PAUSE_MS = 250;
/** Names by which rows can be filtered, as the API calls them, and how to find them in a row. */
const FILTERS = {
  client: ["Client", (entry, name) => entry.client === name],
  session: ["Session", (entry, name) => entry.session === name],
  end_user: ["End user", (entry, name) => entry.end_user === name],
  project: ["Project", (entry, name) => entry.project === name],
  key: ["Key", (entry, name) => entry.key_name === name],
  tag: ["Tag", (entry, name) => (entry.tags ?? "").split(",").includes(name)],
};
const COLUMNS = [
  ["Time", drawTime],
  ["Flow", (entry, names) => (entry.flow_id === null ? dash("gateway call") : names.flow(entry.flow_id))],
  ["Node", drawNode],
  ["Role", (entry) => entry.agent_role ?? dash("no role")],
  ["Model", (entry) => entry.model_used],
  ["In", (entry) => drawTokens(entry, entry.input_tokens), "number", "Tokens in"],
  ["Out", (entry) => drawTokens(entry, entry.output_tokens), "number", "Tokens out"],
  ["Cost", drawCost, "number"],
  ["Latency", drawLatency, "number"],
  ["Status", drawStatus],
];

/** `table`, `empty`, `more`, `note`, `filter` and `csv` are elements; `names.flow(id)`, `names.node(id, nodeId)` return names; `onRun(flowId, runId)` shows a run. */
export function createLedger({ table, empty, more, note, filter, csv, names, onRun }) {
  /** By entry id: { entry, body, open }. */
  const rows = new Map();
  /** Entries to draw in the next frame, by id; only the newest state of each is kept. */
  const incoming = new Map();
  let next = null;
  const noCalls = empty.textContent;
  const onFilter = () => load().catch((error) => setText(empty, `Cannot load the ledger: ${error.message}`));
  const field = h("select", { id: "ledger-filter", "data-testid": "ledger-filter", onchange: onFilter }, h("option", { value: "" }, "All calls"), ...Object.entries(FILTERS).map(([value, [label]]) => h("option", { value }, label)));
  const name = h("input", { type: "search", "data-testid": "ledger-filter-name", "aria-label": "Name to show", autocomplete: "off", spellcheck: "false", hidden: true, onchange: onFilter });
  filter.append(h("div", { class: "spending-select" }, h("label", { for: field.id }, "Show"), field, name));

  table.tHead.append(
    h("tr", {}, ...COLUMNS.map(([name, , kind, title]) => h("th", { scope: "col", class: kind, title }, name))),
  );

  const drawSoon = perFrame(() => {
    const newest = [...incoming.values()].sort((a, b) => b.id - a.id).slice(0, ROWS_MAX);
    incoming.clear();
    for (const body of newest.map(upsertRow)) if (body) flash(body);
    trim();
  }, DRAW_PAUSE_MS);

  /** The condition of the chosen filter, for a query; empty if all rows are shown. */
  const condition = () => (field.value && name.value.trim() ? `${field.value}=${encodeURIComponent(name.value.trim())}` : "");

  /** Receives a row that was written or settled. */
  function receive(entry) {
    if (!condition() || FILTERS[field.value][1](entry, name.value.trim())) add(entry);
  }

  function add(entry) {
    const before = incoming.get(entry.id);
    if (!before || !isOutdated(before, entry)) incoming.set(entry.id, entry);
    drawSoon();
  }

  /** Fetches the newest rows, and removes all others. */
  async function load() {
    const stale = new Set(rows.keys());
    const wanted = condition();
    name.hidden = !field.value;
    csv.href = `/api/ledger.csv${wanted && `?${wanted}`}`;
    const page = await api.get(`/api/ledger?limit=${PAGE_ROWS}&${wanted}`);
    if (wanted !== condition()) return; // The choice has changed since.
    for (const id of stale) remove(id);
    setText(empty, wanted ? "No calls with this name." : noCalls);
    show(page);
  }

  /** Adds the newest rows to the shown ones, while no messages arrive. */
  async function poll() {
    const wanted = condition();
    const page = await api.get(`/api/ledger?limit=${PAGE_ROWS}&${wanted}`);
    if (wanted === condition()) page.items.forEach(add);
  }

  async function loadMore() {
    if (next !== null) show(await api.get(`/api/ledger?limit=${PAGE_ROWS}&before=${encodeURIComponent(next)}&${condition()}`));
  }

  function show(page) {
    page.items.forEach(upsertRow);
    next = page.next ?? null;
    trim();
  }

  /** Puts an entry in its place; returns its row, or null if nothing has changed. */
  function upsertRow(entry) {
    const row = rows.get(entry.id);
    if (!row) {
      const created = { entry, open: false, body: h("tbody") };
      rows.set(entry.id, created);
      drawRow(created);
      // The entry is nearly always the newest, so the search from the top ends at once.
      let below = table.tBodies[0];
      while (below && Number(below.dataset.id) > entry.id) below = below.nextElementSibling;
      table.insertBefore(created.body, below ?? null);
      return created.body;
    }
    if (isOutdated(row.entry, entry) || JSON.stringify(row.entry) === JSON.stringify(entry)) return null;
    row.entry = entry;
    drawRow(row);
    return row.body;
  }

  function drawRow(row) {
    const { entry, body } = row;
    const hadFocus = body.contains(document.activeElement);
    const toggle = h("button", {
      class: "toggle",
      type: "button",
      "aria-expanded": String(row.open),
      "aria-label": `Details of call ${entry.id}`,
      onclick: () => {
        row.open = !row.open;
        drawRow(row);
      },
    });
    const cells = COLUMNS.map(([name, draw, kind, title]) =>
      h("td", { class: kind, "data-column": name.toLowerCase(), "data-label": title ?? name }, draw(entry, names)),
    );
    for (const cell of cells) cell.title = cell.querySelector("[title]")?.title ?? cell.textContent; // The text may be cut off.
    cells[0].prepend(toggle);
    body.dataset.id = entry.id;
    body.replaceChildren(
      h("tr", { "data-testid": "ledger-row", "data-entry-id": entry.id, "data-status": entry.status }, ...cells),
      ...(row.open ? [drawDetails(entry, onRun)] : []),
    );
    if (hadFocus) toggle.focus();
  }

  function remove(id) {
    rows.get(id)?.body.remove();
    rows.delete(id);
  }

  function trim() {
    while (rows.size > ROWS_MAX) {
      remove(Number(table.tBodies[table.tBodies.length - 1].dataset.id));
      next = null; // The cursor no longer continues the last row.
    }
    const isFull = rows.size >= ROWS_MAX;
    empty.hidden = rows.size > 0;
    table.hidden = rows.size === 0;
    more.hidden = next === null || isFull;
    note.hidden = !isFull;
  }

  return { load, loadMore, poll, receive, redraw: () => rows.forEach(drawRow) };
}

/** A settled row never becomes pending again, so a pending state after it is outdated. */
const isOutdated = (before, after) => before.status !== "PENDING" && after.status === "PENDING";

let flashes = 0;

function flash(body) {
  if (flashes >= FLASHES_MAX || prefersStillness()) return;
  flashes += 1;
  const colours = [{ backgroundColor: "var(--accent-soft)" }, { backgroundColor: "transparent" }];
  const end = () => (flashes -= 1);
  body.animate(colours, { duration: 1200, easing: "ease-out" }).finished.then(end, end);
}

function drawTime(entry) {
  return h("time", { datetime: entry.timestamp, title: entry.timestamp }, moment(entry.timestamp));
}

function drawNode(entry, names) {
  if (entry.node_id === null) return dash("no node");
  const name = names.node(entry.flow_id, entry.node_id);
  return h("span", { title: `${name} (${entry.node_id})` }, h("bdi", {}, name), entry.attempt > 1 ? h("span", { class: "muted" }, ` attempt ${entry.attempt}`) : null);
}

function drawTokens(entry, tokens) {
  if (entry.status === "PENDING") return dash("call in progress");
  if (entry.cached) return dash("cached response: no call was made");
  if (isRefused(entry)) return dash(`refused by a ${entry.refused}: no call was made`);
  if (entry.usage_source === "none") return dash("the provider sent no token counts");
  if (entry.usage_source === "estimated") return h("span", { title: "estimated: the provider sent no token counts" }, `~${count(tokens)}`);
  return count(tokens);
}

function drawCost(entry) {
  if (entry.total_cost_usd !== null && entry.billing) return h("span", { class: "muted", title: "covered by a subscription; by the price it would cost this" }, money(entry.total_cost_usd));
  if (entry.total_cost_usd !== null) return money(entry.total_cost_usd);
  return dash(entry.status === "PENDING" ? "call in progress" : entry.cost_note ? `unknown cost: ${entry.cost_note}` : "unknown cost");
}

function drawLatency(entry) {
  return entry.latency_ms === null ? dash(entry.status === "PENDING" ? "call in progress" : "unknown latency") : duration(entry.latency_ms);
}

function drawStatus(entry) {
  const message = entry.error_message ?? (entry.cached ? costText(entry) : null);
  const word = isRefused(entry) ? "failed: refused" : entry.status.toLowerCase();
  return h("div", { title: message }, h("span", { class: "status" }, word), message ? h("span", { class: "row-error" }, message) : null);
}

function drawDetails(entry, onRun) {
  const isCounted = !entry.cached && !isRefused(entry) && entry.usage_source !== "none";
  const facts = [
    [isRefused(entry) ? `Refused by a ${entry.refused}` : "Error", entry.error_message],
    ["Call ID", entry.id],
    ["Model", `${entry.provider} / ${entry.model_used}`],
    ["Run ID", entry.run_id && drawRun(entry, onRun)],
    ["Operation", `${entry.operation_id}, attempt ${entry.attempt}`],
    ["Key", entry.key_name],
    ["Tags", entry.tags?.split(",").join(", ")],
    ["Client", entry.client],
    ["Session", entry.session],
    ["End user", entry.end_user],
    ["Project", entry.project],
    ["Billing", entry.billing],
    ["Prompt SHA-256", entry.prompt_hash],
    ["Provider cache", isCounted ? `${count(entry.cached_input_tokens)} tokens read, ${count(entry.cache_write_tokens)} written` : null],
    ["Reasoning", isCounted ? `${count(entry.reasoning_tokens)} tokens` : null],
    ["Token counts from", isCounted ? entry.usage_source : null],
    ["First token", (entry.first_token_ms ?? null) === null ? null : `after ${duration(entry.first_token_ms)}`],
    ["Cost", costText(entry)],
    ["Cost source", entry.cost_source === "none" ? null : (entry.cost_source ?? null)],
    ["Cost note", entry.cost_note ?? null],
    ["Stated cost", (entry.provider_cost_usd ?? null) === null ? null : money(entry.provider_cost_usd)],
    ["Cost by our price", (entry.price_cost_usd ?? null) === null ? null : money(entry.price_cost_usd)],
    ["Price ID", (entry.price_id ?? null) === null ? null : entry.price_id],
  ].filter(([, value]) => value !== null && value !== undefined);
  const list = facts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value instanceof Node ? value : String(value))));
  return h("tr", { class: "details" }, h("td", { colspan: COLUMNS.length }, h("dl", {}, ...list)));
}

function drawRun({ flow_id: flowId, run_id: runId }, onRun) {
  const show = () => onRun(flowId, runId);
  return h("button", { type: "button", class: "quiet", "data-testid": "ledger-run", "aria-haspopup": "dialog", title: "Show this run", onclick: show }, runId);
}
