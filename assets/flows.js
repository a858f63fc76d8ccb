/** The list of flows: one card each, with its inputs, buttons and the progress of its nodes. */

import * as api from "./api.js";
import { h, perFrame, setText } from "./dom.js";
import { count, duration, moneyOrUnknown, plural } from "./format.js";
import { parse, stringify } from "./json.js";
import { advance, fromStatus, isActive, itemCounts, newRun, nodeOf, stateOf, recordCall } from "./runs.js";

/** Limits the flows in the page; the API has them all. */
const FLOWS_MAX = 200;
/** Without a connection, running flows are polled; up to this number, all flows are. */
const POLL_ALL_MAX = 10;
/** Limits for the ledger rows of a run with an active map: rows for each page, and pages. */
const CALLS_PAGE = 1_000;
const CALLS_PAGES_MAX = 10;
/** A card with more columns than this takes the whole width. */
const NARROW_COLUMNS_MAX = 3;
/** A longer text may have to scroll, so the keyboard must be able to reach it. */
const SCROLLED_CHARS = 80;
const STATE_WORDS = { waiting: "waiting", running: "running", completed: "completed", failed: "failed", skipped: "skipped" };

/**
 * `list` and `empty` are elements; `onError(title, error)` shows an error; `onNames()` is called when names of flows
 * or nodes may have changed. `onHistory(flow, { focusBack })` and `onTriggers(flow, { focusBack, input })` open the
 * dialogs of a flow: `focusBack()` returns the button that was pressed, `input` is the input typed into the card.
 */
export function createFlows({ list, empty, onError, onNames, onHistory, onTriggers }) {
  /** By id: { flow, card, run, seq, queue, latestRequest }. `queue` holds messages while the status is fetched. */
  const flows = new Map();
  /** Ids of flows that have runs but are not in the list; fetching again would not help. */
  const unlistedFlows = new Set();
  const changed = new Set();
  let loading = Promise.resolve();
  let nextLoad = null;

  const drawSoon = perFrame(() => {
    for (const shown of changed) drawRun(shown);
    changed.clear();
  });
  const drawSoonFor = (shown) => {
    changed.add(shown);
    drawSoon();
  };

  /**
   * Fetches the flows and the newest run of each. Fetches never overlap: one that is already running may have started
   * too early for a new caller, so all callers meanwhile share the next one.
   */
  function load() {
    nextLoad ??= loading
      .catch(() => {})
      .then(() => {
        nextLoad = null;
        return (loading = fetchFlows());
      });
    return nextLoad.then(() => Promise.allSettled([...flows.values()].map(restore)));
  }

  async function fetchFlows() {
    const items = await fetchPages();
    for (const [id, shown] of flows) {
      if (items.some((flow) => flow.id === id)) continue;
      shown.card.root.remove();
      flows.delete(id);
    }
    for (const flow of items) {
      let shown = flows.get(flow.id);
      if (!shown) flows.set(flow.id, (shown = { flow, card: null, run: newRun(), seq: 0, queue: [], latestRequest: 0 }));
      if (shown.flow.updated_at !== flow.updated_at || !shown.card) {
        shown.flow = flow;
        const card = createCard(shown, { execute, cancel, resume, openHistory, openTriggers });
        shown.card?.root.remove();
        shown.card = card;
      }
    }
    // Move only misplaced elements: moving an element would take the focus from it.
    items.forEach(({ id }, index) => {
      const { root } = flows.get(id).card;
      if (list.children[index] !== root) list.insertBefore(root, list.children[index] ?? null);
    });
    empty.hidden = items.length > 0;
    onNames();
  }

  async function fetchPages() {
    const items = new Map();
    let next = "";
    while (next !== null && items.size < FLOWS_MAX) {
      const known = items.size;
      const page = await api.get(`/api/flows?limit=100${next && `&before=${encodeURIComponent(next)}`}`);
      for (const flow of page.items) items.set(flow.id, flow);
      next = items.size > known ? (page.next ?? null) : null;
    }
    return [...items.values()];
  }

  /** Loads the newest run from the status route, then applies the messages that arrived after that response. */
  async function restore(shown) {
    shown.queue ??= [];
    const request = ++shown.latestRequest;
    let status = null;
    let calls = [];
    try {
      status = await api.get(`/api/flows/${shown.flow.id}/status`);
      if (hasActiveMap(shown.flow, status)) calls = await fetchCalls(status.runId).catch(() => []);
    } finally {
      if (request === shown.latestRequest) {
        if (status) Object.assign(shown, { run: fromStatus(status), seq: status.seq ?? 0 });
        for (const call of calls) recordCall(shown.run, call);
        const queue = shown.queue;
        shown.queue = null;
        for (const message of queue) applyMessage(shown, message);
        drawSoonFor(shown);
      }
    }
  }

  async function fetchCalls(runId) {
    const calls = [];
    let next = "";
    for (let page = 0; next !== null && page < CALLS_PAGES_MAX; page += 1) {
      const rows = await api.get(`/api/ledger?run_id=${encodeURIComponent(runId)}&limit=${CALLS_PAGE}${next && `&before=${next}`}`);
      calls.push(...rows.items);
      next = rows.next ?? null;
    }
    return calls;
  }

  function applyMessage(shown, message) {
    if (message.seq !== undefined) {
      if (message.seq <= shown.seq) return;
      shown.seq = message.seq;
    }
    shown.run = advance(shown.run, message);
    drawSoonFor(shown);
  }

  /** Receives every message about a run. */
  function receive(message) {
    const shown = flows.get(message.payload.flowId);
    if (shown?.queue) shown.queue.push(message);
    else if (shown) applyMessage(shown, message);
    else if (message.type === "FLOW_STARTED") addFlow(message.payload.flowId);
  }

  /** Adds a flow that was created elsewhere. */
  async function addFlow(flowId) {
    if (unlistedFlows.has(flowId)) return;
    unlistedFlows.add(flowId);
    await load().catch(() => {});
    if (flows.has(flowId)) unlistedFlows.delete(flowId);
  }

  /** Replaces messages while there is no connection. */
  async function poll() {
    const all = [...flows.values()];
    await Promise.all(all.filter((shown) => all.length <= POLL_ALL_MAX || isActive(shown.run)).map(restore));
  }

  async function execute(shown) {
    if (isActive(shown.run) || shown.card.run.ariaBusy) return;
    shown.card.run.ariaBusy = "true";
    try {
      const input = inputOf(shown.card.form, declaredInputs(shown.flow));
      const { runId } = await api.post(`/api/flows/${shown.flow.id}/execute`, { input });
      // Skip if messages of that run, or of a newer one, overtook this response.
      if (!shown.run.runId || shown.run.runId < runId) shown.run = newRun(runId, "QUEUED");
    } catch (error) {
      onError(["Cannot start ", { name: shown.flow.name }], error);
    } finally {
      shown.card.run.ariaBusy = null;
      drawSoonFor(shown);
    }
  }

  /** Resumes a run; messages report its progress. */
  async function resume(shown) {
    try {
      await api.post(`/api/runs/${encodeURIComponent(shown.run.runId)}/resume`);
    } catch (error) {
      onError(["Cannot resume ", { name: shown.flow.name }], error);
    }
  }

  async function cancel(shown) {
    try {
      await api.post(`/api/runs/${encodeURIComponent(shown.run.runId)}/cancel`);
    } catch (error) {
      onError(["Cannot cancel ", { name: shown.flow.name }], error);
    }
  }

  function openHistory(shown) {
    onHistory(shown.flow, { focusBack: () => shown.card.history });
  }

  function openTriggers(shown) {
    let input = {};
    try {
      input = inputOf(shown.card.form, declaredInputs(shown.flow));
    } catch {
      // Continue without input: the schedule form uses it only as an example.
    }
    onTriggers(shown.flow, { focusBack: () => shown.card.triggers, input });
  }

  /** Loads the newest run of a flow again. */
  async function refresh(flowId) {
    const shown = flows.get(flowId);
    if (shown) await restore(shown).catch(() => {}); // The next message or reload corrects it.
  }

  return {
    load,
    poll,
    receive,
    refresh,
    nameOf: (id) => flows.get(id)?.flow.name ?? `flow ${id}`,
    names: () => [...flows.values()].map(({ flow: { id, name } }) => ({ id, name })),
    labelOf: (id, nodeId) => flows.get(id)?.card?.labels.get(nodeId) ?? nodeId,
  };
}

function createCard(shown, { execute, cancel, resume, openHistory, openTriggers }) {
  const { flow } = shown;
  const columns = columnsOf(flow);
  const nodes = new Map(columns.flat().map((node) => [node.id, createNode(node)]));
  const titleId = `flow-${flow.id}`;
  const run = h("button", { class: "primary", "data-testid": "run-button", "aria-describedby": titleId }, "Run");
  const stop = h("button", { type: "button", "data-testid": "cancel-button", "aria-describedby": titleId, hidden: true, onclick: () => cancel(shown) }, "Cancel");
  const resumeButton = h(
    "button",
    { type: "button", "data-testid": "resume-button", "aria-describedby": titleId, hidden: true, onclick: () => resume(shown), title: "Resume from the failed node. Finished nodes are not repeated." },
    "Resume",
  );
  const declared = declaredInputs(flow);
  const fields = (flow.inputs ?? []).map((name) => {
    const { type, default: defaultValue, required } = declared.get(name) ?? {};
    const placeholder = defaultValue === undefined ? TYPE_HINTS[type] : `${typeof defaultValue === "string" ? defaultValue : stringify(defaultValue)}`;
    const isRequired = declared.has(name) && defaultValue === undefined && required !== false;
    return h(
      "label",
      { class: "field" },
      h("span", {}, name),
      h("input", { name, "data-testid": `input-${name}`, autocomplete: "off", placeholder, required: isRequired }),
    );
  });
  const form = h(
    "form",
    {
      class: "card-head",
      onsubmit: (event) => {
        event.preventDefault();
        execute(shown);
      },
    },
    h("h3", { id: titleId }, flow.name),
    ...fields,
    h("div", { class: "buttons" }, stop, resumeButton, run),
  );
  for (const [index, field] of fields.entries()) {
    const before = shown.card?.form.elements.namedItem(flow.inputs[index]);
    if (before) field.lastChild.value = before.value; // The flow was changed elsewhere; keep the input.
  }
  const isWide = columns.length > NARROW_COLUMNS_MAX;
  const strip = h(
    "ol",
    { class: "strip", "aria-label": `Nodes of ${flow.name}`, tabindex: isWide && "0" },
    ...columns.map((column) => h("li", {}, ...column.map((node) => nodes.get(node.id).root))),
  );
  const line = h("p", { class: "run-line" });
  const dialogButton = (name, text, open) =>
    h("button", { type: "button", class: "quiet", "data-testid": `${name}-button`, "aria-haspopup": "dialog", "aria-describedby": titleId, onclick: () => open(shown) }, text);
  const history = dialogButton("history", "Runs", openHistory);
  const triggers = dialogButton("triggers", "Triggers", openTriggers);
  const root = h(
    "article",
    { class: isWide ? "flow wide" : "flow", "data-testid": "flow", "data-flow-id": flow.id, "aria-labelledby": titleId },
    form,
    strip,
    h("div", { class: "card-foot" }, line, h("div", { class: "buttons" }, history, triggers)),
  );
  return { root, form, run, stop, resumeButton, line, history, triggers, nodes, labels: new Map([...nodes].map(([id, { label }]) => [id, label])) };
}

function createNode({ id, type = "agent", data = {} }) {
  const label = String(data.label ?? id);
  const state = h("span", { class: "node-state" });
  const text = h("p", { class: "node-text" }, h("span"));
  const meta = h("p", { class: "node-meta" });
  const root = h(
    "div",
    { class: "node", "data-testid": "node", "data-node-id": id },
    h("div", { class: "node-head" }, h("span", { class: "dot" }), h("strong", { title: label }, label), state),
    text,
    meta,
  );
  const model = type === "agent" ? [data.role, data.model].filter(Boolean).join(" · ") : type;
  const prompt = String(data.prompt ?? data.template ?? data.expression ?? "");
  return { root, label, state, text, meta, model, prompt };
}

function drawRun({ run, card }) {
  const active = isActive(run);
  // Hiding the focused button would move keyboard focus to the top of the page.
  const canResume = run.status === "FAILED" || run.status === "CANCELLED";
  const hides = (!active && card.stop === document.activeElement) || (!canResume && card.resumeButton === document.activeElement);
  if (hides) card.run.focus();
  card.stop.hidden = !active;
  card.resumeButton.hidden = !canResume;
  card.run.ariaDisabled = String(active || Boolean(card.run.ariaBusy));
  for (const [id, node] of card.nodes) drawNode(node, { ...nodeOf(run, id), state: stateOf(run, id) });
  drawLine(card, run);
}

function drawNode({ root, state, text, meta, model, prompt }, node) {
  if (root.dataset.state !== node.state) root.dataset.state = node.state;
  const attempt = node.attempt > 1 && node.state !== "waiting" ? ` · attempt ${node.attempt}` : "";
  setText(state, STATE_WORDS[node.state] + attempt);
  const isPrompt = node.state === "waiting" || node.state === "skipped";
  text.classList.toggle("prompt", isPrompt);
  text.classList.toggle("error", Boolean(node.error));
  text.classList.toggle("tail", node.state === "running" && !node.error);
  const shown = node.error ?? (isPrompt ? prompt : node.text);
  setText(text.firstChild, shown);
  text.tabIndex = ["completed", "failed"].includes(node.state) && shown.length > SCROLLED_CHARS ? 0 : -1;
  const isMapActive = node.items.size > 0 && ["running", "failed"].includes(node.state);
  setText(meta, node.usage ? usageText(node.usage) : isMapActive ? itemsText(itemCounts(node)) : model);
}

/** Shows no total: only the server knows it. */
const itemsText = ({ done, open, failed }) =>
  ["Items", `${count(done)} completed`, open ? `${count(open)} running` : "", failed ? `${count(failed)} failed` : ""].filter(Boolean).join(" · ").replace(" ·", ":");

const usageText = ({ inputTokens, outputTokens, cost, latencyMs, cached }) =>
  [
    `${count(inputTokens ?? 0)} → ${count(outputTokens ?? 0)} tokens`,
    moneyOrUnknown(cost),
    cached ? "cached" : duration(latencyMs ?? 0),
  ].join(" · ");

function drawLine({ line, nodes }, run) {
  const totals = run.totals;
  const after = totals?.ms === undefined ? "" : ` after ${duration(totals.ms)}`;
  const done = [...nodes.keys()].filter((id) => ["completed", "skipped"].includes(stateOf(run, id))).length;
  const texts = {
    QUEUED: () => "Queued",
    RUNNING: () => `Running · ${done} of ${plural(nodes.size, "node")} completed`,
    COMPLETED: () => `Completed${after}` + (totals ? ` · ${count(totals.inputTokens)} → ${count(totals.outputTokens)} tokens · ${moneyOrUnknown(totals.cost)}` : ""),
    FAILED: () => `Failed${after}: ${run.error ?? "unknown reason"}`,
    CANCELLED: () => `Cancelled${after}`,
  };
  line.dataset.status = run.status ?? "";
  setText(line, texts[run.status]?.() ?? "No runs yet");
}

const graphOf = ({ data }) => (typeof data === "string" ? parse(data) : (data ?? {}));

/** Returns true if a map of the flow is running its items. */
function hasActiveMap(flow, { runId, nodes = [] }) {
  const maps = new Set((graphOf(flow).nodes ?? []).filter(({ type }) => type === "map").map(({ id }) => String(id)));
  return Boolean(runId) && nodes.some(({ nodeId, status }) => status === "RUNNING" && maps.has(nodeId));
}

/** Returns the flow's input declarations, by name. */
function declaredInputs(flow) {
  const inputs = (graphOf(flow).nodes ?? []).filter(({ type }) => type === "input").flatMap(({ data }) => data?.inputs ?? []);
  return new Map(inputs.map((input) => [input.name, input]));
}

const TYPE_HINTS = { number: "a number", boolean: "true or false", list: "a JSON array", object: "a JSON object", any: "a JSON value" };

/** Returns the typed inputs, parsed by their declared types; empty declared inputs are left out. */
function inputOf(form, declared) {
  const input = {};
  for (const [name, text] of new FormData(form)) {
    const { type = "text" } = declared.get(name) ?? {};
    if (declared.has(name) && text === "") continue;
    try {
      input[name] = type === "text" ? text : parse(text);
    } catch {
      throw new Error(`${name} must be ${TYPE_HINTS[type]}`);
    }
  }
  return input;
}

/** Returns the nodes in topological order, left to right: column n holds nodes whose longest path has n edges. */
function columnsOf(flow) {
  const { nodes = [], edges = [] } = graphOf(flow);
  const depth = new Map(nodes.map(({ id }) => [id, 0]));
  const known = edges.filter(({ source, target }) => depth.has(source) && depth.has(target));
  const waitsFor = new Map(nodes.map(({ id }) => [id, 0]));
  const targets = new Map(nodes.map(({ id }) => [id, []]));
  for (const { source, target } of known) {
    targets.get(source).push(target);
    waitsFor.set(target, waitsFor.get(target) + 1);
  }
  const ready = nodes.map(({ id }) => id).filter((id) => waitsFor.get(id) === 0);
  for (const id of ready) {
    for (const target of targets.get(id)) {
      depth.set(target, Math.max(depth.get(target), depth.get(id) + 1));
      waitsFor.set(target, waitsFor.get(target) - 1);
      if (waitsFor.get(target) === 0) ready.push(target);
    }
  }
  const columns = [];
  for (const node of nodes) (columns[depth.get(node.id)] ??= []).push(node);
  return columns.filter(Boolean);
}
