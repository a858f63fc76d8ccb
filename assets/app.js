/** The page: connects the live connection to the parts that draw. Start reading here. */

import * as api from "./api.js";
import { createBudgets } from "./budgets.js";
import { createConnection } from "./connection.js";
import { byId } from "./dom.js";
import { createFlows } from "./flows.js";
import { describe, duration, moneyOrUnknown } from "./format.js";
import { createHistory } from "./history.js";
import { createKeys } from "./keys.js";
import { createLedger } from "./ledger.js";
import { connect } from "./live.js";
import { createSavings } from "./savings.js";
import { expectedSaving } from "./saving-format.js";
import { createSpending } from "./spending.js";
import { createToasts } from "./toasts.js";
import { createTotals } from "./totals.js";
import { askForToken } from "./token.js";
import { createTriggers } from "./triggers.js";

/** If there is no connection after this time, the page loads without one. */
const LOAD_ANYWAY_MS = 1_000;
/** An event replayed after a reconnect shows a toast only if it is younger than this. */
const TOAST_AGE_MAX_MS = 30_000;

const toasts = createToasts({ list: byId("toasts"), overflow: byId("toasts-overflow") });
const showError = (title, error) => toasts.show("error", title, describe(error));
const totals = createTotals();
const triggers = createTriggers();
const history = createHistory({ onDeleted: (flowId) => flows.refresh(flowId) });
const budgets = createBudgets({ flowNames: () => flows.names() });
const keys = createKeys({ flowNames: () => flows.names() });
const savings = createSavings({ badge: byId("savings-badge"), labelOf: (flowId, nodeId) => flows.labelOf(flowId, nodeId) });
const flows = createFlows({
  list: byId("flows"),
  empty: byId("flows-empty"),
  onError: showError,
  onNames: () => ledger.redraw(),
  onHistory: history.open,
  onTriggers: triggers.open,
});
const ledger = createLedger({
  table: byId("ledger"),
  empty: byId("ledger-empty"),
  more: byId("ledger-more"),
  note: byId("ledger-full"),
  filter: byId("ledger-filters"),
  csv: byId("csv"),
  names: { flow: flows.nameOf, node: flows.labelOf },
  onRun: (id, runId) => history.open({ id, name: flows.nameOf(id) }, { runId }),
});

const spending = createSpending({ flowName: flows.nameOf });

let isLoaded = false;
/** Messages up to this `seq` are replays. */
let newestAtHello = 0;

api.onTokenNeeded(async (wasRejected) => {
  const token = await askForToken(wasRejected);
  setTimeout(() => live.retry()); // The connection needs the new token too.
  return token;
});

const live = connect({
  token: api.currentToken,
  onMessage: receive,
  onState: (status) => connection.show(status),
  onFresh: load,
});
const connection = createConnection({ root: byId("connection"), retry: () => live.retry(), poll });
setTimeout(() => isLoaded || load(), LOAD_ANYWAY_MS);

/** Fetches everything that the page shows. */
async function loadAll() {
  isLoaded = true;
  try {
    await flows.load(); // First, because the rows show the names of flows.
    spending.refresh();
    await Promise.all([ledger.load(), totals.load(), history.poll(), budgets.poll(), keys.poll(), savings.load()]);
  } catch (error) {
    isLoaded = false;
    throw error;
  }
}

/** Shows errors, except an unreachable server: the connection line already says so. */
function load() {
  return loadAll().catch((error) => error.code === "unreachable" || showError("Cannot load the page data", error));
}

/** Replaces messages while there is no connection; throws if the server cannot be reached. */
async function poll() {
  if (!isLoaded) return loadAll();
  spending.refresh();
  await Promise.all([flows.poll(), ledger.poll(), totals.load(), history.poll(), budgets.poll(), keys.poll(), savings.load()]);
}

function receive(message) {
  const { type, payload } = message;
  if (type === "HELLO") {
    newestAtHello = payload.seq;
  } else if (type === "LEDGER_UPDATE") {
    ledger.receive(payload.entry);
    totals.refresh();
    spending.refresh();
    budgets.refresh();
    keys.refresh();
    savings.refresh();
    if (payload.flowId) for (const part of [flows, history]) part.receive(message);
  } else if (type === "BUDGET_WARNING") {
    budgets.refresh();
    keys.refresh();
    notify(message);
  } else if (type === "OPTIMIZATION_AVAILABLE") {
    savings.receive(payload.suggestion);
    notify(message);
  } else if (type === "OPTIMIZATION_CHANGED") {
    const { suggestion } = payload;
    savings.receive(suggestion);
    // The flow itself has changed.
    if (["APPLIED", "REVERTED"].includes(suggestion.status)) flows.load().catch(() => {}); // The connection line shows the error.
  } else if (payload?.flowId) {
    flows.receive(message);
    history.receive(message);
    triggers.receive(message);
    if (type in TOASTS) notify(message);
    if (type === "FLOW_COMPLETED" || type === "FLOW_FAILED") totals.refresh();
  }
}

const TOASTS = {
  __proto__: null,
  FLOW_STARTED: (payload) => ["started", [{ name: nameOf(payload) }, " started"]],
  FLOW_COMPLETED: (payload) => ["completed", [{ name: nameOf(payload) }, " completed"], `${duration(payload.executionTimeMs)} · ${moneyOrUnknown(payload.cost)}`],
  FLOW_FAILED: (payload) => ["failed", [{ name: nameOf(payload) }, " failed"], payload.error],
  FLOW_CANCELLED: (payload) => ["cancelled", [{ name: nameOf(payload) }, " cancelled"]],
  BUDGET_WARNING: ({ budget, percent, used, spent, held, limit, per, hard, kind, session }) => kind === "loop" ? [
    "warning",
    ["Session ", { name: session }, " repeats itself"],
    `${used[0].toUpperCase()}${used.slice(1)}. ${hard ? `Budget “${budget}” refuses its further calls.` : "No budget stops it."}`,
  ] : [
    "warning",
    ["Budget “", { name: budget }, `”: ${percent} % used`],
    `${held ? `${spent} spent, ${held} held` : used} of ${limit} per ${per}. ${hard ? "Calls that might exceed the limit are refused." : "This budget only warns."}`,
  ],
  OPTIMIZATION_AVAILABLE: ({ suggestion }) => [
    "saving",
    [{ name: suggestion.flowName }, ": ", { name: suggestion.title }],
    expectedSaving(suggestion),
    { label: "View", act: () => openSavings(suggestion.id) },
  ],
};

const nameOf = ({ flowId, name }) => name ?? flows.nameOf(flowId);

function notify({ seq, type, payload }) {
  const isReplayed = seq <= newestAtHello;
  if (isReplayed && Date.now() - Date.parse(payload.timestamp) > TOAST_AGE_MAX_MS) return;
  toasts.show(...TOASTS[type](payload));
}

const openSavings = (id) => savings.open(() => byId("savings"), id);

byId("savings").addEventListener("click", () => openSavings());
byId("budgets").addEventListener("click", () => budgets.open(() => byId("budgets")));
byId("keys").addEventListener("click", () => keys.open(() => byId("keys")));
byId("origin").textContent = location.origin;
byId("ledger-more").addEventListener("click", () => ledger.loadMore().catch((error) => showError("Cannot load more rows", error)));

// A link cannot send the token in a header, so with a token the file is fetched and then saved.
byId("csv").addEventListener("click", async (event) => {
  if (!api.currentToken()) return;
  event.preventDefault();
  try {
    const url = URL.createObjectURL(await api.getBlob(byId("csv").getAttribute("href")));
    Object.assign(document.createElement("a"), { href: url, download: "ledger.csv" }).click();
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
  } catch (error) {
    showError("Cannot download the CSV", error);
  }
});
