/** The document of a flow, and the input of a run. No DOM. */

import { parse, stringify } from "./api.js";

/** Keys of a response that are not part of the document. */
const OWN_KEYS = ["id", "node_count", "inputs", "created_at", "updated_at"];

export const documentOf = (flow) => Object.fromEntries(Object.entries(flow).filter(([key]) => !OWN_KEYS.includes(key)));

const graphs = new WeakMap();

/** Returns `{ nodes, edges }` of a flow, the same object each time. Older documents keep their graph as a text. */
export function graphOf(flow) {
  if (!graphs.has(flow)) {
    const data = typeof flow.data === "string" ? parse(flow.data) : flow.data;
    graphs.set(flow, { nodes: Array.isArray(data?.nodes) ? data.nodes : [], edges: Array.isArray(data?.edges) ? data.edges : [] });
  }
  return graphs.get(flow);
}

export const nodeOfFlow = (flow, id) => graphOf(flow).nodes.find((node) => String(node.id) === id) ?? null;

/** Returns the inputs of a flow, the declared ones first: `{ name, type, default, isDeclared, isRequired }`. */
export function inputsOf(flow) {
  const declared = graphOf(flow).nodes.filter(({ type }) => type === "input").flatMap(({ data }) => (Array.isArray(data?.inputs) ? data.inputs : []));
  const byName = new Map(declared.map((input) => [input.name, input]));
  const names = new Set([...byName.keys(), ...(flow.inputs ?? [])]);
  return [...names].map((name) => {
    const { type = "text", default: fallback, required } = byName.get(name) ?? {};
    return { name, type, default: fallback, isDeclared: byName.has(name), isRequired: byName.has(name) && fallback === undefined && required !== false };
  });
}

export const TYPE_WORDS = { __proto__: null, text: "text", number: "a number", boolean: "true or false", list: "a JSON array", object: "a JSON object", any: "a JSON value" };

const FITS = {
  __proto__: null,
  number: (value) => typeof value === "number" || (typeof value === "object" && value?.digits !== undefined),
  boolean: (value) => typeof value === "boolean",
  list: Array.isArray,
  object: (value) => typeof value === "object" && value !== null && !Array.isArray(value),
};

/**
 * Returns `{ input, faults }` of typed texts by name. Empty declared inputs are left out, because the server then takes
 * their default.
 */
export function readInput(values, inputs) {
  const input = {};
  const faults = [];
  for (const { name, type, isDeclared, isRequired } of inputs) {
    const text = values[name] ?? "";
    if (isDeclared && text === "") {
      if (isRequired) faults.push({ field: name, message: "is required" });
      continue;
    }
    try {
      const value = type === "text" ? text : parse(text);
      if (FITS[type] && !FITS[type](value)) throw new TypeError();
      input[name] = value;
    } catch {
      faults.push({ field: name, message: `must be ${TYPE_WORDS[type] ?? "a JSON value"}` });
    }
  }
  return { input, faults };
}

/** Returns the text that a field shows for a value. */
export const asTyped = (value) => (value === undefined || value === null ? "" : typeof value === "string" ? value : stringify(value));

/** Returns the name of an exported file. */
export const fileName = (name) => `${name.trim().replace(/[^\p{L}\p{N}._-]+/gu, "-").replace(/^-+|-+$/g, "").slice(0, 80) || "flow"}.json`;

/** The document that the editor at /flows/new opens with: a text, and faults of the server if it was refused. */
let draft = null;

export const leaveDraft = (text, error = null) => {
  draft = { text, error };
};

/** Returns the draft once. */
export function takeDraft() {
  const taken = draft;
  draft = null;
  return taken;
}

/** Returns the names of the providers that a document calls, without the built-in one. */
export function providersOf(document) {
  const targets = graphOf(document).nodes.flatMap(({ data }) => [data?.provider, ...(Array.isArray(data?.fallback) ? data.fallback.map((target) => target?.provider) : [])]);
  return [...new Set(targets)].filter((name) => typeof name === "string" && name !== "echo");
}
