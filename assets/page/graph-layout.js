/** Places for the nodes and edges of a flow's graph. Pure: no DOM, so that tests can compare it with the document. */

import { Graph, layout } from "./vendor/dagre.js";

const NODE_WIDTH = 200;
const NODE_GAP = 22;
const LABEL_WIDTH = 40;
const LABEL_HEIGHT = 18;
const MARGIN = 16;
/** Gaps between layers: without and with a label on an edge. */
const LAYER_GAP = 40;
const LABELLED_GAP = 80;
/** dagre needs seconds beyond this; then layers without its crossing reduction must do. */
const EXACT_EDGES_MAX = 1_500;
const EXACT_NODES_MAX = 500;

/**
 * Returns `{ width, height, nodes, edges }` of a document's graph. A node has `id` (a string), `x` and `y` (of its left
 * upper corner) and `node` (of the document); an edge has `index` (in the document), `id`, `source`, `target`, `label`,
 * `path` (SVG), `labelAt` and `handle`. `isDown` draws from top to bottom, else from left to right. An edge whose nodes
 * do not exist is left out.
 */
export function layOut({ nodes = [], edges = [] }, { isDown = false, nodeHeight = 56 } = {}) {
  const shown = distinctNodes(nodes);
  const joined = joinedEdges(edges, shown);
  const size = { width: NODE_WIDTH, height: nodeHeight };
  const isLarge = shown.size > EXACT_NODES_MAX || joined.length > EXACT_EDGES_MAX;
  const placed = (isLarge ? placeInLayers : placeWithDagre)([...shown.keys()], joined, size, isDown);
  const result = [...shown].map(([id, node]) => ({ id, node, x: placed.centers.get(id).x - size.width / 2, y: placed.centers.get(id).y - size.height / 2 }));
  return { width: placed.width, height: placed.height, nodeWidth: size.width, nodeHeight, isDown, nodes: result, edges: drawEdges(joined, placed, size, isDown) };
}

/** Ids may be numbers; of nodes with the same id, the first counts. */
function distinctNodes(nodes) {
  const distinct = new Map();
  for (const node of nodes) if (node && node.id !== undefined && !distinct.has(String(node.id))) distinct.set(String(node.id), node);
  return distinct;
}

function joinedEdges(edges, nodes) {
  const isBranch = (edge) => nodes.get(edge.source).type === "condition" || ["true", "false"].includes(edge.handle);
  return edges
    .map((edge, index) => ({ index, id: String(edge?.id ?? index), source: String(edge?.source), target: String(edge?.target), handle: edge?.sourceHandle == null ? null : String(edge.sourceHandle) }))
    .filter(({ source, target }) => nodes.has(source) && nodes.has(target))
    .map((edge) => ({ ...edge, label: edge.handle !== null && isBranch(edge) ? edge.handle : "" }));
}

/** Returns the centers of the nodes, and of each edge the points between its ends. */
function placeWithDagre(ids, edges, size, isDown) {
  const graph = new Graph({ multigraph: true });
  const isLabelled = edges.some(({ label }) => label);
  graph.setGraph({ rankdir: isDown ? "TB" : "LR", nodesep: NODE_GAP, edgesep: 14, ranksep: isLabelled && !isDown ? LABELLED_GAP : LAYER_GAP, marginx: MARGIN, marginy: MARGIN, ranker: ids.length > 200 ? "tight-tree" : "network-simplex" });
  graph.setDefaultEdgeLabel(() => ({}));
  // Own names, because dagre keeps nodes in plain objects, where "__proto__" is no key.
  const names = new Map(ids.map((id, at) => [id, `n${at}`]));
  for (const name of names.values()) graph.setNode(name, { ...size });
  for (const { source, target, index, label } of edges) {
    graph.setEdge(names.get(source), names.get(target), { width: label ? LABEL_WIDTH : 0, height: label ? LABEL_HEIGHT : 0, labelpos: "c" }, `e${index}`);
  }
  layout(graph);
  const { width, height } = graph.graph();
  return {
    width: Number.isFinite(width) ? width : 2 * MARGIN,
    height: Number.isFinite(height) ? height : 2 * MARGIN,
    centers: new Map([...names].map(([id, name]) => [id, { x: graph.node(name).x, y: graph.node(name).y }])),
    bends: new Map(edges.map(({ source, target, index }) => [index, graph.edge(names.get(source), names.get(target), `e${index}`).points.slice(1, -1)])),
  };
}

/** Layers by the longest way from a node without predecessors, each in the document's order. */
function placeInLayers(ids, edges, { width, height }, isDown) {
  const layers = [];
  for (const [id, rank] of ranks(ids, edges)) (layers[rank] ??= []).push(id);
  const [along, across] = isDown ? [height, width] : [width, height];
  const longest = Math.max(1, ...layers.map((layer) => layer.length)) * (across + NODE_GAP);
  const centers = new Map();
  layers.forEach((layer, rank) => {
    const begin = MARGIN + (longest - layer.length * (across + NODE_GAP)) / 2;
    layer.forEach((id, at) => {
      const main = MARGIN + along / 2 + rank * (along + LABELLED_GAP);
      const side = begin + at * (across + NODE_GAP) + across / 2;
      centers.set(id, isDown ? { x: side, y: main } : { x: main, y: side });
    });
  });
  const total = 2 * MARGIN + layers.length * (along + LABELLED_GAP);
  return { width: isDown ? longest + 2 * MARGIN : total, height: isDown ? total : longest + 2 * MARGIN, centers, bends: new Map() };
}

function ranks(ids, edges) {
  const ranksOf = new Map(ids.map((id) => [id, 0]));
  // A graph without a circle is done after as many rounds as it has layers; the server refuses circles.
  for (let round = 0, hasChanged = true; hasChanged && round < ids.length; round += 1) {
    hasChanged = false;
    for (const { source, target } of edges) {
      if (ranksOf.get(target) > ranksOf.get(source) || source === target) continue;
      ranksOf.set(target, Math.min(ids.length - 1, ranksOf.get(source) + 1));
      hasChanged = true;
    }
  }
  return ranksOf;
}

/* Edges: curves that leave and reach nodes along the direction of the graph, and pass beside other nodes. */

function drawEdges(edges, { centers, bends }, size, isDown) {
  const turn = (point) => (isDown ? { x: point.y, y: point.x } : point);
  const along = isDown ? size.height : size.width;
  const across = isDown ? size.width : size.height;
  const layers = new Set([...centers.values()].map((center) => Math.round(turn(center).x)));
  const routes = edges.map((edge) => ({
    edge,
    from: turn(centers.get(edge.source)),
    to: turn(centers.get(edge.target)),
    middle: (bends.get(edge.index) ?? []).map(turn),
  }));
  const starts = ports(routes, (route) => route.edge.source, ({ middle, to }) => (middle[0] ?? to).y, across);
  const ends = ports(routes, (route) => route.edge.target, ({ middle, from }) => (middle.at(-1) ?? from).y, across);
  return routes.map((route) => {
    const { edge, from, to, middle } = route;
    const points = [{ x: from.x + along / 2, y: from.y + starts.get(route) }, ...passes(middle, layers, along), { x: to.x - along / 2, y: to.y + ends.get(route) }];
    const labelPoint = middle.length ? middle[Math.floor((middle.length - 1) / 2)] : { x: (points[0].x + points.at(-1).x) / 2, y: (points[0].y + points.at(-1).y) / 2 };
    return { ...edge, path: curve(points.map(turn), isDown), labelAt: edge.label ? turn(labelPoint) : null };
  });
}

/** Spreads the edges of a node over its side, in the order of where they go, so that they do not cross there. */
function ports(routes, nodeOf, sideOf, across) {
  const byNode = new Map();
  for (const route of routes) byNode.set(nodeOf(route), [...(byNode.get(nodeOf(route)) ?? []), route]);
  const offsets = new Map();
  for (const group of byNode.values()) {
    group.sort((a, b) => sideOf(a) - sideOf(b));
    const step = Math.min(14, (across - 16) / group.length);
    group.forEach((route, at) => offsets.set(route, (at - (group.length - 1) / 2) * step));
  }
  return offsets;
}

/** In a layer of nodes an edge goes straight between them. */
const passes = (points, layers, along) =>
  points.flatMap((point) => (layers.has(Math.round(point.x)) ? [{ x: point.x - along / 2, y: point.y }, { x: point.x + along / 2, y: point.y }] : [point]));

function curve(points, isDown) {
  const n = (value) => Math.round(value * 10) / 10;
  let path = `M${n(points[0].x)} ${n(points[0].y)}`;
  for (let at = 1; at < points.length; at += 1) {
    const [from, to] = [points[at - 1], points[at]];
    const controls = isDown ? [from.x, (from.y + to.y) / 2, to.x, (from.y + to.y) / 2] : [(from.x + to.x) / 2, from.y, (from.x + to.x) / 2, to.y];
    path += `C${controls.map(n).join(" ")} ${n(to.x)} ${n(to.y)}`;
  }
  return path;
}
