/** Components that all views use. */

import { html, useEffect, useLayoutEffect, useRef, useState } from "./vendor/preact.js";
import { describe, exactMoney, fullMoment, moment, money, plural, relative } from "./format.js";
import { createStore, settings, takeNewView, useStore } from "./state.js";

/** A long text is folded at first. */
const SHORT_CHARS = 300;
const SHORT_LINES = 6;
const COPIED_MS = 2_000;

let ids = 0;
/** Returns an id that no other element has, the same in all renderings of a component. */
export const useId = (name) => useState(() => `${name}-${++ids}`)[0];

/** A view: its title, actions at the right, and content. Sets the title of the window. */
export function Page({ title, name = title, subtitle, actions, children, testid }) {
  useEffect(() => {
    document.title = `${name} · flowledger`;
  }, [name]);
  const heading = useRef(null);
  useEffect(() => {
    // A new view begins at its heading for screen readers and the keyboard.
    if (takeNewView()) heading.current.focus({ preventScroll: true });
  }, []);
  return html`
    <header class="page-head" data-testid=${testid}>
      <div class="page-title">
        <h1 ref=${heading} tabindex="-1"><bdi>${title}</bdi></h1>
        ${subtitle && html`<p class="muted">${subtitle}</p>`}
      </div>
      ${actions && html`<div class="buttons">${actions}</div>`}
    </header>
    ${children}
  `;
}

/** A titled part of a view. */
export function Section({ title, actions, children, className = "", testid }) {
  const id = useId("section");
  return html`
    <section class=${`section ${className}`} aria-labelledby=${id} data-testid=${testid}>
      <header class="section-head">
        <h2 id=${id}>${title}</h2>
        ${actions && html`<div class="buttons">${actions}</div>`}
      </header>
      ${children}
    </section>
  `;
}

/** A button that is busy while the promise of `onClick` is pending. `kind`: "", "primary", "danger" or "quiet". */
export function Button({ kind = "", onClick, children, type = "button", disabled = false, busy = false, ...rest }) {
  const [isPending, setPending] = useState(false);
  const isMounted = useRef(true);
  useEffect(() => () => (isMounted.current = false), []);
  const isBusy = isPending || busy;
  const press = async (event) => {
    // The attribute instead of `disabled`, so that the button keeps the focus.
    if (isBusy || disabled) return event.preventDefault();
    const result = onClick?.(event);
    if (!(result instanceof Promise)) return undefined;
    setPending(true);
    try {
      await result;
    } finally {
      if (isMounted.current) setPending(false);
    }
  };
  return html`<button type=${type} class=${kind} aria-busy=${isBusy || null} aria-disabled=${disabled || isBusy || null} onClick=${press} ...${rest}>${children}</button>`;
}

/** An amount, with all its digits on hover. An unknown amount is a dash with the reason. */
export function Money({ usd, unknown = "unknown cost", title = "" }) {
  if (usd === null || usd === undefined) return html`<${Dash} reason=${unknown} />`;
  return html`<data value=${String(usd)} title=${[exactMoney(usd), title].filter(Boolean).join(" ")}>${money(usd)}</data>`;
}

/** Marks an unknown value; its title names the reason. */
export const Dash = ({ reason }) => html`<span class="muted" title=${reason}><span aria-hidden="true">–</span><span class="hidden-text">${reason}</span></span>`;

/** A time in the chosen zone; with `ago`, as "3 min ago". */
export function Time({ at, ago = false }) {
  const { zone } = useStore(settings);
  if (!at) return html`<${Dash} reason="no time" />`;
  return html`<time datetime=${at} title=${fullMoment(at, zone)}>${ago ? relative(at) : moment(at, zone)}</time>`;
}

const STATUS_KINDS = {
  __proto__: null,
  SUCCESS: "good", COMPLETED: "good", OK: "good",
  FAILED: "bad", TIMEOUT: "bad", OPEN: "bad", BENCHED: "bad", MISSING: "bad",
  RUNNING: "live", PENDING: "live", QUEUED: "live",
  UNKNOWN: "warn", COOLING: "warn", HALF_OPEN: "warn",
};

/** The state of a run, a call, a node or a provider. */
export function Status({ status, title, testid }) {
  const text = String(status ?? "");
  const kind = STATUS_KINDS[text.toUpperCase()] ?? "idle";
  return html`<span class="status" data-kind=${kind} data-status=${text} data-testid=${testid} title=${title}><span class="dot" aria-hidden="true"></span>${text.toLowerCase().replace("_", " ")}</span>`;
}

/** A failed fetch or action: the title says which one. */
export function ErrorNote({ title, error, onRetry, testid = "error" }) {
  if (!error) return null;
  return html`
    <div class="error-note" role="alert" data-testid=${testid}>
      <p><strong>${title}</strong>${error.message ? html`: ${describe(error)}` : null}</p>
      ${onRetry && html`<${Button} onClick=${onRetry}>Retry<//>`}
    </div>
  `;
}

/** A view or a list without content: what to do next. */
export const Empty = ({ title, children, testid = "empty" }) => html`
  <div class="empty" data-testid=${testid}>
    <p><strong>${title}</strong></p>
    ${children}
  </div>
`;

/** Shows that data are on their way; invisible for the first moment (see the style sheet). */
export const Loading = () => html`<p class="loading muted" role="status">Loading…</p>`;

/**
 * A labelled field. `children` is the control, which gets `id` and, with a fault, `aria-invalid` and
 * `aria-describedby`: pass a function `(attributes) => html\`<input ...\${attributes} />\``.
 */
export function Field({ label, hint, fault, children, className = "", faultTestid = "fault" }) {
  const id = useId("field");
  const attributes = {
    id,
    "aria-invalid": fault ? "true" : null,
    "aria-describedby": [fault && `${id}-fault`, hint && `${id}-hint`].filter(Boolean).join(" ") || null,
  };
  return html`
    <div class=${`field ${className}`}>
      <label for=${id}>${label}</label>
      ${children(attributes)}
      ${hint && html`<p class="hint" id=${`${id}-hint`}>${hint}</p>`}
      ${fault && html`<p class="fault" id=${`${id}-fault`} data-testid=${faultTestid}>${fault}</p>`}
    </div>
  `;
}

/** A button that copies `text`; `name` is the name of the text for screen readers. Calls `onCopied()` after a success. */
export function Copy({ text, name, label = "Copy", kind = "quiet", onCopied, ...rest }) {
  const [result, setResult] = useState("");
  useEffect(() => {
    const timer = result && setTimeout(() => setResult(""), COPIED_MS);
    return () => clearTimeout(timer);
  }, [result]);
  const copy = async ({ currentTarget }) => {
    const { copyText } = await import("./copy.js");
    const isCopied = await copyText(typeof text === "function" ? text() : text, currentTarget);
    setResult(isCopied ? "Copied" : "Copy failed");
    if (isCopied) onCopied?.();
  };
  return html`<button type="button" class=${`copy ${kind}`} aria-label=${`${label}: ${name}`} onClick=${copy} ...${rest}>${result || label}</button><span class="hidden-text" role="status">${result && `${result}: ${name}`}</span>`;
}

/** One line of text with a button that copies it. */
export const CopyLine = ({ text, name, testid }) => html`<span class="copy-line"><code data-testid=${testid}>${text}</code><${Copy} text=${text} name=${name} /></span>`;

/** A text under its name, shown verbatim; folded if it is long, with a copy button. */
export function LongText({ name, text, open, testid, tail = false }) {
  const isShort = text.length <= SHORT_CHARS && text.split("\n", SHORT_LINES + 1).length <= SHORT_LINES;
  const pre = useRef(null);
  // Streaming text shows its end, unless the reader scrolled up.
  useLayoutEffect(() => {
    if (tail && pre.current) pre.current.scrollTop = pre.current.scrollHeight;
  }, [text, tail]);
  return html`
    <div class="long-text">
      <details open=${open ?? isShort} data-testid=${testid}>
        <summary>${name} <span class="muted">${plural(text.length, "character")}</span></summary>
        <pre ref=${pre} tabindex="0" role="group" aria-label=${name}>${text}</pre>
      </details>
      <${Copy} text=${text} name=${name} />
    </div>
  `;
}

/** A list of names and values; entries with a value of null are left out. */
export const Facts = ({ facts, testid }) => html`
  <dl class="facts" data-testid=${testid}>
    ${facts.filter(([, value]) => value !== null && value !== undefined && value !== "").map(([name, value]) => html`<div key=${name}><dt>${name}</dt><dd>${value}</dd></div>`)}
  </dl>
`;

/** A menu below a button. `items`: [{ label, onClick, href, danger, testid }]; null is left out. */
export function Menu({ label, items, kind = "", name = null, testid }) {
  const root = useRef(null);
  const close = () => {
    root.current.open = false;
  };
  useEffect(() => {
    const closeOutside = (event) => !root.current?.contains(event.target) && close();
    document.addEventListener("pointerdown", closeOutside);
    return () => document.removeEventListener("pointerdown", closeOutside);
  }, []);
  const onKeyDown = (event) => {
    if (event.key === "Escape" && root.current.open) {
      event.stopPropagation();
      close();
      root.current.querySelector("summary").focus();
    }
  };
  const press = (act) => (event) => {
    close();
    root.current.querySelector("summary").focus();
    act?.(event);
  };
  return html`
    <details class="menu" ref=${root} onKeyDown=${onKeyDown} data-testid=${testid}>
      <summary class=${`button ${kind}`} aria-label=${name}>${label}</summary>
      <ul>
        ${items.filter(Boolean).map(({ label: text, onClick, href, download, danger, testid: of }) => html`
          <li key=${text}>${href
            ? html`<a href=${href} download=${download} data-testid=${of} onClick=${press(onClick)}>${text}</a>`
            : html`<button type="button" class=${danger ? "danger" : ""} data-testid=${of} onClick=${press(onClick)}>${text}</button>`}</li>
        `)}
      </ul>
    </details>
  `;
}

/**
 * Returns a handler of keys that calls `act` for Escape. Without it, browsers close a dialog at a second Escape without
 * asking, together with the dialog below it.
 */
const onEscape = (act) => (event) => {
  if (event.key !== "Escape" || event.defaultPrevented) return;
  event.preventDefault();
  event.stopPropagation();
  act();
};

/**
 * A modal dialog. `onClose()` is called for every way of closing; with `guard()` returning false it stays open (for
 * example after a question). `side` shows it as a panel at the right.
 */
export function Dialog({ title, onClose, guard, children, side = false, testid, actions }) {
  const root = useRef(null);
  const titleId = useId("dialog");
  useEffect(() => {
    const focused = document.activeElement;
    const dialog = root.current;
    dialog.showModal();
    // The focus returns to its former element, unless that is gone. Nothing outside of an open dialog can have it.
    return () => {
      dialog.close();
      if (focused?.isConnected) focused.focus();
    };
  }, []);
  const request = async (event) => {
    event?.preventDefault();
    if (guard && !(await guard())) return;
    onClose();
  };
  const onKeyDown = onEscape(request);
  return html`
    <dialog ref=${root} class=${side ? "side" : "sheet"} aria-labelledby=${titleId} data-testid=${testid} onKeyDown=${onKeyDown} onCancel=${request} onClose=${(event) => event.target === root.current && onClose()}>
      <header class="dialog-head">
        <h2 id=${titleId}><bdi>${title}</bdi></h2>
        <div class="buttons">${actions}<button type="button" class="icon-button" aria-label="Close" data-testid="dialog-close" onClick=${request}>×</button></div>
      </header>
      <div class="dialog-body">${children}</div>
    </dialog>
  `;
}

/* Questions. */

const question = createStore(null);

/**
 * Asks before an action that cannot be undone; resolves to true if it is confirmed. `action` is the label of the
 * button; `more` are further elements.
 */
export function confirmAction({ title, text, action, more = null, kind = "danger" }) {
  return new Promise((resolve) => question.set({ title, text, action, more, kind, resolve }));
}

/** Shows the present question; once in the page. */
export function Questions() {
  const asked = useStore(question);
  const root = useRef(null);
  const titleId = useId("question");
  // At once, so that the focus does not return after the asker has moved it.
  useLayoutEffect(() => {
    if (!asked) return undefined;
    const focused = document.activeElement;
    root.current.showModal();
    return () => focused?.isConnected && focused.focus();
  }, [asked]);
  if (!asked) return null;
  const answer = (isConfirmed) => {
    question.set(null);
    asked.resolve(isConfirmed);
  };
  return html`
    <dialog ref=${root} class="question" role="alertdialog" aria-labelledby=${titleId} aria-describedby=${`${titleId}-text`} data-testid="confirm" onKeyDown=${onEscape(() => answer(false))} onCancel=${(event) => {
      event.preventDefault();
      answer(false);
    }}>
      <h2 id=${titleId}>${asked.title}</h2>
      <p id=${`${titleId}-text`}>${asked.text}</p>
      ${asked.more}
      <div class="buttons">
        <button type="button" autofocus data-testid="confirm-cancel" onClick=${() => answer(false)}>Cancel</button>
        <button type="button" class=${asked.kind} data-testid="confirm-ok" onClick=${() => answer(true)}>${asked.action}</button>
      </div>
    </dialog>
  `;
}

/* Toasts. */

const SHOWN_MAX = 3;
const SHOWN_MS = 6_000;
const toastList = createStore([]);
let toastIds = 0;

/**
 * Shows a short notice: for failures, and for results of the user's own actions. `kind`: "done", "error" or
 * "warning"; the last two stay until they are dismissed. `link`: { label, href }. Names in `title` are isolated:
 * pass a string, or a list of strings and `{ name }`.
 */
export function toast(kind, title, text = "", link = null) {
  const id = ++toastIds;
  toastList.set([...toastList.get().slice(1 - SHOWN_MAX), { id, kind, title, text, link }]);
  if (kind === "done") setTimeout(() => dismissToast(id), SHOWN_MS);
}

const dismissToast = (id) => toastList.set(toastList.get().filter((shown) => shown.id !== id));

export const showError = (title, error) => toast("error", title, describe(error));

/** Shows the toasts; once in the page. */
export function Toasts() {
  const shown = useStore(toastList);
  return html`
    <div class="toasts" role="region" aria-label="Notifications">
      <ol aria-live="polite">
        ${shown.map(({ id, kind, title, text, link }) => html`
          <li key=${id} class="toast" data-testid="toast" data-kind=${kind}>
            <div>
              <strong>${[title].flat().map((part) => (part.name === undefined ? part : html`<bdi>${part.name}</bdi>`))}</strong>
              ${text && html`<p>${text}</p>`}
              ${link && html`<a href=${link.href} data-testid="toast-link" onClick=${() => dismissToast(id)}>${link.label}</a>`}
            </div>
            <button type="button" class="icon-button" aria-label="Dismiss notification" onClick=${() => dismissToast(id)}>×</button>
          </li>
        `)}
      </ol>
    </div>
  `;
}
