/** Actions on runs, for one run and for several. */

import * as api from "./api.js";
import { describe, plural } from "./format.js";
import { confirmAction, showError, toast } from "./ui.js";
import { navigate } from "./state.js";

/** How many requests of a bulk action are under way at once. */
const BULK_PARALLEL = 4;
/** How many reasons a result of a bulk action lists. */
const REASONS_MAX = 3;

const pathOf = (runId, action = "") => `/api/runs/${encodeURIComponent(runId)}${action}`;

const send = {
  cancel: (run) => api.post(pathOf(run.runId, "/cancel")),
  retry: (run) => api.post(pathOf(run.runId, "/resume")),
  delete: (run) => api.remove(pathOf(run.runId)),
};

/** Does an action with a run; shows an error. Returns true on success. */
async function act(run, action, title) {
  try {
    await send[action](run);
    return true;
  } catch (error) {
    showError(title, error);
    return false;
  }
}

export const cancelRun = (run) => act(run, "cancel", "Cannot cancel the run");

/** Continues a failed or cancelled run; finished nodes keep their outputs. */
export const retryRun = (run) => act(run, "retry", "Cannot retry the run");

/** Starts a new run of the flow with the same input, and shows it. */
export async function runAgain({ flowId, input }) {
  try {
    const { runId } = await api.post(`/api/flows/${flowId}/execute`, { input: input ?? {} });
    navigate(`/runs/${runId}`);
  } catch (error) {
    showError("Cannot start the run", error);
  }
}

/** Deletes a run after a question. Returns true if it was deleted. */
export async function deleteRun(run) {
  const calls = run.calls?.length;
  const rows = calls === 0 ? "It has no ledger rows." : calls === undefined ? "Its ledger rows stay." : `Its ${plural(calls, "ledger row")} stay${calls === 1 ? "s" : ""}.`;
  const isConfirmed = await confirmAction({ title: "Delete this run?", text: `This permanently deletes its prompts and outputs. ${rows}`, action: "Delete run" });
  if (!isConfirmed || !(await act(run, "delete", "Cannot delete the run"))) return false;
  toast("done", "Run deleted", "Its ledger rows stay.");
  return true;
}

/** Saves a run with its nodes and calls as a JSON file. */
export async function downloadRun({ runId }) {
  try {
    const [{ saveFile }, content] = await Promise.all([import("./copy.js"), api.getBlob(pathOf(runId))]);
    saveFile(`run-${runId}.json`, content);
  } catch (error) {
    showError("Cannot download the run", error);
  }
}

const BULK = {
  cancel: { title: "Cancel", done: "cancelled", text: "Calls that are under way stop; they may still be billed. Cancelled runs can be retried.", fits: ({ status }) => status === "QUEUED" || status === "RUNNING" },
  retry: { title: "Retry", done: "retried", text: "Each run continues from its failed node. Finished nodes keep their outputs.", fits: ({ status }) => status === "FAILED" || status === "CANCELLED" },
  delete: { title: "Delete", done: "deleted", text: "This permanently deletes prompts and outputs. Ledger rows stay.", fits: ({ status }) => status !== "QUEUED" && status !== "RUNNING" },
};

/** Returns the runs that an action can be applied to. */
export const fitting = (action, runs) => runs.filter(BULK[action].fits);

/**
 * Applies an action to several runs after a question, and shows how many failed and why. Returns the ids of the runs
 * that it was applied to, or null if it was not confirmed.
 */
export async function actOnRuns(action, runs) {
  const { title, done, text } = BULK[action];
  const targets = fitting(action, runs);
  const left = runs.length - targets.length;
  const isConfirmed = await confirmAction({
    title: `${title} ${plural(targets.length, "run")}?`,
    text: [text, left && `${plural(left, "selected run")} ${left === 1 ? "is" : "are"} not in a fitting state and left out.`].filter(Boolean).join(" "),
    action: `${title} ${plural(targets.length, "run")}`,
    kind: action === "retry" ? "primary" : "danger",
  });
  if (!isConfirmed) return null;
  const { succeeded, failed } = await sendAll(targets, send[action]);
  if (failed.length === 0) toast("done", `${plural(succeeded.length, "run")} ${done}`);
  else toast("error", `${failed.length} of ${plural(targets.length, "run")} not ${done}`, reasons(failed));
  return succeeded;
}

async function sendAll(runs, request) {
  const [succeeded, failed] = [[], []];
  const queue = [...runs];
  const work = async () => {
    for (let run = queue.shift(); run; run = queue.shift()) {
      await request(run).then(
        () => succeeded.push(run.runId),
        (error) => failed.push(error),
      );
    }
  };
  await Promise.all(Array.from({ length: BULK_PARALLEL }, work));
  return { succeeded, failed };
}

/** Returns the reasons with their numbers, most frequent first. Run ids are left out, so that same reasons add up. */
function reasons(errors) {
  const counts = new Map();
  for (const error of errors) {
    const text = describe(error).replace(/\b[0-9a-f]{8}-[0-9a-f-]{27}\b ?/g, "");
    counts.set(text, (counts.get(text) ?? 0) + 1);
  }
  const sorted = [...counts].sort(([, a], [, b]) => b - a);
  const shown = sorted.slice(0, REASONS_MAX).map(([text, number]) => (number > 1 ? `${number} × ${text}` : text));
  return [...shown, sorted.length > REASONS_MAX && "and other reasons"].filter(Boolean).join("; ");
}
