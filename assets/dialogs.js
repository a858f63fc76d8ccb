/** Dialogs over the page: sheets about one subject, and questions. The browser keeps the focus in them. */

import { h, setText } from "./dom.js";
import { describe } from "./format.js";

let ids = 0;
/** Returns an id that no other element has. */
export const newId = (name) => `${name}-${++ids}`;

/** Creates a dialog that the caller fills. `onClose()` is called for every way of closing it. */
export function createSheet({ testid, onClose }) {
  const titleId = newId("title");
  const title = h("h2", { id: titleId });
  const body = h("div", { class: "sheet-body" });
  const close = h("button", { type: "button", class: "dismiss", "aria-label": "Close", onclick: () => root.close() }, "×");
  const root = h(
    "dialog",
    { class: "sheet", "data-testid": testid, "aria-labelledby": titleId },
    h("header", { class: "sheet-head" }, title, close),
    body,
    h("p", { class: "hidden-text", role: "status", "data-announcer": true }),
  );
  let focusBack = null;
  root.addEventListener("close", () => {
    // The focus returns to its former element, unless that was redrawn meanwhile.
    if (document.activeElement === document.body || root.contains(document.activeElement)) focusBack?.()?.focus();
    onClose();
  });
  document.body.append(root);

  /** `backTo()` returns the element that gets the focus afterwards. */
  function open(text, backTo) {
    focusBack = backTo;
    setText(title, text);
    if (!root.open) root.showModal();
    body.scrollTop = 0;
  }

  return { root, body, close, open, isOpen: () => root.open };
}

/**
 * Asks for confirmation before an action that cannot be undone; resolves to true if it is confirmed. `more` is an
 * element with further options.
 */
export function confirmAction({ title, text, more, action }) {
  const [titleId, textId] = [newId("title"), newId("text")];
  let isConfirmed = false;
  const confirm = () => {
    isConfirmed = true;
    root.close();
  };
  const root = h(
    "dialog",
    { class: "confirm", role: "alertdialog", "data-testid": "confirm", "aria-labelledby": titleId, "aria-describedby": textId },
    h("h2", { id: titleId }, title),
    h("p", { id: textId }, text),
    more,
    h(
      "div",
      { class: "buttons" },
      h("button", { type: "button", "data-testid": "confirm-cancel", autofocus: true, onclick: () => root.close() }, "Cancel"),
      h("button", { type: "button", class: "danger", "data-testid": "confirm-ok", onclick: confirm }, action),
    ),
  );
  document.body.append(root);
  root.showModal();
  return new Promise((resolve) => {
    root.addEventListener("close", () => {
      root.remove();
      resolve(isConfirmed);
    });
  });
}

/** A line beside a control that shows the result of an action. */
export function createNote() {
  const root = h("p", { class: "note", role: "status" });
  const write = (text, isError) => {
    root.classList.toggle("error-color", isError);
    setText(root, text);
  };
  return { root, say: (text) => write(text, false), fail: (title, error) => write(`${title}: ${describe(error)}`, true) };
}

/** Calls `act` unless its last call is still running; its button is shown as busy meanwhile. */
export function onceAtATime(button, act) {
  return async () => {
    if (button.ariaBusy) return;
    button.ariaBusy = "true";
    try {
      await act();
    } finally {
      button.ariaBusy = null;
    }
  };
}
