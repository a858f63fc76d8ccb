/** The rows of the view "Calls": pages from the server, and live rows in their place. No DOM. */

import { useEffect, useRef, useState } from "../vendor/preact.js";
import { get } from "../api.js";
import { freshness, rememberFlows, useMessages } from "../state.js";

const PAGE_ROWS = 100;
/** The API returns at most this many rows at once. */
const ROWS_MAX = 1_000;
/** Live rows are applied together; more often would be more than a reader can follow. */
const APPLY_MS = 120;

/** A settled row never becomes pending again, so a pending state after it is outdated. */
const isOutdated = (before, after) => before.status !== "PENDING" && after.status === "PENDING";

/**
 * `path`: of the API, with filters and order. `isNewestFirst`: new rows belong on top. `matches(row)` or null if only
 * the server knows whether a row matches. `onChange()` is called after each change.
 */
function createList({ path, isNewestFirst, matches, onChange, before }) {
  const list = { rows: before?.rows ?? [], next: null, isLoading: true, isStale: true, error: null, isLastPageShort: false };
  /** Live rows to apply, by id. */
  const incoming = new Map();
  /** Rows that wait above the shown ones, by id. */
  const waiting = new Map();
  let known = new Map(list.rows.map((row) => [row.id, row]));
  let isDisposed = false;
  let timer = 0;
  let turn = 0;

  const setRows = (rows) => {
    list.rows = rows;
    known = new Map(rows.map((row) => [row.id, row]));
    for (const id of waiting.keys()) if (known.has(id)) waiting.delete(id);
  };

  /** Replaces rows that have changed; those that no longer match go. */
  const update = (changed) => {
    const isGone = (row) => matches && changed.has(row.id) && !matches(row);
    const rows = list.rows.map((row) => {
      if (!changed.has(row.id)) return row;
      const updated = { ...row, ...changed.get(row.id) };
      known.set(row.id, updated);
      return updated;
    });
    if (rows.some(isGone)) setRows(rows.filter((row) => !isGone(row)));
    else list.rows = rows;
  };

  async function fetchRows(limit, cursor, accept) {
    const mine = ++turn;
    list.isLoading = true;
    list.error = null;
    onChange();
    try {
      const page = await get(`${path}&limit=${limit}${cursor === null ? "" : `&before=${encodeURIComponent(cursor)}`}`);
      if (mine !== turn || isDisposed) return;
      rememberFlows(page.items.filter((row) => row.flow_name).map((row) => ({ id: row.flow_id, name: row.flow_name })));
      accept(page.items);
      list.next = page.next ?? null;
      list.isLastPageShort = page.items.length < limit;
    } catch (error) {
      if (mine !== turn || isDisposed) return;
      list.error = error;
    }
    list.isLoading = false;
    onChange();
  }

  /** Fetches the first rows; later as many as are shown, so that the reader's place stays. */
  list.load = () => {
    const limit = list.isStale ? PAGE_ROWS : Math.min(ROWS_MAX, Math.max(PAGE_ROWS, list.rows.length));
    return fetchRows(limit, null, (rows) => {
      list.isStale = false;
      waiting.clear();
      setRows(rows);
    });
  };

  list.loadMore = () => {
    if (list.isLoading || list.next === null) return undefined;
    return fetchRows(PAGE_ROWS * 2, list.next, (rows) => setRows([...list.rows, ...rows.filter((row) => !known.has(row.id))]));
  };

  list.receive = (row) => {
    const before = incoming.get(row.id) ?? waiting.get(row.id) ?? known.get(row.id);
    if (list.isStale || (before && isOutdated(before, row))) return;
    incoming.set(row.id, row);
    timer ||= setTimeout(apply, APPLY_MS);
  };

  function apply() {
    timer = 0;
    if (isDisposed) return;
    let isChanged = false;
    const last = list.next === null ? -Infinity : (list.rows.at(-1)?.id ?? -Infinity);
    for (const [id, row] of incoming) {
      if (known.has(id)) isChanged = true;
      else if (matches && !matches(row)) waiting.delete(id);
      else if (!isNewestFirst || id > last) waiting.set(id, row);
    }
    if (isChanged) update(incoming);
    incoming.clear();
    onChange();
  }

  /** True if the waiting rows certainly belong on top. */
  list.areNewsExact = isNewestFirst && matches !== null;
  list.newsCount = () => waiting.size;
  list.showNews = () => {
    if (!list.areNewsExact) return list.load();
    const rows = [...waiting.values()].sort((a, b) => b.id - a.id);
    const isOnTop = list.rows.length === 0 || rows.at(-1)?.id > list.rows[0].id;
    for (const row of rows) known.set(row.id, row);
    waiting.clear();
    list.rows = [...rows, ...list.rows];
    if (!isOnTop) list.rows.sort((a, b) => b.id - a.id);
    onChange();
    return undefined;
  };

  list.find = (id) => known.get(id) ?? waiting.get(id) ?? null;

  list.dispose = () => {
    isDisposed = true;
    clearTimeout(timer);
  };
  return list;
}

/** Returns the list of calls of `path`; the rows of the path before stay until the new ones arrive. */
export function useCallList({ path, isNewestFirst, matches }) {
  const [, render] = useState(0);
  const current = useRef({ path: null, list: null });
  if (current.current.path !== path) {
    current.current.list?.dispose();
    const onChange = () => render((turn) => turn + 1);
    current.current = { path, list: createList({ path, isNewestFirst, matches, onChange, before: current.current.list }) };
  }
  const { list } = current.current;
  useEffect(() => {
    list.load();
    return freshness.subscribe(() => list.load());
  }, [list]);
  useEffect(() => () => current.current.list.dispose(), []);
  useMessages(({ type, payload }) => type === "LEDGER_UPDATE" && list.receive(payload.entry), [list]);
  return list;
}
