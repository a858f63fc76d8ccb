/** The dialog with the runs of a flow: each node's prompt and output, and every attempt. */

import * as api from "./api.js";
import { drawAttempts, durationMs, fact, isCounted, STATE_WORDS, tokens } from "./attempts.js";
import { confirmAction, createNote, createSheet, newId, onceAtATime } from "./dialogs.js";
import { h, perFrame, setText } from "./dom.js";
import { duration, moment, moneyOrUnknown, plural } from "./format.js";
import { stringify } from "./json.js";
import { createMapItems } from "./map-items.js";
import { isActive } from "./runs.js";
import { longText, shortText } from "./texts.js";

const PAGE_RUNS = 50;
/** Limits how often an active run is fetched. */
const REFRESH_PAUSE_MS = 1_000;
const TRIGGERS = { __proto__: null, api: "API or page", cli: "command line", hook: "webhook", schedule: "schedule" };

/** `onDeleted(flowId)` is called when a run no longer exists. */
export function createHistory({ onDeleted }) {
  /** The content: { flow, runs, next, runId, run }; `runs` by id, `run` with its nodes after it was fetched. */
  let shown = null;
  /** Folds that the user changed, kept while the dialog is open. */
  const folds = new Map();
  /** By node id: the element, the data that it shows, and the drawing of a map's items. */
  const nodes = new Map();
  let isFetching = false;

  const sheet = createSheet({ testid: "history", onClose: () => ((shown = null), clear()) });
  const select = h("select", { id: newId("run"), "data-testid": "history-run", onchange: () => choose(select.value) });
  const older = h("button", { type: "button", hidden: true, onclick: () => loadOlderOnce() }, "Load older runs");
  const picker = h("div", { class: "picker", hidden: true }, h("label", { for: select.id }, "Run"), select, older);
  const note = createNote();
  const removeNote = createNote();
  const facts = h("dl", { class: "facts" });
  const error = h("p", { class: "error-text", "data-testid": "history-error", hidden: true });
  const texts = h("div", { class: "texts" });
  const list = h("ol", { class: "run-nodes", "aria-label": "Nodes" });
  const remove = h("button", { type: "button", class: "danger", "data-testid": "history-delete", onclick: () => deleteOnce() }, "Delete run…");
  const details = h("div", { class: "sheet-parts", hidden: true }, facts, error, texts, list, h("div", {}, removeNote.root, h("div", { class: "buttons" }, remove)));
  sheet.body.append(picker, note.root, details);
  const loadOlderOnce = onceAtATime(older, loadOlder);
  const deleteOnce = onceAtATime(remove, deleteRun);

  const refreshSoon = perFrame(() => refresh(), REFRESH_PAUSE_MS);

  /** Selects `runId`, or the newest run. */
  async function open(flow, { focusBack, runId = null }) {
    shown = { flow, runs: new Map(), next: null, runId, run: null };
    clear();
    sheet.open(`Runs of ${flow.name}`, focusBack);
    const opened = shown;
    note.say("Loading…");
    try {
      await fetchRuns(opened);
    } catch (failure) {
      if (shown === opened) note.fail("Cannot load the runs", failure);
      return;
    }
    if (shown !== opened) return;
    const newest = opened.runs.keys().next().value;
    if (runId ?? newest) return choose(runId ?? newest);
    note.say("No runs yet.");
    draw();
  }

  async function choose(runId) {
    const opened = shown;
    opened.runId = runId;
    const isCurrent = () => shown === opened && opened.runId === runId;
    try {
      await fetchRun(opened);
      if (isCurrent()) note.say("");
    } catch (failure) {
      if (isCurrent()) note.fail("Cannot load this run", failure);
    }
    if (!isCurrent()) return;
    clear();
    draw();
  }

  /** Fetches one page of runs: the newest, unless `before` is set. */
  async function fetchRuns(opened, before = null) {
    const cursor = before === null ? "" : `&before=${encodeURIComponent(before)}`;
    const page = await api.get(`/api/runs?flow_id=${opened.flow.id}&limit=${PAGE_RUNS}${cursor}`);
    if (before !== null || opened.runs.size === 0) opened.next = page.next ?? null;
    for (const run of page.items) opened.runs.set(run.runId, run);
    // Run ids are version 7 UUIDs, so they sort by time.
    opened.runs = new Map([...opened.runs].sort(([a], [b]) => (a < b ? 1 : -1)));
  }

  async function fetchRun(opened) {
    const { runId } = opened;
    const run = await api.get(`/api/runs/${encodeURIComponent(runId)}`);
    if (opened.runId !== runId) return;
    opened.run = run;
    opened.runs.set(runId, run);
  }

  async function loadOlder() {
    const opened = shown;
    try {
      await fetchRuns(opened, opened.next);
      if (shown !== opened) return;
      note.say(`${plural(opened.runs.size, "run")} loaded.`);
      draw();
    } catch (failure) {
      note.fail("Cannot load older runs", failure);
    }
  }

  /** Fetches the list and the selected run again. If the server does not answer, the content stays. */
  async function refresh() {
    const opened = shown;
    if (!opened) return;
    if (isFetching) return refreshSoon();
    isFetching = true;
    try {
      await fetchRuns(opened);
      opened.runId ??= opened.runs.keys().next().value ?? null;
      if (opened.runId && (!opened.run || isActive(opened.run))) await fetchRun(opened);
      if (shown !== opened) return;
      if (opened.run && opened.run.runId === opened.runId && details.hidden) note.say("");
      draw();
    } catch {
      // The connection line shows the error, and the next message fetches again.
    } finally {
      isFetching = false;
    }
  }

  /** Receives every message about a run. */
  function receive({ type, payload }) {
    if (payload.flowId !== shown?.flow.id || type === "NODE_OUTPUT" || type === "FLOW_STATUS") return;
    if (type === "LEDGER_UPDATE" && payload.runId !== shown.runId) return;
    // A resumed run is active again.
    if (type === "FLOW_STARTED" && shown.run?.runId === payload.runId) shown.run.status = "RUNNING";
    refreshSoon();
  }

  async function poll() {
    await refresh();
  }

  async function deleteRun() {
    const opened = shown;
    const { runId, calls } = opened.run;
    const isConfirmed = await confirmAction({
      title: "Delete this run?",
      text: `This permanently deletes its prompts and outputs. ${calls.length ? `Its ${plural(calls.length, "ledger row")} stay${calls.length === 1 ? "s" : ""}.` : "It has no ledger rows."}`,
      action: "Delete run",
    });
    if (!isConfirmed || shown !== opened) return;
    try {
      await api.remove(`/api/runs/${encodeURIComponent(runId)}`);
    } catch (failure) {
      if (shown === opened) removeNote.fail("Cannot delete the run", failure);
      return;
    }
    onDeleted(opened.flow.id);
    if (shown !== opened) return;
    const ids = [...opened.runs.keys()];
    opened.runs.delete(runId);
    Object.assign(opened, { runId: null, run: null });
    clear();
    draw();
    const next = ids[ids.indexOf(runId) + 1] ?? ids[ids.indexOf(runId) - 1];
    if (next) await choose(next);
    if (shown !== opened) return;
    note.say(`Run deleted. Its ledger rows stay.${next ? "" : " No runs left."}`);
    (next ? select : sheet.close).focus();
  }

  function clear() {
    nodes.clear();
    list.replaceChildren();
    texts.replaceChildren();
    removeNote.say("");
    details.hidden = true;
  }

  function draw() {
    const { runs, next, runId, run } = shown;
    drawPicker(runs, runId);
    older.hidden = next === null;
    details.hidden = !run || run.runId !== runId;
    if (details.hidden) return;
    remove.hidden = isActive(run);
    facts.replaceChildren(...runFacts(run));
    error.hidden = !run.error;
    setText(error, run.error ?? "");
    drawTexts(run);
    const calls = callsByNode(run);
    for (const node of run.nodes) drawNode(run, node, calls.get(node.nodeId) ?? []);
  }

  /** Changes only the differences, so that an open list stays open. */
  function drawPicker(runs, runId) {
    picker.hidden = runs.size === 0;
    const ids = [...runs.keys()];
    if (JSON.stringify(ids) !== JSON.stringify([...select.options].map(({ value }) => value))) {
      select.replaceChildren(...ids.map((id) => h("option", { value: id })));
    }
    [...runs.values()].forEach((run, index) => setText(select.options[index], runTitle(run)));
    if (runId && select.value !== runId) select.value = runId;
  }

  function drawTexts(run) {
    const source = JSON.stringify([run.runId, run.input, run.output]);
    if (texts.dataset.source === source && texts.children.length) return;
    texts.dataset.source = source;
    const text = (value) => (typeof value === "string" ? value : stringify(value, 2));
    const parts = [
      ["Input", run.input, "history-input"],
      ["Output", run.output ?? null, "history-output"],
    ];
    texts.replaceChildren(
      ...parts.filter(([, value]) => value !== null).map(([name, value, testid]) => longText(name, text(value), { folds, key: `${run.runId}/${name}`, testid })),
    );
  }

  /**
   * Redraws a node only if its data has changed. Items of a map are drawn separately, so that an active item does not
   * disturb a reader of the others.
   */
  function drawNode(run, node, calls) {
    const isSkipped = node.status === "WAITING" && run.status === "COMPLETED";
    const status = isSkipped ? "SKIPPED" : node.status;
    const before = nodes.get(node.nodeId);
    const key = `${run.runId}/${node.nodeId}`;
    const items = before?.items ?? (node.items ? createMapItems({ folds, key: `${key}/items` }) : null);
    items?.update(node.items ?? [], calls);
    const source = JSON.stringify([status, items ? { ...node, items: null } : [node, calls]]);
    if (before?.source === source) return;
    const focused = before?.root.contains(document.activeElement) ? document.activeElement : null;
    const root = createNode({ ...node, status }, calls, { folds, key, items });
    if (before) before.root.replaceWith(root);
    else list.append(root);
    if (focused) (items?.root.contains(focused) ? focused : root.querySelector("summary")).focus();
    nodes.set(node.nodeId, { root, source, items });
  }

  return { open, poll, receive };
}

function callsByNode({ calls }) {
  const byNode = new Map();
  for (const call of calls) {
    if (!byNode.has(call.node_id)) byNode.set(call.node_id, []);
    byNode.get(call.node_id).push(call);
  }
  return byNode;
}

const runTitle = ({ status, createdAt, executionTimeMs, trigger }) =>
  [moment(createdAt), status.toLowerCase(), executionTimeMs === null ? "" : duration(executionTimeMs), trigger === "api" ? "" : (TRIGGERS[trigger] ?? trigger)].filter(Boolean).join(" · ");

function runFacts(run) {
  const state = h("span", { class: "run-status", "data-status": run.status, "data-testid": "history-status" }, run.status.toLowerCase());
  return [
    fact("Status", state),
    fact("Trigger", TRIGGERS[run.trigger] ?? run.trigger),
    fact("Started", moment(run.startedAt ?? run.createdAt)),
    fact("Duration", run.executionTimeMs === null ? null : duration(run.executionTimeMs)),
    // The server writes the sums when the run ends.
    fact("Tokens in → out", isActive(run) ? null : tokens(run.inputTokens, run.outputTokens)),
    fact("Cost", isActive(run) ? null : moneyOrUnknown(run.cost)),
    h("div", { class: "whole" }, h("dt", {}, "Run ID"), h("dd", {}, shortText("run ID", run.runId, "history-id"))),
  ].flat();
}

/** A node that can be unfolded; its content is created on the first unfolding. */
function createNode(node, calls, { folds, key, items }) {
  const state = node.status.toLowerCase();
  const attempts = !items && calls.length > 1 ? ` · ${plural(calls.length, "attempt")}` : "";
  const elapsed = durationMs(node);
  const usage = elapsed === null ? [] : [isCosted(node, calls) ? moneyOrUnknown(node.cost) : null, duration(elapsed)];
  const summary = h(
    "summary",
    {},
    h("span", { class: "dot" }),
    h("strong", {}, node.label),
    h("span", { class: "node-state" }, (STATE_WORDS[node.status] ?? state) + attempts),
    h("span", { class: "node-meta" }, usage.filter(Boolean).join(" · ")),
  );
  const details = h("details", { open: folds.get(key) ?? node.status === "FAILED" }, summary);
  const fill = () => details.open && details.children.length === 1 && details.append(drawNodeBody(node, calls, { folds, key, items }));
  summary.addEventListener("click", () => folds.set(key, !details.open));
  details.addEventListener("toggle", fill);
  fill();
  return h("li", { class: "run-node", "data-testid": "history-node", "data-node-id": node.nodeId, "data-state": state }, details);
}

/** The server writes the sums of a map when it ends. */
const isCosted = ({ status, items }, calls) => calls.length > 0 && !(items && status === "RUNNING");

function drawNodeBody(node, calls, { folds, key, items }) {
  const text = (name, value, part) => (value === null || value === undefined ? null : longText(name, value, { folds, key: `${key}/${part}`, testid: `history-${part}` }));
  const idle = { WAITING: "Not started.", SKIPPED: "This node is on a branch that was not taken." }[node.status];
  const elapsed = durationMs(node);
  // If there was an attempt, it already shows the last error.
  return h(
    "div",
    { class: "run-node-body" },
    idle && !node.startedAt ? h("p", { class: "muted" }, idle) : null,
    node.startedAt
      ? h(
          "dl",
          { class: "facts" },
          ...fact("Node ID", node.nodeId === node.label ? null : node.nodeId),
          ...fact("Started", moment(node.startedAt)),
          ...fact("Duration", elapsed === null ? null : duration(elapsed)),
          ...fact("Tokens in → out", isCosted(node, calls) && calls.some(isCounted) ? tokens(node.inputTokens, node.outputTokens) : null),
          ...fact("Cost", isCosted(node, calls) ? moneyOrUnknown(node.cost) : null),
        )
      : null,
    node.error && node.error !== calls.at(-1)?.error_message ? h("p", { class: "error-text" }, node.error) : null,
    text("System prompt", node.system, "system"),
    text("Prompt", node.prompt, "prompt"),
    text("Output", node.output, "node-output"),
    ...(items ? [items.root] : drawAttempts(calls)),
  );
}
