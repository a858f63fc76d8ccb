/** The rows of the view "Runs": pages from the server, live changes in their place, new runs kept apart. No DOM. */

import { useEffect, useRef, useState } from "../vendor/preact.js";
import { get } from "../api.js";
import { freshness, rememberFlows, route, useMessages, useThrottled } from "../state.js";

const PAGE_ROWS = 100;
/** The API returns at most this many rows at once. */
const ROWS_MAX = 1_000;
const REFETCH_PAUSE_MS = 1_000;
/** After a slow answer, the pause is longer by this factor. */
const REST_FACTOR = 10;
/** A list that was left less than this ago is shown at once when the reader comes back. */
const KEPT_MS = 10 * 60_000;

/** The list that was left last: { path, rows, next, scrollY, at }. */
let kept = null;

/** Returns the list left with this path, if the reader just came back to it. */
function takeKept(path) {
  return route.get().isBack && kept?.path === path && Date.now() - kept.at < KEPT_MS ? kept : null;
}

const CHANGES = {
  __proto__: null,
  FLOW_STARTED: () => ({ status: "RUNNING", error: null, errorNodeId: null, finishedAt: null, executionTimeMs: null }),
  FLOW_COMPLETED: ({ executionTimeMs, inputTokens, outputTokens, cost = null, timestamp }) => ({ status: "COMPLETED", executionTimeMs, inputTokens, outputTokens, cost, finishedAt: timestamp }),
  FLOW_FAILED: ({ error, executionTimeMs, timestamp }) => ({ status: "FAILED", error, executionTimeMs, finishedAt: timestamp }),
  FLOW_CANCELLED: ({ executionTimeMs, timestamp }) => ({ status: "CANCELLED", executionTimeMs, finishedAt: timestamp }),
};

/** `isNewestFirst`: rows are in order of their ids, which are version 7 UUIDs. `statuses`: empty for all. */
function createList({ path, isNewestFirst, statuses, onChange, before }) {
  const back = takeKept(path);
  const list = { path, rows: back?.rows ?? before?.rows ?? [], next: back?.next ?? null, isStale: !back, isLoading: true, error: null, tookMs: 0, scrollY: back?.scrollY ?? null };
  /** New runs that wait above the shown ones, by id. */
  let waiting = new Map();
  let turn = 0;
  let isDisposed = false;

  const indexOf = (runId) => list.rows.findIndex((row) => row.runId === runId);

  async function fetchRows(limit, cursor, accept) {
    const mine = ++turn;
    const beganAt = performance.now();
    Object.assign(list, { isLoading: true, error: null });
    onChange();
    try {
      const page = await get(`${path}&limit=${limit}${cursor === null ? "" : `&before=${encodeURIComponent(cursor)}`}`);
      if (mine !== turn || isDisposed) return;
      rememberFlows(page.items.map(({ flowId, flowName }) => ({ id: flowId, name: flowName })));
      accept(page);
    } catch (error) {
      if (mine !== turn || isDisposed) return;
      list.error = error;
    }
    list.isLoading = false;
    list.tookMs = performance.now() - beganAt;
    onChange();
  }

  /** Fetches the first rows; later as many as are shown, so that the reader's place stays. */
  list.load = () => {
    const limit = list.isStale ? PAGE_ROWS : Math.min(ROWS_MAX, Math.max(PAGE_ROWS, list.rows.length));
    return fetchRows(limit, null, ({ items, next }) => {
      list.isStale = false;
      waiting.clear();
      const isShorter = items.length < list.rows.length && limit === ROWS_MAX;
      list.rows = isShorter ? [...items, ...list.rows.slice(items.length).filter((row) => !items.some(({ runId }) => runId === row.runId))] : items;
      if (!isShorter) list.next = next ?? null;
    });
  };

  list.loadMore = () => {
    if (list.isLoading || list.next === null) return undefined;
    return fetchRows(PAGE_ROWS, list.next, ({ items, next }) => {
      const known = new Set(list.rows.map(({ runId }) => runId));
      list.rows = [...list.rows, ...items.filter(({ runId }) => !known.has(runId))];
      list.next = next ?? null;
    });
  };

  /** Fetches the newest runs: known ones are changed in their place, others wait. */
  list.look = () => {
    if (list.isLoading || list.isStale) return undefined;
    return fetchRows(PAGE_ROWS, null, ({ items }) => {
      const fetched = new Map(items.map((row) => [row.runId, row]));
      list.rows = list.rows.map((row) => fetched.get(row.runId) ?? row);
      const known = new Set(list.rows.map(({ runId }) => runId));
      waiting = new Map(items.filter(({ runId }) => !known.has(runId)).map((row) => [row.runId, row]));
    });
  };

  list.newsCount = () => waiting.size;
  list.showNews = () => {
    if (!isNewestFirst) return list.load();
    list.rows = [...waiting.values(), ...list.rows].sort((a, b) => (a.runId < b.runId ? 1 : -1));
    waiting = new Map();
    onChange();
    return undefined;
  };

  /** Applies a message; returns true if a fetch must show the rest. */
  list.receive = ({ type, payload }) => {
    if (type === "RUN_DELETED") {
      list.remove([payload.runId]);
      return false;
    }
    const change = CHANGES[type];
    if (!change) return false;
    const at = indexOf(payload.runId);
    if (at < 0) return true;
    const row = { ...list.rows[at], ...change(payload) };
    const isLeft = statuses.length > 0 && !statuses.includes(row.status);
    list.rows = isLeft ? list.rows.filter((_, index) => index !== at) : list.rows.with(at, row);
    onChange();
    return true;
  };

  list.remove = (runIds) => {
    const gone = new Set(runIds);
    list.rows = list.rows.filter(({ runId }) => !gone.has(runId));
    for (const runId of gone) waiting.delete(runId);
    onChange();
  };

  list.dispose = () => (isDisposed = true);
  list.keep = (scrolled) => {
    if (!list.isStale) kept = { path, rows: list.rows, next: list.next, scrollY: scrolled, at: Date.now() };
  };
  return list;
}

/** Returns the list of runs of `path`; the rows of the path before stay until the new ones arrive. */
export function useRunList({ path, isNewestFirst, statuses }) {
  const [, render] = useState(0);
  const current = useRef({ list: null });
  if (current.current.list?.path !== path) {
    const before = current.current.list;
    before?.dispose();
    current.current.list = createList({ path, isNewestFirst, statuses, onChange: () => render((turn) => turn + 1), before });
  }
  const { list } = current.current;
  useEffect(() => {
    if (list.isStale) list.load();
    else {
      // Back from a run: the list as it was, at the same place.
      list.isLoading = false;
      scrollTo({ top: list.scrollY, behavior: "instant" });
      list.look();
    }
    return freshness.subscribe(() => list.load());
  }, [list]);
  useEffect(() => {
    // On leaving, the next view has already scrolled to its top.
    let scrolled = scrollY;
    const remember = () => location.pathname === "/runs" && (scrolled = scrollY);
    addEventListener("scroll", remember, { passive: true });
    return () => {
      removeEventListener("scroll", remember);
      current.current.list.keep(scrolled);
      current.current.list.dispose();
    };
  }, []);
  const look = useThrottled(() => current.current.list.look(), Math.max(REFETCH_PAUSE_MS, REST_FACTOR * list.tookMs));
  useMessages((message) => list.receive(message) && look(), [list]);
  return list;
}
