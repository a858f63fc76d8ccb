/** The dialog with the runs of a flow: each node's prompt and answer, and every attempt. */

import * as api from "./api.js";
import { drawAttempts, fact, isCounted, STATE_WORDS, tokens, tookMs } from "./attempts.js";
import { ask, createNote, createSheet, newId, onceAtATime } from "./dialogs.js";
import { h, perFrame, setText } from "./dom.js";
import { duration, moment, moneyOrUnknown, plural } from "./format.js";
import { createItems } from "./items.js";
import { isActive } from "./runs.js";
import { longText, shortText } from "./texts.js";

const PAGE_RUNS = 50;
/** Limits how often an active run is fetched. */
const REFRESH_PAUSE_MS = 1_000;
const TRIGGERS = { __proto__: null, api: "the API or this page", cli: "the command line", hook: "the webhook", schedule: "the schedule" };

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
  const older = h("button", { type: "button", hidden: true, onclick: () => loadOlderOnce() }, "Older runs");
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
    const asked = shown;
    note.say("Loading…");
    try {
      await fetchRuns(asked);
    } catch (failure) {
      if (shown === asked) note.fail("The runs are not there", failure);
      return;
    }
    if (shown !== asked) return;
    const newest = asked.runs.keys().next().value;
    if (runId ?? newest) return choose(runId ?? newest);
    note.say("It was not run yet.");
    draw();
  }

  async function choose(runId) {
    const asked = shown;
    asked.runId = runId;
    const isStillWanted = () => shown === asked && asked.runId === runId;
    try {
      await fetchRun(asked);
      if (isStillWanted()) note.say("");
    } catch (failure) {
      if (isStillWanted()) note.fail("This run is not there", failure);
    }
    if (!isStillWanted()) return;
    clear();
    draw();
  }

  /** Fetches one page of runs: the newest, unless `before` is set. */
  async function fetchRuns(asked, before = null) {
    const cursor = before === null ? "" : `&before=${encodeURIComponent(before)}`;
    const page = await api.get(`/api/runs?flow_id=${asked.flow.id}&limit=${PAGE_RUNS}${cursor}`);
    if (before !== null || asked.runs.size === 0) asked.next = page.next ?? null;
    for (const run of page.items) asked.runs.set(run.runId, run);
    // Run ids are version 7 UUIDs, so they sort by time.
    asked.runs = new Map([...asked.runs].sort(([a], [b]) => (a < b ? 1 : -1)));
  }

  async function fetchRun(asked) {
    const { runId } = asked;
    const run = await api.get(`/api/runs/${encodeURIComponent(runId)}`);
    if (asked.runId !== runId) return;
    asked.run = run;
    asked.runs.set(runId, run);
  }

  async function loadOlder() {
    const asked = shown;
    try {
      await fetchRuns(asked, asked.next);
      if (shown !== asked) return;
      note.say(`${plural(asked.runs.size, "run")} to choose from.`);
      draw();
    } catch (failure) {
      note.fail("No older runs", failure);
    }
  }

  /** Fetches the list and the selected run again. If the server does not answer, the content stays. */
  async function refresh() {
    const asked = shown;
    if (!asked) return;
    if (isFetching) return refreshSoon();
    isFetching = true;
    try {
      await fetchRuns(asked);
      asked.runId ??= asked.runs.keys().next().value ?? null;
      if (asked.runId && (!asked.run || isActive(asked.run))) await fetchRun(asked);
      if (shown !== asked) return;
      if (asked.run && asked.run.runId === asked.runId && details.hidden) note.say("");
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
    const asked = shown;
    const { runId, calls } = asked.run;
    const isSure = await ask({
      title: "Delete this run?",
      text: `What its nodes were asked and what they answered is removed for good. ${calls.length ? `Its ${plural(calls.length, "row")} in the ledger stay${calls.length === 1 ? "s" : ""}.` : "It has no rows in the ledger."}`,
      action: "Delete run",
    });
    if (!isSure || shown !== asked) return;
    try {
      await api.remove(`/api/runs/${encodeURIComponent(runId)}`);
    } catch (failure) {
      if (shown === asked) removeNote.fail("The run was not deleted", failure);
      return;
    }
    onDeleted(asked.flow.id);
    if (shown !== asked) return;
    const ids = [...asked.runs.keys()];
    asked.runs.delete(runId);
    Object.assign(asked, { runId: null, run: null });
    clear();
    draw();
    const next = ids[ids.indexOf(runId) + 1] ?? ids[ids.indexOf(runId) - 1];
    if (next) await choose(next);
    if (shown !== asked) return;
    note.say(`The run was deleted; its rows in the ledger stay.${next ? "" : " There is no other run."}`);
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
    const told = JSON.stringify([run.runId, run.input, run.output]);
    if (texts.dataset.told === told && texts.children.length) return;
    texts.dataset.told = told;
    const text = (value) => (typeof value === "string" ? value : JSON.stringify(value, null, 2));
    const given = [
      ["Input", run.input, "history-input"],
      ["Output", run.output ?? null, "history-output"],
    ];
    texts.replaceChildren(
      ...given.filter(([, value]) => value !== null).map(([name, value, testid]) => longText(name, text(value), { folds, key: `${run.runId}/${name}`, testid })),
    );
  }

  /**
   * Redraws a node only if its data has changed. Items of a map are drawn separately, so that an active item does not
   * disturb a reader of the others.
   */
  function drawNode(run, node, calls) {
    const isLeftOut = node.status === "WAITING" && run.status === "COMPLETED";
    const status = isLeftOut ? "SKIPPED" : node.status;
    const before = nodes.get(node.nodeId);
    const key = `${run.runId}/${node.nodeId}`;
    const items = before?.items ?? (node.items ? createItems({ folds, key: `${key}/items` }) : null);
    items?.update(node.items ?? [], calls);
    const told = JSON.stringify([status, items ? { ...node, items: null } : [node, calls]]);
    if (before?.told === told) return;
    const focused = before?.root.contains(document.activeElement) ? document.activeElement : null;
    const root = createNode({ ...node, status }, calls, { folds, key, items });
    if (before) before.root.replaceWith(root);
    else list.append(root);
    if (focused) (items?.root.contains(focused) ? focused : root.querySelector("summary")).focus();
    nodes.set(node.nodeId, { root, told, items });
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
  [moment(createdAt), status.toLowerCase(), executionTimeMs === null ? "" : duration(executionTimeMs), trigger === "api" ? "" : trigger].filter(Boolean).join(" · ");

function runFacts(run) {
  const state = h("span", { class: "run-status", "data-status": run.status, "data-testid": "history-status" }, run.status.toLowerCase());
  return [
    fact("Status", state),
    fact("Started by", TRIGGERS[run.trigger] ?? run.trigger),
    fact("Started", moment(run.startedAt ?? run.createdAt)),
    fact("Took", run.executionTimeMs === null ? null : duration(run.executionTimeMs)),
    // The server writes the sums when the run ends.
    fact("Tokens in → out", isActive(run) ? null : tokens(run.inputTokens, run.outputTokens)),
    fact("Cost", isActive(run) ? null : moneyOrUnknown(run.cost)),
    h("div", { class: "whole" }, h("dt", {}, "Run"), h("dd", {}, shortText("the id of the run", run.runId, "history-id"))),
  ].flat();
}

/** A node that can be unfolded; its content is created on the first unfolding. */
function createNode(node, calls, { folds, key, items }) {
  const state = node.status.toLowerCase();
  const attempts = !items && calls.length > 1 ? ` · ${plural(calls.length, "attempt")}` : "";
  const took = tookMs(node);
  const usage = took === null ? [] : [isCosted(node, calls) ? moneyOrUnknown(node.cost) : null, duration(took)];
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
  const text = (name, value, what) => (value === null || value === undefined ? null : longText(name, value, { folds, key: `${key}/${what}`, testid: `history-${what}` }));
  const idle = { WAITING: "It has not begun.", SKIPPED: "No branch that was taken leads to it." }[node.status];
  const took = tookMs(node);
  // If there was an attempt, it already shows the last error.
  return h(
    "div",
    { class: "run-node-body" },
    idle && !node.startedAt ? h("p", { class: "muted" }, idle) : null,
    node.startedAt
      ? h(
          "dl",
          { class: "facts" },
          ...fact("Node", node.nodeId === node.label ? null : node.nodeId),
          ...fact("Started", moment(node.startedAt)),
          ...fact("Took", took === null ? null : duration(took)),
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
