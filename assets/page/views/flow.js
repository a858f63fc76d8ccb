/** The view of a flow. */

import { html, useState } from "../vendor/preact.js";
import { Graph } from "../graph.js";
import { useData } from "../state.js";
import { Page } from "../ui.js";

export default function Flow({ id }) {
  const { data } = useData(`/api/flows/${id}`);
  const { data: status } = useData(`/api/flows/${id}/status`);
  const [selected, select] = useState(null);
  const states = status && new Map(status.nodes.map((n) => [n.nodeId, { state: n.status.toLowerCase(), attempt: n.attempt, cost: n.cost, ms: n.latencyMs, text: n.resultPreview }]));
  return html`<${Page} title=${data?.name ?? "Flow"}>${data && html`<${Graph} graph=${data.data} states=${states} selected=${selected} onSelect=${select} focusOn=${status?.errorNodeId ?? null} />`}<//>`;
}
