/** Actions on flows that the list and the view of a flow share. */

import * as api from "./api.js";
import { documentOf, fileName } from "./flow-document.js";
import { plural } from "./format.js";
import { navigate, rememberFlows } from "./state.js";
import { confirmAction, showError, toast } from "./ui.js";

/** A cancelled run needs a moment to end. */
const CANCEL_WAIT_MS = 10_000;
const CANCEL_LOOK_MS = 250;

export const flowPath = (id) => `/api/flows/${encodeURIComponent(id)}`;

/** Starts a run and shows it. */
export async function startRun(id, input = {}) {
  const { runId } = await api.post(`${flowPath(id)}/execute`, { input });
  navigate(`/runs/${runId}`);
}

/** Starts a flow without inputs. */
export async function startAtOnce({ id, name }) {
  try {
    await startRun(id);
  } catch (error) {
    showError(["Cannot start ", { name }], error);
  }
}

/** Creates a flow and shows it. Throws the server's faults. */
export async function createFlow(document) {
  const flow = await api.post("/api/flows", document);
  rememberFlows([{ id: flow.id, name: flow.name ?? document.name }]);
  return flow;
}

export async function duplicateFlow({ id, name }) {
  try {
    const document = documentOf(await api.get(flowPath(id)));
    const copy = await createFlow({ ...document, name: `${document.name} (copy)` });
    toast("done", ["Created ", { name: `${document.name} (copy)` }]);
    navigate(`/flows/${copy.id}`);
  } catch (error) {
    showError(["Cannot duplicate ", { name }], error);
  }
}

/** Saves the document of a flow as a file. */
export async function exportFlow({ id, name }) {
  try {
    const [{ saveFile }, flow] = await Promise.all([import("./copy.js"), api.get(flowPath(id))]);
    saveFile(fileName(flow.name), `${api.stringify(documentOf(flow), 2)}\n`);
  } catch (error) {
    showError(["Cannot export ", { name }], error);
  }
}

/** Deletes a flow after a question. Returns true if it was deleted. */
export async function deleteFlow({ id, name }) {
  const isConfirmed = await confirmAction({
    title: "Delete this flow?",
    text: `“${name}”, its webhook and its schedule are deleted. Its runs and ledger rows stay.`,
    action: "Delete flow",
  });
  if (!isConfirmed) return false;
  try {
    await api.remove(flowPath(id));
  } catch (error) {
    if (error.status !== 409) return void showError(["Cannot delete ", { name }], error);
    if (!(await cancelThenDelete({ id, name }))) return false;
  }
  toast("done", ["Deleted ", { name }]);
  return true;
}

async function openRuns(id) {
  const { items, next } = await api.get(`/api/runs?flow_id=${encodeURIComponent(id)}&status=QUEUED,RUNNING&limit=1000`);
  return { runs: items, hasMore: Boolean(next) };
}

async function cancelThenDelete({ id, name }) {
  try {
    const { runs, hasMore } = await openRuns(id);
    const isConfirmed = await confirmAction({
      title: "Cancel its open runs?",
      text: `“${name}” has ${hasMore ? "more than " : ""}${plural(runs.length, "open run")}. A flow can be deleted after its runs have ended. Calls that are under way may still be billed.`,
      action: "Cancel runs and delete",
    });
    if (!isConfirmed) return false;
    await Promise.all(runs.map(({ runId }) => api.post(`/api/runs/${encodeURIComponent(runId)}/cancel`).catch(() => null)));
    await deleteWhenEnded(id);
    return true;
  } catch (error) {
    showError(["Cannot delete ", { name }], error);
    return false;
  }
}

async function deleteWhenEnded(id) {
  const until = performance.now() + CANCEL_WAIT_MS;
  for (;;) {
    try {
      return await api.remove(flowPath(id));
    } catch (error) {
      if (error.status !== 409 || performance.now() > until) throw error;
      await new Promise((resolve) => setTimeout(resolve, CANCEL_LOOK_MS));
    }
  }
}
