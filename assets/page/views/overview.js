/** The view "Overview": spend, health and what needs attention in a period. */

import { html, useEffect, useRef, useState } from "../vendor/preact.js";
import { count, duration, excludedCalls, isCostUnknown, money, percent, plural, short } from "../format.js";
import { Meter } from "../meter.js";
import { dateIn, PeriodPicker, usePeriod } from "../period-picker.js";
import { address, navigate, useData, useMessages, useThrottled } from "../state.js";
import { Button, Empty, ErrorNote, Loading, Money, Page, Section, Status, Time } from "../ui.js";

/** Limits how often the data are fetched while calls end … */
const REFRESH_PAUSE_MS = 2_000;
/** … and the pause is at least this many times the duration of the last fetch. */
const REST_FACTOR = 5;
const MODELS_SHOWN = 8;
const BUDGETS_SHOWN = 4;
const FAILED = "FAILED,TIMEOUT,CANCELLED,UNKNOWN";
const RUN_ENDS = ["FLOW_COMPLETED", "FLOW_FAILED", "FLOW_CANCELLED"];
const REFRESHING = ["FLOW_STARTED", ...RUN_ENDS, "RUN_DELETED", "BUDGET_WARNING", "OPTIMIZATION_AVAILABLE", "OPTIMIZATION_CHANGED"];

/** The plot and its library are fetched while the data are. */
let plotModule = null;
const loadPlot = () => (plotModule ??= Promise.all([import("./spend-plot.js"), import("../vendor/uplot.js")]).then(([module]) => module.SpendPlot));

export default function Overview({ query }) {
  const period = usePeriod(query);
  const path = address("/api/overview", { from: period.from, to: period.to, tz: period.zone });
  const { data, error, isStale, tookMs, reload } = useData(path);
  const refresh = useThrottled(reload, Math.max(REFRESH_PAUSE_MS, REST_FACTOR * tookMs));
  useMessages(({ type, payload }) => {
    if (type === "LEDGER_UPDATE" ? payload.entry.status !== "PENDING" : REFRESHING.includes(type)) refresh();
  });
  useEffect(() => void loadPlot(), []);
  const link = (filters) => address("/calls", { ...period.query, ...filters });
  const picker = html`<${PeriodPicker} query=${query} />`;
  return html`
    <${Page} title="Overview" actions=${picker} testid="overview">
      <${ErrorNote} title="Cannot load the overview" error=${error} onRetry=${reload} />
      ${data ? html`<${Content} ...${{ data, period, link }} isStale=${isStale} />` : !error && html`<${Loading} />`}
    <//>
  `;
}

function Content({ data, period, link, isStale }) {
  const { total, running } = data;
  const hasContent = total.calls > 0 || running.length > 0;
  if (!hasContent) return html`<${NoCalls} ...${{ data, period, link }} />`;
  return html`
    <div class="overview" aria-busy=${isStale ? "true" : null}>
      <${Tiles} ...${{ data, period, link }} />
      <div class="overview-main">
        <div class="overview-column">
          <${Spend} ...${{ data, period, link }} />
          <${Models} ...${{ data, link }} />
        </div>
        <div class="overview-column">
          <${Running} ...${{ data, link }} />
          <${Budgets} budgets=${data.budgets} />
          <${Savings} savings=${data.savings} />
        </div>
      </div>
      <${Failures} failures=${data.failures} link=${link} />
      <div class="overview-thirds">
        <${Top} title="Flows" items=${data.flows} href=${({ key }) => link({ flow_id: key })} more="/flows" testid="top-flows" none="No calls of flows in this period." />
        <${Top} title="Keys" items=${data.keys} href=${({ key }) => link({ key })} more="/connect?part=keys" testid="top-keys" none="No calls with a key in this period." />
        <${Top} title="Sessions" items=${data.sessions} href=${({ key }) => link({ session: key })} testid="top-sessions" none="No calls with a session in this period." />
      </div>
    </div>
  `;
}

/** Either nothing was ever called, or only not in this period. */
function NoCalls({ data, period, link }) {
  const { data: newest } = useData("/api/ledger?limit=1");
  if (!newest) return html`<${Loading} />`;
  if (newest.items.length > 0 && period.from) {
    return html`
      <${Empty} title=${`No calls in this period (${period.label}).`}><p><a class="button" href="/?period=all">Show all time</a></p><//>
      <div class="overview overview-thirds">
        <${Running} ...${{ data, link }} />
        <${Budgets} budgets=${data.budgets} />
        <${Savings} savings=${data.savings} />
      </div>
    `;
  }
  return html`
    <${Empty} title="No calls yet. Begin in one of two ways:">
      <ul class="begin">
        <li><h2>Run a flow</h2><p>Create a flow from a template and run it. Its steps, tokens and costs appear here.</p><p><a class="button primary" href="/flows?new=1">Create a flow</a></p></li>
        <li><h2>Connect a client</h2><p>Use flowledger as the base URL of a client of OpenAI, Anthropic, Gemini or Ollama. Each of its calls appears here.</p><p><a class="button primary" href="/connect?part=client">Connect a client</a></p></li>
      </ul>
      <p>A provider needs a key first: <a href="/connect?part=providers">see the state of the providers</a>.</p>
    <//>
  `;
}

/* Tiles. */

const Tile = ({ label, value, note, title, testid }) => html`<div class="tile" data-testid=${testid}><dt title=${title}>${label}</dt><dd><strong>${value}</strong>${note && html`<span class="muted">${note}</span>`}</dd></div>`;

function Tiles({ data, period, link }) {
  const { total } = data;
  const ended = total.calls - total.pending;
  const latency = (ms) => ((ms ?? null) === null ? "–" : duration(ms));
  const failed = total.failed > 0 ? html`<a href=${link({ status: FAILED })} data-testid="failed-calls">${count(total.failed)} failed</a>` : "none failed";
  const pending = total.pending > 0 && `${count(total.pending)} pending`;
  return html`
    <dl class="tiles" data-testid="tiles">
      <${Tile} label="Spend" testid="tile-spend" value=${isCostUnknown(total) ? "unknown" : html`<${Money} usd=${total.total_cost_usd} />`} note=${html`<${Change} ...${{ data, period }} />`} />
      <${Tile} label="Calls" testid="tile-calls" value=${html`<a href=${link({})} title=${count(total.calls)}>${total.calls < 100_000 ? count(total.calls) : short(total.calls)}</a>`} note=${[pending, total.estimated_calls > 0 && `${short(total.estimated_calls)} estimated`].filter(Boolean).join(", ")} />
      <${Tile} label="Failure rate" testid="tile-failures" title="Calls that failed, timed out, were cancelled, or have an unknown result" value=${percent(total.failed, ended)} note=${failed} />
      <${Tile} label="Latency" testid="tile-latency" title="Median and 95th percentile of successful calls that the response cache did not answer" value=${latency(total.latency_p50_ms)} note=${`median; p95 ${latency(total.latency_p95_ms)}`} />
      <${Tile} label="Tokens" testid="tile-tokens" title=${`${count(total.input_tokens)} in, ${count(total.output_tokens)} out`} value=${`${short(total.input_tokens)} in`} note=${`${short(total.output_tokens)} out`} />
      <${Tile} label="Prompt cache" testid="tile-cache" title="Share of the input tokens that providers read from their caches" value=${percent(total.cached_input_tokens, total.input_tokens)} note="of input tokens" />
      <${Tile} label="Saved by cache" testid="tile-saved" title="Known costs of calls that the response cache answered" value=${html`<${Money} usd=${total.saved_usd} />`} note=${`${plural(total.cached_calls, "response")} reused`} />
    </dl>
  `;
}

/** The change of the spend since the period of the same length before. */
function Change({ data: { total, previous }, period }) {
  if (!previous || !period.from) return null;
  const [now, before] = [Number(total.total_cost_usd), Number(previous.total_cost_usd)];
  if (!(before > 0)) return "nothing in the period before";
  const change = now / before - 1;
  const text = change > 9.995 ? `${short(now / before)} times` : `${change >= 0 ? "+" : "−"}${percent(Math.abs(change), 1)} on`;
  return html`<span title=${`${money(before)} in the period of the same length before`}>${text} the period before</span>`;
}

/* Spend. */

const MEASURES = [["cost", "Cost"], ["calls", "Calls"], ["failed", "Failed calls"]];
/** Longer periods are shown by week, then by month. */
const DAYS_MAX = 92;
const WEEKS_MAX_DAYS = 366;
const unitOf = (days) => (days.length > WEEKS_MAX_DAYS ? "month" : days.length > DAYS_MAX ? "week" : "day");
const CHOICE_LABELS = { cost: "Spend", calls: "Calls", failed: "Failed calls" };

function Spend({ data, period, link }) {
  const [measure, setMeasure] = useState("cost");
  const [Plot, setPlot] = useState(null);
  const [error, setError] = useState(null);
  useEffect(() => void loadPlot().then((component) => setPlot(() => component), setError), []);
  const choice = html`<select aria-label="Shown numbers" data-testid="plot-measure" value=${measure} onChange=${({ target }) => setMeasure(target.value)}>${MEASURES.map(([value, label]) => html`<option key=${value} value=${value}>${label}</option>`)}</select>`;
  const unit = unitOf(data.days);
  const isCut = data.days.length > 0 && data.days[0].day > dateIn(data.tz, Date.parse(data.from));
  const onPick = ({ from, to }) => navigate(address("/calls", { from, to }));
  return html`
    <${Section} title=${`${CHOICE_LABELS[measure]} by ${unit} and model`} actions=${choice} className="card" testid="spend">
      <${Excluded} total=${data.total} link=${link} />
      ${isCut && html`<p class="muted">The plot shows the last ${count(data.days.length)} days.</p>`}
      <${ErrorNote} title="Cannot load the plot" error=${error} />
      <div class="plot-room">${Plot && html`<${Plot} key=${`${period.label} ${period.zone}`} days=${data.days} unit=${unit} measure=${measure} onPick=${onPick} />`}</div>
    <//>
  `;
}

/** The calls that the sums leave out, and where to look at them. */
function Excluded({ total, link }) {
  const { unpriced_calls: unpriced, unknown_cost_calls: unknown, subscription_cost_usd: subscribed } = total;
  if (!unpriced && !unknown && !Number(subscribed)) return null;
  return html`
    <p class="muted" data-testid="excluded">Not included:${" "}
      ${unpriced > 0 && html`<a href="/connect?part=models">${plural(unpriced, "call")} with unknown price</a>`}
      ${unpriced > 0 && unknown > 0 && ", "}
      ${unknown > 0 && html`<a href=${link({ status: FAILED })}>${plural(unknown, "failed call")} with unknown cost</a>`}
      ${Number(subscribed) > 0 && html`${unpriced + unknown > 0 && ", "}<${Money} usd=${subscribed} /> covered by subscriptions`}
    </p>
  `;
}

/** The cost of a summary; a part of it may be unknown. */
const Cost = ({ summary }) => {
  const excluded = excludedCalls(summary).join(", ");
  if (isCostUnknown(summary)) return html`<${Money} usd=${null} unknown=${excluded} />`;
  return html`<${Money} usd=${summary.total_cost_usd} title=${excluded && `+ ${excluded}`} />${excluded && html`<span class="muted" title=${excluded}> +?</span>`}`;
};

/** A share of a total as a thin bar; the number beside it says the same. */
const Share = ({ part, whole }) => html`<span class="share" aria-hidden="true"><span style=${{ width: `${whole > 0 ? Math.min(100, (100 * part) / whole) : 0}%` }}></span></span>`;

function Models({ data: { models, total }, link }) {
  const [isLong, setLong] = useState(false);
  const sorted = [...models].sort((a, b) => b.total_cost_usd - a.total_cost_usd || b.calls - a.calls);
  const shown = isLong ? sorted : sorted.slice(0, MODELS_SHOWN);
  return html`
    <${Section} title="Cost by model" className="card" testid="models">
      <table class="table bare">
        <thead><tr><th scope="col">Model</th><th scope="col" class="number">Calls</th><th scope="col" class="number wide-only">Failed</th><th scope="col" class="number wide-only">Input</th><th scope="col" class="number wide-only">Output</th><th scope="col" class="number">Cost</th><th scope="col" class="number wide-only">Share</th></tr></thead>
        <tbody>
          ${shown.map((of) => html`
            <tr key=${of.key} data-testid="model-row">
              <td><a href=${link({ model: of.key })}><bdi>${of.key ?? "unknown model"}</bdi></a></td>
              <td class="number">${count(of.calls)}</td>
              <td class="number wide-only">${of.failed ? html`<a href=${link({ model: of.key, status: FAILED })}>${count(of.failed)}</a>` : "0"}</td>
              <td class="number wide-only" title=${count(of.input_tokens)}>${short(of.input_tokens)}</td>
              <td class="number wide-only" title=${count(of.output_tokens)}>${short(of.output_tokens)}</td>
              <td class="number"><${Cost} summary=${of} /></td>
              <td class="number wide-only"><span class="share-cell"><${Share} part=${of.total_cost_usd} whole=${total.total_cost_usd} />${percent(of.total_cost_usd, total.total_cost_usd)}</span></td>
            </tr>
          `)}
        </tbody>
        <tfoot><tr><th scope="row">Total</th><td class="number">${count(total.calls)}</td><td class="number wide-only">${count(total.failed)}</td><td class="number wide-only">${short(total.input_tokens)}</td><td class="number wide-only">${short(total.output_tokens)}</td><td class="number"><${Cost} summary=${total} /></td><td class="wide-only"></td></tr></tfoot>
      </table>
      ${sorted.length > MODELS_SHOWN && html`<div><${Button} kind="quiet" onClick=${() => setLong(!isLong)}>${isLong ? "Show fewer" : `Show all ${count(sorted.length)} models`}<//></div>`}
    <//>
  `;
}

function Top({ title, items, href, more, none, testid }) {
  const shown = items.filter(({ key }) => key !== null);
  const largest = Math.max(...shown.map(({ total_cost_usd: cost }) => Number(cost)), 0);
  return html`
    <${Section} title=${`Top ${title.toLowerCase()}`} actions=${more && html`<a href=${more}>All ${title.toLowerCase()}</a>`} className="card" testid=${testid}>
      ${shown.length === 0 ? html`<p class="muted">${none}</p>` : html`
        <ol class="tops">
          ${shown.map((of) => html`
            <li key=${of.key}>
              <a class="cut" href=${href(of)} title=${of.name ?? of.key}><bdi>${of.name ?? of.key}</bdi></a>
              <span class="number"><${Cost} summary=${of} /></span>
              <${Share} part=${of.total_cost_usd} whole=${largest} />
              <span class="muted number">${plural(of.calls, "call")}${of.failed > 0 && `, ${count(of.failed)} failed`}</span>
            </li>
          `)}
        </ol>
      `}
    <//>
  `;
}

/* What needs attention. */

/** Runs and calls that are not finished; the messages say which node a run is at. */
function Running({ data: { running, running_calls: calls }, link }) {
  // Also of runs that the data do not have yet: their first node starts before the next fetch.
  const nodes = useRef(new Map()).current;
  const [, renderAgain] = useState(0);
  useMessages(({ type, payload }) => {
    if (type === "NODE_STARTED") nodes.set(payload.runId, payload.label ?? payload.nodeId);
    else if (RUN_ENDS.includes(type)) nodes.delete(payload.runId);
    else return;
    if (running.some(({ runId }) => runId === payload.runId)) renderAgain((turn) => turn + 1);
  }, [running]);
  const none = running.length === 0 && !calls;
  return html`
    <${Section} title="Running now" actions=${calls > 0 && html`<a href=${address("/calls", { period: "all", status: "PENDING" })}>${plural(calls, "call")} in progress</a>`} className="card" testid="running">
      ${none && html`<p class="muted">Nothing is running.</p>`}
      ${running.length > 0 && html`
        <ul class="lines">
          ${running.map(({ runId, flowName, status, createdAt, startedAt }) => html`
            <li key=${runId} data-testid="running-run">
              <a class="cut" href=${`/runs/${runId}`}><bdi>${flowName}</bdi></a><${Status} status=${status} />
              <span class="muted cut">${nodes.has(runId) && html`<bdi>${nodes.get(runId)}</bdi>, `}since <${Time} at=${startedAt ?? createdAt} /></span>
            </li>
          `)}
        </ul>
      `}
    <//>
  `;
}

function Budgets({ budgets }) {
  const shown = budgets.filter(({ state }) => state).sort((a, b) => b.state.percent - a.state.percent).slice(0, BUDGETS_SHOWN);
  return html`
    <${Section} title="Budgets" actions=${html`<a href="/budgets">${budgets.length === 0 ? "Set a budget" : "All budgets"}</a>`} className="card" testid="overview-budgets">
      ${budgets.length === 0 && html`<p class="muted">No budgets yet. Spending has no limit.</p>`}
      ${budgets.length > 0 && shown.length === 0 && html`<p class="muted">${plural(budgets.length, "budget")} of single runs or sessions.</p>`}
      ${shown.length > 0 && html`<ul class="lines">${shown.map((budget) => html`<li key=${budget.name} data-testid="budget-bar"><h3 class="cut"><bdi>${budget.name}</bdi></h3><span class="muted number">${`per ${budget.per}`}</span><div class="whole"><${Meter} budget=${budget} /></div></li>`)}</ul>`}
    <//>
  `;
}

/** Suggestions with the largest expected savings. */
function Savings({ savings: { count: number, expected_usd: total, best } }) {
  const all = number > best.length ? `All ${count(number)} savings` : "All savings";
  return html`
    <${Section} title="Best open savings" actions=${html`<a href="/savings">${all}</a>`} className="card" testid="overview-savings">
      ${best.length === 0 && html`<p class="muted">No suggestions yet. They appear shortly after calls finish.</p>`}
      ${best.length > 0 && html`
        ${number > best.length && Number(total) > 0 && html`<p class="muted">All together: ≈ <${Money} usd=${total} /> in 30 days.</p>`}
        <ul class="lines">
          ${best.map(({ id, title, flowName, savingPer30Days: saving, savingMs }) => html`
            <li key=${id}>
              <a href=${address("/savings", { id })}><bdi>${title}</bdi></a>
              <span class="number">${saving ? html`≈ <${Money} usd=${saving.expectedUsd} />` : savingMs && `≈ ${duration(savingMs)}`}</span>
              <span class="muted cut">${flowName ? html`<bdi>${flowName}</bdi>` : "Calls of clients"}</span>
              <span class="muted number">${saving ? "in 30 days" : savingMs && "in each run"}</span>
            </li>
          `)}
        </ul>
      `}
    <//>
  `;
}

function Failures({ failures, link }) {
  if (failures.length === 0) return null;
  return html`
    <${Section} title="Newest failures" actions=${html`<a href=${link({ status: FAILED })}>All failed calls</a>`} className="card" testid="failures">
      <ul class="failures">
        ${failures.map(({ id, timestamp, status, flow_name: flow, node_label: label, node_id: node, model_used: model, error_message: error, run_id: run }) => html`
          <li key=${id} data-testid="failure">
            <${Time} at=${timestamp} />
            <${Status} status=${status} />
            <a class="cut" href=${link({ call: id })}><bdi>${flow ? `${flow} › ${label ?? node}` : model}</bdi></a>
            <span class="failure-error" title=${error}>${error ?? "no error message"}</span>
            ${run && flow ? html`<a href=${`/runs/${run}`}>Show run</a>` : html`<span></span>`}
          </li>
        `)}
      </ul>
    <//>
  `;
}
