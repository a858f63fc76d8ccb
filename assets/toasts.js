/** Short notices in the corner. */

import { h, perFrame } from "./dom.js";

const SHOWN_MAX = 4;
const SHOWN_MS = 5_000;
/** A toast with a button stays longer, so that users can reach the button. */
const SHOWN_WITH_BUTTON_MS = 20_000;
/** Faster toasts are shown together; otherwise users could not read them. */
const DRAW_PAUSE_MS = 300;
/** These stay until the user dismisses them. Of the others, those with a button are removed last. */
const STAYING = ["failed", "error", "warning"];

/** Returns the parts of a title, names in elements of their own: a mark of direction in a name ends with it. */
const isolated = (title) => [title].flat().map((part) => (part.name === undefined ? part : h("bdi", {}, part.name)));

const plain = (title) => [title].flat().map((part) => part.name ?? part).join("");

/** `list` is the live region that contains the toasts; `overflow` shows the number of toasts that did not fit. */
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
   * `kind`: started, completed, failed, cancelled, saving, warning or error. `title` is a string, or a list of strings
   * and names (`{ name }`). `action` is `{ label, act }` of an optional button.
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
    const button = action && h("button", { type: "button", class: "quiet", "data-testid": "toast-button", "aria-label": `${action.label}: ${plain(title)}`, onclick: press }, action.label);
    const toast = h(
      "li",
      { class: "toast", "data-testid": "toast", "data-kind": kind, "data-stays": stays, "data-leads": Boolean(action) },
      h("div", {}, h("strong", {}, ...isolated(title)), text ? h("p", {}, text) : null, button),
      h("button", { type: "button", class: "dismiss", "aria-label": `Dismiss: ${plain(title)}`, onclick: () => dismiss(toast) }, "×"),
    );
    if (!stays) expire(toast, action ? SHOWN_WITH_BUTTON_MS : SHOWN_MS);
    return toast;
  }

  /** Waits while the toast has the pointer or the focus. */
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
    overflow.textContent = `${unseen} more not shown`;
  }

  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
    const toast = document.activeElement.closest?.(".toast") ?? list.lastElementChild;
    if (toast) dismiss(toast);
  });

  return { show };
}
