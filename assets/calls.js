/** Properties of ledger rows: plain data, no DOM. */

/** Returns the index of the map item that a call is for, or null if there is none. */
export function itemOf({ operation_id: operation, node_id: nodeId }) {
  const end = /\[(\d+)\]$/.exec(operation);
  return end && nodeId !== null && operation.slice(0, end.index).endsWith(`:${nodeId}`) ? Number(end[1]) : null;
}

/** Returns true if the call was refused before it left: no provider was called, and it cost nothing. */
export const isRefused = ({ refused }) => (refused ?? null) !== null;
