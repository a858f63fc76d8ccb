/** What ledger rows say beside their numbers: plain data, no DOM. */

/** The number of the item of a map that a call is for; null for one that is for no item. */
export function itemOf({ operation_id: operation, node_id: nodeId }) {
  const end = /\[(\d+)\]$/.exec(operation);
  return end && nodeId !== null && operation.slice(0, end.index).endsWith(`:${nodeId}`) ? Number(end[1]) : null;
}

/** Whether the call was refused before it left: nobody was asked, and it cost nothing. */
export const isRefused = ({ refused }) => (refused ?? null) !== null;
