/** The graph of a flow or a run: nodes are buttons over the edges' SVG; zoom, pan, and movement by keyboard. */

import { html, useEffect, useLayoutEffect, useMemo, useRef, useState } from "./vendor/preact.js";
import { duration, money } from "./format.js";
import { layOut } from "./graph-layout.js";
import { useId } from "./ui.js";

const ZOOM_MIN = 0.2;
const ZOOM_MAX = 2;
const ZOOM_STEP = 1.25;
/** A graph that fits at this zoom or a larger one is shown whole at first; text is readable from here on. */
const READABLE_ZOOM = 0.7;
const DRAG_MIN_PX = 4;
const HEIGHT_PLAIN = 56;
const HEIGHT_WITH_STATES = 78;

/** Paths of icons, 24 × 24. */
const TYPE_ICONS = {
  __proto__: null,
  agent: "M12 3l2 6.500 6.500 2.500-6.500 2.500-2 6.500-2-6.500-6.500-2.500 6.500-2.500z",
  map: "M8 3h13v13M5.500 6H18v12.500M3 9h12v12H3z",
  http: "M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18zM3 12h18M12 3c-6 6-6 12 0 18M12 3c6 6 6 12 0 18",
  input: "M10 4h10v16H10M3 12h11m-4-4 4 4-4 4",
  condition: "M12 3l9 9-9 9-9-9zM12 8.500v3.500l2.500 2",
  template: "M4 6h16M4 11h16M4 16h9",
  output: "M14 4H4v16h10M10 12h11m-4-4 4 4-4 4",
  unknown: "M9 9a3 3 0 1 1 4 3q-1 .5-1 2M12 17.500v.5",
};
const STATE_ICONS = {
  __proto__: null,
  waiting: "M12 5a7 7 0 1 0 0 14 7 7 0 0 0 0-14z",
  running: "M12 4a8 8 0 0 1 8 8",
  completed: "M5 12.500l5 5L19.500 7",
  failed: "M6 6l12 12M18 6 6 18",
  skipped: "M4 12h13m-4-4 4 4-4 4M20.500 6v12",
  cancelled: "M7 7h10v10H7z",
};

export const Icon = ({ path, className, size = 16 }) => html`<svg class=${className} viewBox="0 0 24 24" width=${size} height=${size} aria-hidden="true" fill="none" stroke="currentColor" stroke-width="2" stroke-linecap="round" stroke-linejoin="round"><path d=${path} /></svg>`;

/* Nodes of a document. */

export const typeOf = ({ type }) => (typeof type === "string" && type ? type : "agent");
export const labelOf = (node) => String(node.data?.label || node.id);
const typeIcon = (type) => TYPE_ICONS[type] ?? TYPE_ICONS.unknown;

/** Returns the line below a node's label: its model or expression. */
function detailOf(node) {
  const type = typeOf(node);
  const { model, provider, expression, items, url, method, inputs, template } = node.data ?? {};
  const target = [model ?? provider].filter(Boolean).join("");
  const details = {
    __proto__: null,
    agent: () => target || "no model",
    map: () => [`each of ${items ?? "?"}`, target].filter(Boolean).join(" · "),
    condition: () => expression,
    http: () => `${method ?? "GET"} ${url ?? ""}`,
    input: () => (Array.isArray(inputs) ? inputs.map((input) => input?.name).join(", ") : ""),
    template: () => template,
    output: () => template,
  };
  return String(details[type]?.() ?? type);
}

/* The graph. */

const noState = () => null;

/**
 * `graph` is `{ nodes, edges }` of a document. `states` is null for a definition, else a Map or a function from node ids
 * (strings) to `{ state, attempt, cost, ms, items, text }`: `state` is "waiting", "running", "completed", "failed",
 * "skipped" or "cancelled", `items` `{ done, open, failed }` of a map, `text` the output of a condition. Keep `graph`
 * the same object between renderings, since a new one is laid out again. `onSelect(id, event)` is called for a click or Enter.
 * It is drawn from left to right, on phones and with `isDownAlways` from top to bottom.
 * The graph scrolls to the node `focusOn` whenever that changes, until the reader moves it.
 */
export function Graph({ graph, states = null, selected = null, onSelect, focusOn = null, isDownAlways = false, label = "Graph of the flow", testid = "graph" }) {
  const isDown = useIsNarrow() || isDownAlways;
  const hasStates = states !== null;
  const plan = useMemo(() => layOut(graph, { isDown, nodeHeight: hasStates ? HEIGHT_WITH_STATES : HEIGHT_PLAIN }), [graph, isDown, hasStates]);
  const stateOf = states === null ? noState : typeof states === "function" ? states : (id) => states.get(id);
  const frame = useRef(null);
  const [zoom, zoomTo, fit, hasMoved] = useZoom(frame, plan);
  const [current, setCurrent] = useState(null);
  usePan(frame, hasMoved);
  useFollow(frame, plan, zoom, focusOn, hasMoved);
  const steps = useMemo(() => neighbours(plan), [plan]);
  const hintId = useId("graph-hint");
  if (!plan.nodes.length) return html`<p class="muted" data-testid=${testid}>No nodes.</p>`;
  const known = (id) => id !== null && plan.nodes.some((node) => node.id === id);
  const reachable = [current, selected, focusOn].find(known) ?? plan.nodes[0].id;
  const onKeyDown = (event) => {
    const next = steps.move(reachable, event.key);
    if (next === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    hasMoved.current = true;
    setCurrent(next);
    const button = [...frame.current.querySelectorAll("button.graph-node")].find(({ dataset }) => dataset.nodeId === next);
    button.focus({ preventScroll: true });
    reveal(frame.current, button);
  };
  return html`
    <div class="graph" data-testid=${testid}>
      <div class="graph-frame" ref=${frame} role="group" aria-label=${label} aria-describedby=${hintId} onKeyDown=${onKeyDown}>
        <div class="graph-sizer" style=${{ width: `${plan.width * zoom}px`, height: `${plan.height * zoom}px` }}>
          <div class="graph-canvas" style=${{ width: `${plan.width}px`, height: `${plan.height}px`, transform: `scale(${zoom})` }}>
            <${Edges} plan=${plan} stateOf=${stateOf} selected=${selected} />
            ${plan.nodes.map(({ id, node, x, y }) => html`
              <${NodeBox} key=${id} id=${id} node=${node} place=${{ left: `${x}px`, top: `${y}px`, width: `${plan.nodeWidth}px`, height: `${plan.nodeHeight}px` }} state=${hasStates ? (stateOf(id) ?? { state: "waiting" }) : null}
                isSelected=${selected === id} isReachable=${reachable === id} next=${steps.textOf(id)} onSelect=${(event) => { hasMoved.current = true; setCurrent(id); onSelect?.(id, event); }} />
            `)}
          </div>
        </div>
      </div>
      <p class="hidden-text" id=${hintId}>Arrow keys move along the edges. Enter selects a node.</p>
      <div class="graph-tools" role="group" aria-label="Zoom">
        <button type="button" class="quiet" aria-label="Zoom out" title="Zoom out" onClick=${() => zoomTo(zoom / ZOOM_STEP)}>−</button>
        <button type="button" class="quiet" aria-label=${`Zoom ${Math.round(zoom * 100)} %; reset to 100 %`} title="Reset to 100 %" data-testid="graph-zoom" onClick=${() => zoomTo(1)}>${Math.round(zoom * 100)} %</button>
        <button type="button" class="quiet" aria-label="Zoom in" title="Zoom in" onClick=${() => zoomTo(zoom * ZOOM_STEP)}>+</button>
        <button type="button" class="quiet" title="Show the whole graph" data-testid="graph-fit" onClick=${fit}>Fit</button>
      </div>
    </div>
  `;
}

function useIsNarrow() {
  const [query] = useState(() => matchMedia("(width < 48rem)"));
  const [isNarrow, setNarrow] = useState(query.matches);
  useEffect(() => {
    const change = () => setNarrow(query.matches);
    query.addEventListener("change", change);
    return () => query.removeEventListener("change", change);
  }, [query]);
  return isNarrow;
}

/* Edges and nodes. */

/** Returns "taken", "open" (not yet known) or "skipped" for an edge of a run, and "" for one of a definition. */
function edgeState({ source, target, label }, stateOf) {
  const from = stateOf(source);
  const to = stateOf(target);
  if (!from && !to) return "";
  const isOtherBranch = ["true", "false"].includes(from?.text) && ["true", "false"].includes(label) && from.text !== label;
  if (from?.state === "skipped" || to?.state === "skipped" || isOtherBranch) return "skipped";
  return from?.state === "completed" ? "taken" : "open";
}

function Edges({ plan, stateOf, selected }) {
  const arrowId = useId("arrow");
  return html`
    <svg class="graph-edges" width=${plan.width} height=${plan.height} aria-hidden="true">
      <defs><marker id=${arrowId} viewBox="0 0 8 8" refX="7.500" refY="4" markerWidth="8" markerHeight="8" markerUnits="userSpaceOnUse" orient="auto"><path d="M0 0.500 8 4 0 7.500z" fill="context-stroke" /></marker></defs>
      ${plan.edges.map((edge) => html`<path key=${edge.index} class="graph-edge" d=${edge.path} marker-end=${`url(#${arrowId})`} data-testid="graph-edge" data-edge-id=${edge.id} data-source=${edge.source} data-target=${edge.target} data-branch=${edge.label || null} data-state=${edgeState(edge, stateOf)} data-selected=${edge.source === selected || edge.target === selected ? "" : null} />`)}
      ${plan.edges.filter(({ label }) => label).map((edge) => html`<text key=${`label ${edge.index}`} class="graph-branch" x=${edge.labelAt.x} y=${edge.labelAt.y} data-testid="graph-branch" data-state=${edgeState(edge, stateOf)}>${edge.label}</text>`)}
    </svg>
  `;
}

/** Returns ["failed", "attempt 2", "3.2 s", "$0.002"]: the parts that are known. */
function stateParts({ state, attempt, ms, cost, items }, type) {
  const isOver = state === "completed" || state === "failed";
  const counts = items && [`${items.done} completed`, items.open ? `${items.open} running` : "", items.failed ? `${items.failed} failed` : ""].filter(Boolean).join(", ");
  const hasCall = type === "agent" || type === "map" || Number(cost) > 0;
  return [
    state,
    attempt > 1 && state !== "waiting" ? `attempt ${attempt}` : "",
    state !== "completed" && counts,
    isOver && ms !== null && ms !== undefined ? duration(ms) : "",
    isOver && hasCall && cost !== null && cost !== undefined ? money(cost) : "",
  ].filter(Boolean);
}

function NodeBox({ id, node, place, state, isSelected, isReachable, next, onSelect }) {
  const type = typeOf(node);
  const label = labelOf(node);
  const detail = detailOf(node);
  const parts = state ? stateParts(state, type) : [];
  // The icon says "completed" already; the room is for the numbers.
  const isShort = parts[0] === "completed" && parts.length > 1;
  return html`
    <button type="button" class="graph-node" style=${place} data-testid="node" data-node-id=${id} data-type=${type} data-state=${state?.state} aria-description=${next} aria-pressed=${isSelected ? "true" : "false"} tabindex=${isReachable ? 0 : -1} title=${`${label}\n${detail.slice(0, 500)}`} onClick=${onSelect}>
      <span class="graph-label"><${Icon} path=${typeIcon(type)} className="graph-type" /><bdi class="cut">${label}</bdi></span>
      <span class="hidden-text">, ${type === "agent" ? "" : `${type}, `}</span>
      <span class="graph-detail cut"><bdi>${detail.slice(0, 120)}</bdi></span>
      ${state && html`<span class="hidden-text">, </span><span class="graph-state cut"><${Icon} path=${STATE_ICONS[state.state] ?? STATE_ICONS.waiting} size="14" /> ${isShort && html`<span class="hidden-text">completed, </span>`}${parts.slice(isShort ? 1 : 0).join(" · ")}</span>`}
    </button>
  `;
}

/* Movement by keyboard. */

/** Returns `move(id, key)`, the node that a key leads to, and `textOf(id)`, a sentence about the next nodes. */
function neighbours({ nodes, edges, isDown }) {
  const places = new Map(nodes.map((node) => [node.id, node]));
  const after = new Map(nodes.map(({ id }) => [id, []]));
  const before = new Map(nodes.map(({ id }) => [id, []]));
  for (const edge of edges) {
    after.get(edge.source).push(edge);
    before.get(edge.target).push(edge);
  }
  const [along, across] = isDown ? ["y", "x"] : ["x", "y"];
  const nearest = (from, ids) => ids.map((id) => places.get(id)).sort((a, b) => distance(from, a) - distance(from, b))[0]?.id;
  const distance = (a, b) => Math.hypot(a.x - b.x, a.y - b.y);
  /** Beside: in the same layer first, else the nearest node in that direction. */
  const beside = (from, sign) => {
    const others = nodes.filter((node) => (node[across] - from[across]) * sign > 1);
    const sameLayer = others.filter((node) => Math.abs(node[along] - from[along]) < 1);
    return nearest(from, (sameLayer.length ? sameLayer : others).map(({ id }) => id));
  };
  const [forwardKey, backKey, downKey, upKey] = isDown ? ["ArrowDown", "ArrowUp", "ArrowRight", "ArrowLeft"] : ["ArrowRight", "ArrowLeft", "ArrowDown", "ArrowUp"];
  const moves = {
    __proto__: null,
    [forwardKey]: (from) => nearest(from, after.get(from.id).map(({ target }) => target)),
    [backKey]: (from) => nearest(from, before.get(from.id).map(({ source }) => source)),
    [downKey]: (from) => beside(from, 1),
    [upKey]: (from) => beside(from, -1),
    Home: () => nodes[0].id,
    End: () => nodes.at(-1).id,
  };
  const nameOf = (edge) => labelOf(places.get(edge.target).node) + (edge.label ? ` if ${edge.label}` : "");
  return {
    move: (id, key) => moves[key]?.(places.get(id)) ?? (moves[key] ? id : undefined),
    textOf: (id) => (after.get(id).length ? `Next: ${after.get(id).slice(0, 10).map(nameOf).join(", ")}` : "Last node"),
  };
}

/* Zoom and scrolling. */

const isCalm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

/** Scrolls the frame, and only the frame, so that the element is in its middle. */
function reveal(frame, element, behavior = "auto") {
  const [outer, inner] = [frame.getBoundingClientRect(), element.getBoundingClientRect()];
  const isInside = inner.left >= outer.left && inner.right <= outer.right && inner.top >= outer.top && inner.bottom <= outer.bottom;
  if (isInside) return;
  frame.scrollTo({
    left: frame.scrollLeft + (inner.left + inner.right - outer.left - outer.right) / 2,
    top: frame.scrollTop + (inner.top + inner.bottom - outer.top - outer.bottom) / 2,
    behavior: isCalm() ? "auto" : behavior,
  });
}

const fitting = (frame, plan) => {
  // The frame grows with its content up to its maximum height.
  const heightMax = Number.parseFloat(getComputedStyle(frame).maxHeight) || frame.clientHeight;
  return Math.min(1, (frame.clientWidth - 4) / plan.width, (heightMax - 4) / plan.height);
};

const bounded = (zoom) => Math.min(ZOOM_MAX, Math.max(ZOOM_MIN, zoom));

/** Returns the zoom, a function that sets it, one that fits the graph, and whether the reader moved the graph (a ref). */
function useZoom(frame, plan) {
  const [zoom, setZoom] = useState(1);
  const hasMoved = useRef(false);
  /** The point of the graph that stays where it is while the zoom changes. */
  const fixed = useRef(null);
  const live = useRef(zoom);
  live.current = zoom;
  const zoomTo = (wanted, at = null) => {
    const { clientWidth, clientHeight, scrollLeft, scrollTop } = frame.current;
    const [x, y] = at ?? [clientWidth / 2, clientHeight / 2];
    fixed.current = { x, y, left: (scrollLeft + x) / live.current, top: (scrollTop + y) / live.current };
    hasMoved.current = true;
    setZoom(bounded(wanted));
  };
  useLayoutEffect(() => {
    if (!fixed.current || !frame.current) return;
    const { x, y, left, top } = fixed.current;
    fixed.current = null;
    frame.current.scrollLeft = left * zoom - x;
    frame.current.scrollTop = top * zoom - y;
  }, [zoom]);
  useLayoutEffect(() => {
    if (!frame.current || hasMoved.current) return;
    const wanted = fitting(frame.current, plan);
    const isWidthFit = plan.isDown && (frame.current.clientWidth - 4) / plan.width >= READABLE_ZOOM;
    setZoom(wanted >= READABLE_ZOOM ? wanted : isWidthFit ? Math.min(1, (frame.current.clientWidth - 4) / plan.width) : Math.max(READABLE_ZOOM, wanted));
  }, [plan]);
  useEffect(() => onPinch(frame.current, (factor, at) => zoomTo(live.current * factor, at)), [frame.current]);
  const fit = () => {
    setZoom(bounded(fitting(frame.current, plan)));
    hasMoved.current = false;
  };
  return [zoom, zoomTo, fit, hasMoved];
}

/** Calls `change(factor, [x, y])` for ctrl and wheel, which a trackpad's pinch sends too, and for two fingers. */
function onPinch(frame, change) {
  if (!frame) return undefined;
  let apart = 0;
  const inFrame = (x, y) => {
    const { left, top } = frame.getBoundingClientRect();
    return [x - left, y - top];
  };
  const wheel = (event) => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    change(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.004)), inFrame(event.clientX, event.clientY));
  };
  const touch = (event) => {
    if (event.touches.length !== 2) return void (apart = 0);
    event.preventDefault();
    const [a, b] = event.touches;
    const now = Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY);
    if (apart && now) change(now / apart, inFrame((a.clientX + b.clientX) / 2, (a.clientY + b.clientY) / 2));
    apart = now;
  };
  const listeners = [["wheel", wheel], ["touchstart", touch], ["touchmove", touch], ["touchend", touch]];
  for (const [type, listener] of listeners) frame.addEventListener(type, listener, { passive: false });
  return () => listeners.forEach(([type, listener]) => frame.removeEventListener(type, listener));
}

/** Drags the graph with the mouse; fingers scroll it. */
function usePan(frame, hasMoved) {
  useEffect(() => {
    const root = frame.current;
    if (!root) return undefined;
    let from = null;
    const down = (event) => {
      if (event.pointerType !== "mouse" || event.button) return;
      from = { x: event.clientX, y: event.clientY, left: root.scrollLeft, top: root.scrollTop, isDragged: false };
    };
    const move = (event) => {
      if (!from) return;
      const [x, y] = [event.clientX - from.x, event.clientY - from.y];
      if (!from.isDragged && Math.hypot(x, y) < DRAG_MIN_PX) return;
      from.isDragged = hasMoved.current = true;
      root.dataset.dragged = "";
      root.scrollTo({ left: from.left - x, top: from.top - y, behavior: "instant" });
    };
    const up = () => {
      from = null;
      // The click that ends a drag selects nothing; it comes right after this event.
      setTimeout(() => delete root.dataset.dragged);
    };
    const click = (event) => root.dataset.dragged !== undefined && (event.stopPropagation(), event.preventDefault());
    const moved = () => (hasMoved.current = true);
    root.addEventListener("pointerdown", down);
    root.addEventListener("click", click, true);
    root.addEventListener("wheel", moved, { passive: true });
    root.addEventListener("touchmove", moved, { passive: true });
    addEventListener("pointermove", move);
    addEventListener("pointerup", up);
    return () => {
      removeEventListener("pointermove", move);
      removeEventListener("pointerup", up);
    };
  }, [frame.current]);
}

/** Scrolls to the node `focusOn` if it is out of sight. */
function useFollow(frame, plan, zoom, focusOn, hasMoved) {
  useEffect(() => {
    if (!frame.current || focusOn === null || hasMoved.current) return;
    const button = [...frame.current.querySelectorAll("button.graph-node")].find(({ dataset }) => dataset.nodeId === focusOn);
    if (button) reveal(frame.current, button, "smooth");
  }, [focusOn, plan, zoom]);
}
