/** A table of which only the visible rows are in the document. The document scrolls; on phones each row is a card. */

import { html, useEffect, useLayoutEffect, useRef, useState } from "./vendor/preact.js";
import { Button } from "./ui.js";
import { count, plural } from "./format.js";

/** Height of a row until the first one is measured. */
const HEIGHT_GUESS = 37;
/** Rows above and below the visible part. */
const MARGIN_ROWS = 10;
/** After a jump, rows outside the window are added after this time. */
const FILL_MS = 80;
/** The visible part is rounded to this many rows, so that not every scroll step renders. */
const STEP_ROWS = 5;
/** Further rows are requested if fewer than this many follow the visible part. */
const AHEAD_ROWS = 40;
/** The reader is at the top if no more than this is scrolled out of view. */
const TOP_PX = 8;

/**
 * `columns`: [{ name, label, title, number, sort, width, cell(row) }]; `sort` is the name to sort by, `width` a share
 * of the table's width (10 by default). The first column's cell is a link to `hrefOf(row)`; columns before it, such as
 * one of check boxes, have `isPlain`. `header` replaces the label. `isDescOnly`: the API sorts it in one direction.
 * `orders` are words for its two directions, `{ asc, desc }`.
 * `rows` in their order, with `keyOf(row)`; a row that changes must be a new object.
 * `sort`: { by, order } with `onSort({ by, order })`.
 * `onOpen(row)`: a click anywhere in a row, or Enter. `open`: the key of the row that is shown elsewhere.
 * `news`: number of new rows that wait; `onNews()` shows them, at once if the reader is at the top and `isNewsQuiet`.
 * `onMore()` is called when the end is near, unless it is null. `footer` is shown below the last row.
 * `total`: number of rows of the whole list, if it is known.
 */
export function VirtualTable({ label, columns, rows, keyOf, hrefOf, onOpen, open = null, sort, onSort, news = 0, newsWord = "row", isNewsQuiet = true, onNews, onMore, footer = null, total = null, className = "", testid, rowTestid, dataOf, opensDialog = true }) {
  const root = useRef(null);
  const [height, measure] = useRowHeight(root, columns.length);
  const [range, isAtTop] = useVisibleRange(root, height, rows.length);
  const [active, setActive, onFocusIn] = useActiveRow({ root, rows, keyOf, open });
  const vnodes = useRef(new WeakMap());
  useLayoutEffect(measure);
  useEffect(() => {
    if (news > 0 && isAtTop && isNewsQuiet) onNews();
  }, [news, isAtTop, isNewsQuiet]);
  useEffect(() => {
    if (onMore && rows.length - range.end < AHEAD_ROWS) onMore();
  }, [onMore, rows.length, range.end]);
  const showNews = () => {
    onNews();
    scrollTo({ top: 0, behavior: "instant" });
  };
  const shape = `${columns.map(({ name }) => name)}`;
  const rowOf = (index) => {
    const row = rows[index];
    const key = keyOf(row);
    const state = `${index} ${index === active.index} ${key === open} ${shape}`;
    // The same object as before, so that Preact skips rows that have not changed.
    const known = vnodes.current.get(row);
    if (known?.state === state && known.columns === columns) return known.vnode;
    const vnode = html`<${Row} key=${key} ...${{ row, index, columns, rowTestid }} id=${key} href=${hrefOf(row)} data=${dataOf?.(row)} isActive=${index === active.index} isOpen=${key === open} opensDialog=${opensDialog} />`;
    vnodes.current.set(row, { state, columns, vnode });
    return vnode;
  };
  const shown = withSpaces(range, active.index, rows.length, height, rowOf);
  const onKeyDown = (event) => {
    const step = stepOf(event.key, Math.max(1, Math.floor(innerHeight / height) - 3), rows.length);
    if (step === null || !event.target.closest(".row-link") || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    setActive(Math.min(rows.length - 1, Math.max(0, active.index + step)));
  };
  const onClick = (event) => {
    const target = event.target.closest("tr[data-key]");
    const isOther = event.target.closest("a, button, label, summary") && !event.target.closest(".row-link");
    if (!target || isOther || event.ctrlKey || event.metaKey || event.shiftKey || event.button || !getSelection().isCollapsed) return;
    event.preventDefault();
    const index = rows.findIndex((row) => String(keyOf(row)) === target.dataset.key);
    if (index < 0) return;
    setActive(index, { isQuiet: true });
    onOpen(rows[index]);
  };
  return html`
    <div class=${`virtual ${className}`} data-testid=${testid}>
      <${PhoneSort} ...${{ columns, sort, onSort }} />
      ${news > 0 && !(isAtTop && isNewsQuiet) && html`<div class="news"><button type="button" class="primary" data-testid="news-button" onClick=${showNews}>${plural(news, `new ${newsWord}`)}</button></div>`}
      <table ref=${root} class="table virtual-table" style=${{ "--columns": widths(columns) }} role="table" aria-label=${label} aria-rowcount=${total === null ? -1 : total + 1} onKeyDown=${onKeyDown} onFocusIn=${onFocusIn} onClick=${onClick}>
        <thead role="rowgroup"><tr role="row" aria-rowindex="1">${columns.map((column) => html`<${Header} key=${column.name} ...${{ column, sort, onSort }} />`)}</tr></thead>
        <${Rows}>${shown}<//>
      </table>
      ${footer}
    </div>
  `;
}

/** Returns the rendered rows in order, with empty space in place of the others. */
function withSpaces({ start, end }, active, length, height, rowOf) {
  const space = (name, count) => html`<tr key=${name} class="spacer" aria-hidden="true"><td style=${{ height: `${count * height}px` }}></td></tr>`;
  const rows = Array.from({ length: end - start }, (_, at) => rowOf(start + at));
  // The row with the focus stays in the document.
  const isAbove = active >= 0 && active < start;
  const isBelow = active >= end && active < length;
  return [
    space("space-above", isAbove ? active : start),
    isAbove && [rowOf(active), space("space-active", start - active - 1)],
    rows,
    isBelow && [space("space-active", active - end), rowOf(active)],
    space("space-below", isBelow ? length - active - 1 : length - end),
  ].flat().filter(Boolean);
}

const isSpace = ({ key }) => String(key).startsWith("space");

/**
 * The body of the table. If several rows go at one end, or some come at the other, Preact moves all those between, which
 * costs a layout of all rows. So the new ones come first, and the old ones at the top go one by one; the browser
 * paints only the last state.
 */
function Rows({ children }) {
  const before = useRef([]);
  const [, trim] = useState(0);
  const keys = new Set(children.map(({ key }) => key));
  const keysBefore = new Set(before.current.map(({ key }) => key));
  const isKept = (row) => keysBefore.has(row.key) && keys.has(row.key) && !isSpace(row);
  const hasNew = children.some(({ key }) => !keysBefore.has(key));
  const gone = before.current.filter(({ key }) => !keys.has(key));
  const firstGone = gone.length ? before.current.indexOf(gone[0]) : -1;
  const isAtTop = firstGone >= 0 && firstGone < before.current.findLastIndex(isKept);
  const staying = !children.some(isKept) ? [] : hasNew ? gone : isAtTop ? gone.slice(1) : [];
  const next = isAtTop && before.current.find((row, at) => at > firstGone && isKept(row)).key;
  const at = isAtTop ? children.findIndex(({ key }) => key === next) : children.findLastIndex(isKept) + 1;
  const shown = staying.length ? [...children.slice(0, at), ...staying, ...children.slice(at)] : children;
  before.current = shown;
  useLayoutEffect(() => {
    if (staying.length > 0) trim((turn) => turn + 1);
  });
  return html`<tbody role="rowgroup">${shown}</tbody>`;
}

function Row({ row, id, index, columns, href, data, isActive, isOpen, rowTestid, opensDialog }) {
  const linkAt = columns.findIndex(({ isPlain }) => !isPlain);
  return html`
    <tr role="row" class=${isOpen ? "open" : ""} aria-rowindex=${index + 2} data-key=${id} data-testid=${rowTestid} ...${data}>
      ${columns.map(({ name, number, cell, label }, at) => html`
        <td key=${name} role="cell" class=${number ? "number" : ""} data-column=${name} data-label=${label}>${at === linkAt ? html`<a class="row-link" href=${href} tabindex=${isActive ? 0 : -1} aria-haspopup=${opensDialog ? "dialog" : null}>${cell(row)}</a>` : cell(row)}</td>
      `)}
    </tr>
  `;
}

const directions = { asc: "ascending", desc: "descending" };
/** A press on the sorted column reverses the order; other columns begin with their largest values, or `firstOrder`. */
const nextSort = (column, sort) => ({ by: column.sort, order: sort.by !== column.sort ? (column.firstOrder ?? "desc") : sort.order === "desc" ? "asc" : "desc" });

function Header({ column, sort, onSort }) {
  const isSorted = column.sort && sort?.by === column.sort;
  const content = column.sort && onSort
    ? html`<button type="button" class="sort" data-testid=${`sort-${column.name}`} onClick=${() => onSort(nextSort(column, sort))}>${column.label}<span aria-hidden="true" class="sort-mark">${isSorted ? (sort.order === "desc" ? "▾" : "▴") : ""}</span></button>`
    : (column.header ?? column.label);
  return html`<th role="columnheader" scope="col" class=${column.number ? "number" : ""} title=${column.title} aria-sort=${isSorted ? directions[sort.order] : null}>${content}</th>`;
}

const ORDER_WORDS = { desc: "largest or newest first", asc: "smallest or oldest first" };

/** Cards have no headers, so phones sort by a select. */
function PhoneSort({ columns, sort, onSort }) {
  const sortable = columns.filter((column) => column.sort);
  if (!onSort || sortable.length === 0) return null;
  const onChange = ({ target }) => {
    const [by, order] = target.value.split(" ");
    onSort({ by, order });
  };
  const option = ({ name, sort: by, label, title, orders = {} }, order) => {
    const value = `${by} ${order}`;
    return html`<option key=${name + order} value=${value} selected=${sort.by === by && sort.order === order}>${title ?? label}, ${orders[order] ?? ORDER_WORDS[order]}</option>`;
  };
  return html`<label class="phone-sort"><span>Sort by</span><select data-testid="phone-sort" onChange=${onChange}>${sortable.map((column) => [option(column, "desc"), column.isDescOnly ? null : option(column, "asc")])}</select></label>`;
}

/** Rows are grids with the same columns: a browser lays out each by itself, where a table is laid out as a whole. */
const widths = (columns) => columns.map(({ width = 10 }) => `minmax(0, ${width}fr)`).join(" ");

/** Returns how far a key moves the active row, or null for other keys. */
function stepOf(key, pageRows, length) {
  const steps = { __proto__: null, ArrowDown: 1, ArrowUp: -1, PageDown: pageRows, PageUp: -pageRows, Home: -length, End: length };
  return steps[key] ?? null;
}

/** Measures the first row; all rows have the same height. */
function useRowHeight(root, shape) {
  const [height, setHeight] = useState(HEIGHT_GUESS);
  const measuredAt = useRef("");
  const measure = () => {
    const row = root.current.querySelector("tbody tr[data-key]");
    const now = `${innerWidth} ${shape} ${devicePixelRatio}`;
    if (!row || measuredAt.current === now) return;
    measuredAt.current = now;
    const measured = row.getBoundingClientRect().height;
    if (measured > 0 && Math.abs(measured - height) > 0.1) setHeight(measured);
  };
  useEffect(() => {
    addEventListener("resize", measure);
    return () => removeEventListener("resize", measure);
  });
  return [height, measure];
}

/** Returns the rows in the window: { start, end }, rounded, and whether the window is at its top. */
function visibleRows(table, height) {
  const above = -table.tBodies[0].getBoundingClientRect().top;
  const start = Math.max(0, Math.floor(above / height / STEP_ROWS) * STEP_ROWS);
  return { start, end: start + Math.ceil(innerHeight / height / STEP_ROWS + 1) * STEP_ROWS, isAtTop: scrollY <= TOP_PX };
}

/** Returns the range of rows near the visible part of the window, and whether the window is at its top. */
function useVisibleRange(root, height, length) {
  const [range, setRange] = useState({ start: 0, end: 0, isAtTop: true });
  useEffect(() => {
    let frame = 0;
    let fillTimer = 0;
    const look = () => {
      frame = 0;
      if (!root.current) return;
      const visible = visibleRows(root.current, height);
      clearTimeout(fillTimer);
      setRange((before) => {
        // After a jump all rows are new: those outside the window can wait until the scrolling rests.
        const isJump = visible.start >= before.end || visible.end <= before.start;
        const margin = isJump ? 0 : MARGIN_ROWS;
        if (isJump) fillTimer = setTimeout(look, FILL_MS);
        const next = { start: Math.max(0, visible.start - margin), end: visible.end + margin, isAtTop: visible.isAtTop };
        return Object.keys(next).every((name) => next[name] === before[name]) ? before : next;
      });
    };
    const soon = () => {
      frame ||= requestAnimationFrame(look);
    };
    look();
    addEventListener("scroll", soon, { passive: true });
    addEventListener("resize", soon);
    // The content above the table may change its height.
    const above = new ResizeObserver(soon);
    above.observe(root.current.closest("main") ?? document.body);
    return () => {
      cancelAnimationFrame(frame);
      clearTimeout(fillTimer);
      removeEventListener("scroll", soon);
      removeEventListener("resize", soon);
      above.disconnect();
    };
  }, [height, length === 0]);
  const end = Math.min(length, range.end);
  return [{ start: Math.min(range.start, end), end }, range.isAtTop];
}

const linkOf = (table, index) => table.querySelector(`tr[aria-rowindex="${index + 2}"] .row-link`);

/** The row that the keyboard is on; it follows its key when rows are added above. */
function useActiveRow({ root, rows, keyOf, open }) {
  const [key, setKey] = useState(null);
  const mustFocus = useRef(false);
  const found = key === null ? -1 : rows.findIndex((row) => keyOf(row) === key);
  const index = found < 0 ? 0 : found;
  useEffect(() => {
    if (open !== null) setKey(open);
  }, [open]);
  useLayoutEffect(() => {
    if (!mustFocus.current) return;
    mustFocus.current = false;
    const link = linkOf(root.current, index);
    link?.focus({ preventScroll: true });
    link?.closest("tr").scrollIntoView({ block: "nearest" });
  }, [index, key]);
  // Browsers drop the focus of an element that moves within the document.
  const hadFocus = document.activeElement?.matches(".row-link") && root.current?.contains(document.activeElement);
  useLayoutEffect(() => {
    if (hadFocus && !root.current.contains(document.activeElement)) linkOf(root.current, index)?.focus({ preventScroll: true });
  });
  const setActive = (next, { isQuiet = false } = {}) => {
    mustFocus.current = !isQuiet;
    setKey(keyOf(rows[next]));
  };
  const onFocusIn = ({ target }) => {
    const focused = target.matches(".row-link") && rows[Number(target.closest("tr").ariaRowIndex) - 2];
    if (focused) setKey(keyOf(focused));
  };
  return [{ index }, setActive, onFocusIn];
}

/** The line below the last row: more rows come, a fetch failed, or a bounded search can go on. */
export function TableEnd({ isLoading, error, onRetry, searchLabel = null, onSearch, shown, word, hasMore }) {
  if (error) return html`<div class="table-end error-note" role="alert"><p>Cannot load more ${word}s: ${error.message}</p><${Button} onClick=${onRetry}>Retry<//></div>`;
  if (isLoading) return html`<p class="table-end muted">Loading more…</p>`;
  if (searchLabel) return html`<p class="table-end"><${Button} testid="search-older" data-testid="search-older" onClick=${onSearch}>${searchLabel}<//></p>`;
  if (hasMore || shown === 0) return null;
  return html`<p class="table-end muted">${shown === 1 ? `1 ${word}` : `All ${count(shown)} ${word}s`}</p>`;
}
