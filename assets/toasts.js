/** Short notices in the corner. */

import { h, perFrame } from "./dom.js";

const SHOWN_MAX = 4;
const SHOWN_MS = 5_000;
/** Who is to press a button in one gets there in this time. */
const SHOWN_WITH_BUTTON_MS = 20_000;
/** What comes faster is shown together; else toasts would go by unread. */
const DRAW_PAUSE_MS = 300;
/** These stay until somebody has seen and dismissed them. Of the others, those with a button make room last. */
const STAYING = ["failed", "error", "warning"];

/** `list` is the live region that holds the toasts; `overflow` says how many there was no room for. */
export function createToasts({ list, overflow }) {
  const waiting = [];
  let unseen = 0;

  const drawSoon = perFrame(() => {
    list.append(...waiting.splice(0).map(create));
    while (list.children.length > SHOWN_MAX) {
      const oldest = list.querySelector(":scope > :not([data-stays], [data-leads])") ?? list.querySelector(":scope > :not([data-stays])") ?? list.firstElementChild;
      if ("stays" in oldest.dataset) unseen += 1;
      oldest.remove();
    }
    drawOverflow();
  }, DRAW_PAUSE_MS);

  /**
   * `kind`: started, completed, failed, cancelled, saving, warning or error. `action` is `{ label, act }` of a
   * button, if there is to be one.
   */
  function show(kind, title, text = "", action = null) {
    waiting.push({ kind, title, text, action });
    if (waiting.length > SHOWN_MAX) {
      const fleeting = waiting.findIndex((toast) => !STAYING.includes(toast.kind) && !toast.action);
      const index = fleeting < 0 ? waiting.findIndex((toast) => !STAYING.includes(toast.kind)) : fleeting;
      if (index < 0) unseen += 1;
      waiting.splice(Math.max(index, 0), 1);
    }
    drawSoon();
  }

  function create({ kind, title, text, action }) {
    const stays = STAYING.includes(kind);
    const press = () => {
      toast.remove();
      drawOverflow();
      action.act();
    };
    const button = action && h("button", { type: "button", class: "quiet", "data-testid": "toast-button", "aria-label": `${action.label}: ${title}`, onclick: press }, action.label);
    const toast = h(
      "li",
      { class: "toast", "data-testid": "toast", "data-kind": kind, "data-stays": stays, "data-leads": Boolean(action) },
      h("div", {}, h("strong", {}, title), text ? h("p", {}, text) : null, button),
      h("button", { type: "button", class: "dismiss", "aria-label": `Dismiss: ${title}`, onclick: () => dismiss(toast) }, "×"),
    );
    if (!stays) expire(toast, action ? SHOWN_WITH_BUTTON_MS : SHOWN_MS);
    return toast;
  }

  /** Not while somebody points at it or has the focus in it. */
  function expire(toast, ms) {
    setTimeout(() => (toast.matches(":hover, :focus-within") ? expire(toast, SHOWN_MS) : dismiss(toast)), ms);
  }

  function dismiss(toast) {
    const neighbour = toast.contains(document.activeElement) && (toast.nextElementSibling ?? toast.previousElementSibling);
    toast.remove();
    if (neighbour) neighbour.querySelector(".dismiss").focus();
    if (!list.children.length) unseen = 0;
    drawOverflow();
  }

  function drawOverflow() {
    overflow.hidden = unseen === 0;
    overflow.textContent = `${unseen} more not shown; the ledger has them all`;
  }

  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
    const toast = document.activeElement.closest?.(".toast") ?? list.lastElementChild;
    if (toast) dismiss(toast);
  });

  return { show };
}
