/** The sums in the header and the table by model, from the ledger's summary. */

import * as api from "./api.js";
import { byId, h, setText } from "./dom.js";
import { count, money, moneyOrUnknown, plural } from "./format.js";

/** However much happens, the summary is asked for at most this often. */
const REFRESH_EVERY_MS = 500;

export function createTotals() {
  let timer = 0;
  let refreshedAt = 0;

  async function load() {
    const { items, total } = await api.get("/api/ledger/summary?group_by=model");
    setText(byId("total-calls"), count(total.calls));
    setText(byId("total-input-tokens"), count(total.input_tokens));
    setText(byId("total-output-tokens"), count(total.output_tokens));
    // A sum of nothing but unknown prices is not 0.
    const isUnknown = total.unpriced_calls > 0 && total.unpriced_calls >= total.calls;
    setText(byId("total-cost"), isUnknown ? "unknown" : money(total.total_cost_usd ?? 0));
    setText(byId("cost-notes"), notes(total));
    setText(byId("saved-note"), total.saved_usd ? `${money(total.saved_usd)} saved by the cache` : "");
    setText(byId("call-notes"), [total.failed && `${count(total.failed)} failed`, total.pending && `${count(total.pending)} pending`].filter(Boolean).join(", "));
    drawModels(items);
  }

  /** Soon, and together with whatever else asks for it until then. */
  function refresh() {
    if (timer) return;
    const wait = Math.max(50, refreshedAt + REFRESH_EVERY_MS - Date.now());
    timer = setTimeout(async () => {
      await load().catch(() => {}); // The next event asks again.
      refreshedAt = Date.now();
      timer = 0;
    }, wait);
  }

  return { load, refresh };
}

function notes({ unpriced_calls: unpriced, estimated_calls: estimated }) {
  return [unpriced && `+ ${plural(unpriced, "call")} of unknown price`, estimated && `${count(estimated)} estimated`].filter(Boolean).join(", ");
}

function drawModels(items) {
  const rows = [...items]
    .sort((a, b) => (b.total_cost_usd ?? 0) - (a.total_cost_usd ?? 0) || b.calls - a.calls)
    .map((item) => {
      const cost = item.unpriced_calls && item.unpriced_calls >= item.calls ? moneyOrUnknown(null) : money(item.total_cost_usd ?? 0);
      return h(
        "tr",
        {},
        h("th", { scope: "row", title: item.key }, String(item.key ?? "–")),
        ...[count(item.calls), count(item.input_tokens), count(item.output_tokens), cost].map((text) => h("td", { class: "number" }, text)),
      );
    });
  byId("models").hidden = rows.length === 0;
  byId("models-body").replaceChildren(...rows);
}
