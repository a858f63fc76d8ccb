/** What ledger rows say beside their numbers: plain data, no DOM. */

/** The number of the item of a map that a call is for; null for one that is for no item. */
export function itemOf({ operation_id: operation, node_id: nodeId }) {
  const end = /\[(\d+)\]$/.exec(operation);
  return end && nodeId !== null && operation.slice(0, end.index).endsWith(`:${nodeId}`) ? Number(end[1]) : null;
}

/** Whether a budget did not let the call be made: it cost nothing, and the reason names the budget. */
export function isRefused({ status, total_cost_usd: cost, error_message: reason }) {
  return status === "FAILED" && cost === 0 && /^the budget `|so that the budget `/.test(reason ?? "");
}
