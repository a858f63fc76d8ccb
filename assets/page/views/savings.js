/** The view "Savings": the optimizer's suggestions by state, and their results. */

import { html, useEffect, useState } from "../vendor/preact.js";
import * as api from "../api.js";
import { count } from "../format.js";
import { address, navigate, useData, useMessages, useThrottled } from "../state.js";
import { Button, confirmAction, Empty, ErrorNote, Loading, Page, toast } from "../ui.js";
import { SavingCard } from "./saving-card.js";

/** Limits how often the suggestions are fetched while messages arrive. */
const REFRESH_PAUSE_MS = 1_000;
/** The most that one page of the API contains, for the present states … */
const PRESENT_MAX = 1_000;
/** … and the number of past suggestions that one press adds. */
const PAST_STEP = 20;
/** More cards are shown on demand. */
const SHOWN_STEP = 50;
const PATH = "/api/ledger/optimizations";

/** Status, label, the text of an empty list. */
const STATES = [
  ["OPEN", "Open", "No suggestions yet.", "They appear shortly after calls finish, for example when a smaller model would cost less or when the same prompt is sent again."],
  ["APPLIED", "Applied", "No applied suggestions yet.", "Apply an open one, and its measured saving appears here."],
  ["DISMISSED", "Dismissed", "No dismissed suggestions.", ""],
  ["WITHDRAWN", "Withdrawn", "No withdrawn suggestions.", "Suggestions are withdrawn when they no longer apply."],
  ["REVERTED", "Reverted", "No reverted suggestions.", ""],
];
const isPresent = (status) => ["OPEN", "APPLIED"].includes(status);
const limitOf = (status) => (isPresent(status) ? PRESENT_MAX : PAST_STEP);

export default function Savings({ query }) {
  const id = query.get("id");
  const linked = fresh(useData(id && `${PATH}/${encodeURIComponent(id)}`));
  const wanted = STATES.find(([status]) => status === query.get("status"))?.[0];
  // A link to a suggestion shows the list that contains it.
  const status = wanted ?? (id && !linked.error ? linked.data?.status : "OPEN") ?? null;
  const open = useData(`${PATH}?status=OPEN&limit=${PRESENT_MAX}`);
  const applied = useData(`${PATH}?status=APPLIED&limit=${PRESENT_MAX}`);
  const past = fresh(useData(status && !isPresent(status) ? `${PATH}?status=${status}&limit=${PAST_STEP}` : null));
  const reload = () => [open, applied, past, linked].forEach((data) => data.reload());
  const reloadSoon = useThrottled(reload, REFRESH_PAUSE_MS);
  const [news, setNews] = useState("");
  useMessages(({ type, payload }) => {
    if (!type.startsWith("OPTIMIZATION_")) return;
    reloadSoon();
    if (type === "OPTIMIZATION_AVAILABLE") setNews(`New suggestion: ${payload.suggestion.title}`);
  });
  const list = { OPEN: open, APPLIED: applied }[status] ?? past;
  const counts = { OPEN: countOf(open.data), APPLIED: countOf(applied.data) };
  return html`
    <${Page} title="Savings" subtitle="Suggestions that make your flows cheaper or faster, based on your calls. Amounts are estimates for 30 days, with their 95 % interval.">
      <nav class="tabs" aria-label="States">
        <ul>${STATES.map(([of, label]) => html`
          <li key=${of}><a href=${address("/savings", { status: of })} aria-current=${of === status ? "page" : null} data-testid=${`savings-${of.toLowerCase()}`}>${label}${counts[of] !== undefined && html` <span class="badge">${counts[of]}</span>`}</a></li>
        `)}</ul>
      </nav>
      <p class="hidden-text" role="status">${news}</p>
      ${id && html`<${ErrorNote} title=${`Cannot show suggestion ${id}`} error=${linked.error} />`}
      ${status === null ? html`<${Loading} />` : html`<${List} key=${status} status=${status} list=${list} linked=${linked.data?.status === status ? linked.data : null} reload=${reload} />`}
    <//>
  `;
}

/** Data of another address must not be shown as those of the present one. */
const fresh = (data) => (data.isStale ? { ...data, data: null, error: null } : data);

const countOf = (data) => data && `${count(data.items.length)}${(data.next ?? null) === null ? "" : "+"}`;

/** `linked`: the suggestion that the address names, which may be on a later page. */
function List({ status, list, linked, reload }) {
  const [more, setMore] = useState({ items: [], next: undefined });
  const { data, error } = list;
  const next = more.next === undefined ? (data?.next ?? null) : more.next;
  const all = [...(data?.items ?? []), ...more.items];
  if (linked && data && !all.some(({ id }) => id === linked.id)) all.unshift(linked);
  const items = distinct(all).sort(status === "OPEN" ? byGain : byAge);
  const most = Math.max(0, ...items.flatMap(amounts));
  const [shownMax, setShownMax] = useState(SHOWN_STEP);
  const shown = items.slice(0, Math.max(shownMax, linked ? 1 + items.findIndex(({ id }) => id === linked.id) : 0));
  const hasMore = shown.length < items.length || next !== null;
  useEffect(() => {
    if (linked && data) focusOn(linked.id);
  }, [linked?.id, Boolean(data)]);
  const loadMore = async () => {
    setShownMax(shown.length + SHOWN_STEP);
    if (next === null || shown.length + SHOWN_STEP <= items.length) return undefined;
    const page = await api.get(`${PATH}?status=${status}&limit=${limitOf(status)}&before=${next}`).catch((failed) => ({ failed }));
    if (page.failed) return toast("error", "Cannot load these suggestions", page.failed.message);
    return setMore((before) => ({ items: [...before.items, ...page.items], next: page.next ?? null }));
  };
  const [, , emptyTitle, emptyText] = STATES.find(([of]) => of === status);
  return html`
    <${ErrorNote} title="Cannot load the suggestions" error=${error} onRetry=${reload} />
    ${!data && !error && html`<${Loading} />`}
    ${data && items.length === 0 && html`<${Empty} title=${emptyTitle}>${emptyText && html`<p>${emptyText}</p>`}<//>`}
    ${data && items.length > 0 && html`
      <ol class="savings" aria-label=${`${STATES.find(([of]) => of === status)[1]} suggestions`} data-testid="savings">
        ${shown.map((item, at) => html`<${SavingCard} key=${item.id} item=${item} most=${most} path=${`${PATH}/${item.id}`} actions=${actionsOf(item, items[at + 1] ?? items[at - 1], reload)} />`)}
      </ol>
    `}
    ${hasMore && html`<div class="buttons"><${Button} onClick=${loadMore} data-testid="saving-more">Load more<//></div>`}
  `;
}

/** Focuses the title of a suggestion's card. */
function focusOn(id) {
  requestAnimationFrame(() => {
    const title = document.querySelector(`[data-saving-id="${CSS.escape(String(id))}"] h2`);
    title?.focus({ preventScroll: true });
    title?.closest("li").scrollIntoView({ block: "start" });
  });
}

/** The actions of a suggestion; they throw the server's errors. `neighbour` gets the focus if the suggestion leaves. */
function actionsOf(item, neighbour, reload) {
  const path = `${PATH}/${item.id}`;
  const leave = (result) => {
    reload();
    toast("done", ["“", { name: item.title }, `” was ${result}`], "", { label: "Show it", href: address("/savings", { id: item.id }) });
    if (neighbour) focusOn(neighbour.id);
    else document.querySelector(".tabs [aria-current]")?.focus();
  };
  return {
    async apply(body) {
      const { title } = await api.post(`${path}/apply`, body);
      reload();
      toast("done", ["“", { name: title }, "” was applied"], "", { label: "Show the flow", href: `/flows/${item.flowId}` });
      navigate(address("/savings", { status: "APPLIED", id: item.id }));
    },
    async dismiss() {
      await api.post(`${path}/dismiss`);
      leave("dismissed");
    },
    async revert() {
      const isConfirmed = await confirmAction({
        title: "Revert this suggestion?",
        text: `“${item.flowName}” returns to its state before “${item.title}” was applied. Active runs continue unchanged.`,
        action: "Revert",
      });
      if (!isConfirmed) return;
      await api.post(`${path}/revert`);
      leave("reverted");
    },
  };
}

const distinct = (items) => [...new Map(items.map((item) => [item.id, item])).values()];
const gain = ({ savingPer30Days: saving }) => saving?.expectedUsd ?? 0;
/** Sorts by money saved, then by time saved. */
const byGain = (a, b) => gain(b) - gain(a) || (b.savingMs ?? 0) - (a.savingMs ?? 0) || b.id - a.id;
const byAge = (a, b) => Date.parse(b.changedAt) - Date.parse(a.changedAt) || b.id - a.id;
/** Returns the upper bounds of the saving, for the suggestion and all alternatives. */
const amounts = ({ savingPer30Days: saving, alternatives = [] }) => [saving, ...alternatives.map((it) => it.savingPer30Days)].filter(Boolean).map(({ highUsd }) => highUsd);
