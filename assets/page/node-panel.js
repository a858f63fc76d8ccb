/** The panel of a selected node: beside the graph on wide screens, over it on narrow ones; and the node's definition. */

import { html, useEffect, useRef, useState } from "./vendor/preact.js";
import { stringify } from "./api.js";
import { typeOf } from "./graph.js";
import { Dialog, Facts, LongText, useId } from "./ui.js";

const WIDE = "(width >= 68rem)";

/**
 * The frame of a panel. The focus moves to its title when it opens, and back when it closes. `actions` are buttons
 * beside the title, `focusOn` a selector of what has the focus instead of the title.
 */
export function NodePanel({ title, onClose, actions, children, focusOn = null, testid = "node-panel" }) {
  const [isWide, setWide] = useState(() => matchMedia(WIDE).matches);
  useEffect(() => {
    const query = matchMedia(WIDE);
    const change = () => setWide(query.matches);
    query.addEventListener("change", change);
    return () => query.removeEventListener("change", change);
  }, []);
  const Frame = isWide ? Aside : Sheet;
  return html`<${Frame} ...${{ title, onClose, actions, focusOn, testid }}>${children}<//>`;
}

const Sheet = ({ title, onClose, actions, testid, children }) => html`<${Dialog} side title=${title} onClose=${onClose} actions=${actions} testid=${testid}>${children}<//>`;

function Aside({ title, onClose, actions, focusOn, testid, children }) {
  const titleId = useId("panel");
  const heading = useRef(null);
  const opener = useRef(null);
  useEffect(() => {
    if (document.activeElement !== heading.current) opener.current = document.activeElement;
    const wanted = focusOn && heading.current.closest("aside").querySelector(focusOn);
    (wanted || heading.current).focus({ preventScroll: true });
  }, [title]);
  useEffect(() => () => opener.current?.isConnected && opener.current.focus({ preventScroll: true }), []);
  const onKeyDown = (event) => {
    if (event.key !== "Escape" || event.defaultPrevented || event.target.closest("dialog, .menu[open]")) return;
    event.preventDefault();
    onClose();
  };
  return html`
    <aside class="node-panel" aria-labelledby=${titleId} data-testid=${testid} onKeyDown=${onKeyDown}>
      <header class="dialog-head">
        <h2 id=${titleId} tabindex="-1" ref=${heading}><bdi>${title}</bdi></h2>
        <div class="buttons">${actions}<button type="button" class="icon-button" aria-label="Close" data-testid="panel-close" onClick=${onClose}>×</button></div>
      </header>
      <div class="dialog-body">${children}</div>
    </aside>
  `;
}

/* The definition. */

/** Keys of `data` that are shown as long texts, and as facts; all others follow as JSON. */
const TEXTS = { prompt: "Prompt", system: "System", template: "Template", expression: "Expression", items: "Items", url: "URL", body: "Body" };
const FACTS = { provider: "Provider", model: "Model", role: "Role", maxTokens: "Max tokens", temperature: "Temperature", atOnce: "Items at once", method: "Method", stream: "Stream" };

/** A node of a document with all its keys. */
export function Definition({ node }) {
  const data = node.data ?? {};
  const isText = (key) => typeof data[key] === "string" && data[key] !== "";
  const texts = Object.keys(TEXTS).filter(isText);
  const facts = Object.keys(FACTS).filter((key) => data[key] !== undefined && data[key] !== null);
  const rest = Object.fromEntries(Object.entries(data).filter(([key]) => key !== "label" && !texts.includes(key) && !facts.includes(key)));
  const { id, type, data: _, position: __, ...outer } = node;
  return html`
    <div class="definition" data-testid="node-definition">
      <${Facts} facts=${[["Type", typeOf(node)], ["Node id", html`<code>${String(id)}</code>`], ...facts.map((key) => [FACTS[key], typeof data[key] === "string" ? html`<bdi>${data[key]}</bdi>` : stringify(data[key])])]} />
      ${texts.map((key) => html`<${LongText} key=${key} name=${TEXTS[key]} text=${data[key]} open=${key === "prompt" ? true : undefined} testid=${`node-${key}`} />`)}
      ${Object.keys(rest).length > 0 && html`<${LongText} name="Other settings" text=${stringify(rest, 2)} testid="node-other" />`}
      ${Object.keys(outer).length > 0 && html`<${LongText} name="Other keys of the node" text=${stringify(outer, 2)} open=${false} testid="node-keys" />`}
    </div>
  `;
}
