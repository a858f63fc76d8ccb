/** The sums in the header, from the ledger's summary. */

import * as api from "./api.js";
import { byId, setText } from "./dom.js";
import { count, excludedCalls, isCostUnknown, money } from "./format.js";

/** Limits how often the summary is fetched. */
const REFRESH_EVERY_MS = 500;

export function createTotals() {
  let timer = 0;
  let refreshedAt = 0;

  async function load() {
    const { total } = await api.get("/api/ledger/summary?group_by=model");
    setText(byId("total-calls"), count(total.calls));
    setText(byId("total-input-tokens"), count(total.input_tokens));
    setText(byId("total-output-tokens"), count(total.output_tokens));
    setText(byId("total-cost"), isCostUnknown(total) ? "unknown" : money(total.total_cost_usd ?? 0));
    setText(byId("cost-notes"), notes(total));
    setText(byId("saved-note"), total.saved_usd ? `${money(total.saved_usd)} saved by the cache` : "");
    setText(byId("call-notes"), [total.failed && `${count(total.failed)} failed`, total.pending && `${count(total.pending)} pending`].filter(Boolean).join(", "));
  }

  /** Fetches soon, one time for all requests until then. */
  function refresh() {
    if (timer) return;
    const wait = Math.max(50, refreshedAt + REFRESH_EVERY_MS - Date.now());
    timer = setTimeout(async () => {
      await load().catch(() => {}); // The next event fetches again.
      refreshedAt = Date.now();
      timer = 0;
    }, wait);
  }

  return { load, refresh };
}

function notes(total) {
  const excluded = excludedCalls(total).map((text) => `+ ${text}`);
  return [...excluded, total.estimated_calls && `${count(total.estimated_calls)} estimated`].filter(Boolean).join(", ");
}
