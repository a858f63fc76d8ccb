/** Texts from users and models, shown verbatim: folded if they are long, with a copy button. */

import { h, setText } from "./dom.js";
import { plural } from "./format.js";

/** A text with more characters or lines is folded at first. */
const SHORT_CHARS = 300;
const SHORT_LINES = 6;
const COPIED_MS = 2_000;

/** A button that copies `text()`; `name` is the name of the text for screen readers. */
export function copyButton(name, text) {
  let timer = 0;
  const copy = async () => {
    const result = (await copyText(text(), button)) ? "Copied" : "Copy failed";
    setText(button, result);
    const announcer = button.closest("dialog")?.querySelector("[data-announcer]");
    if (announcer) announcer.textContent = `${result}: ${name}`;
    clearTimeout(timer);
    timer = setTimeout(() => {
      setText(button, "Copy");
      if (announcer) announcer.textContent = "";
    }, COPIED_MS);
  };
  const button = h("button", { type: "button", class: "copy", "aria-label": `Copy: ${name}`, onclick: copy }, "Copy");
  return button;
}

/** Browsers allow the clipboard API only on localhost and HTTPS; elsewhere `execCommand` copies. */
async function copyText(text, button) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const field = h("textarea", { class: "hidden-text", readonly: true });
    field.value = text;
    button.after(field); // Inside the same dialog, because only its elements can have the focus.
    field.select();
    const isCopied = document.execCommand("copy");
    field.remove();
    button.focus();
    return isCopied;
  }
}

/** One line of text, and a button that copies it. */
export function shortText(name, text, testid) {
  return h("div", { class: "short-text" }, h("code", { "data-testid": testid }, text), copyButton(name, () => text));
}

/**
 * A text under its name. `folds` remembers under `key` whether the user folded or unfolded it, for the next drawing.
 */
export function longText(name, text, { folds, key, testid }) {
  const isShort = text.length <= SHORT_CHARS && text.split("\n", SHORT_LINES + 1).length <= SHORT_LINES;
  const summary = h("summary", {}, name, h("span", { class: "muted" }, ` ${plural(text.length, "character")}`));
  const details = h(
    "details",
    { open: folds.get(key) ?? isShort, "data-testid": testid },
    summary,
    h("pre", { tabindex: "0", role: "group", "aria-label": name }, text),
  );
  summary.addEventListener("click", () => folds.set(key, !details.open));
  return h("div", { class: "long-text" }, details, copyButton(name, () => text));
}
