/** A suggestion's change to its flow, before and after, with the button that applies it. */

import { createNote, onceAtATime } from "./dialogs.js";
import { h } from "./dom.js";

/** `fetch()` returns the suggestion with its `changes`; `onApply(version)` applies the version that was shown. */
export function createChange({ id, fetch, onApply }) {
  const note = createNote();
  const list = h("ul", { class: "changes", "aria-label": "What it changes" });
  const conflict = h("p", { class: "refused", "data-testid": "saving-conflict", hidden: true });
  const apply = h("button", { type: "button", class: "primary", "data-testid": "saving-apply", hidden: true, onclick: () => applyOnce() }, "Apply");
  const again = h("button", { type: "button", "data-testid": "saving-look-again", hidden: true, onclick: () => open() }, "Look again");
  const root = h(
    "div",
    { class: "saving-part", id, role: "group", "aria-label": "The change", "data-testid": "saving-change", hidden: true },
    list,
    conflict,
    note.root,
    h("div", { class: "buttons" }, again, apply),
  );
  /** The text of the change on display. */
  let seen = "";
  /** Increases with each request, so that outdated responses are ignored. */
  let asked = 0;
  const applyOnce = onceAtATime(apply, applySeen);

  async function open() {
    root.hidden = false;
    const number = ++asked;
    const hadFocus = root.contains(document.activeElement);
    note.say("Loading…");
    try {
      const whole = await fetch();
      if (number !== asked) return;
      note.say("");
      draw(whole);
    } catch (error) {
      if (number !== asked) return;
      draw({ status: "", changes: [] });
      note.fail("The change is not there", error);
      again.hidden = false;
    }
    if (hadFocus) (apply.hidden ? again : apply).focus();
  }

  function close() {
    asked += 1;
    root.hidden = true;
  }

  function draw(whole) {
    seen = asText(whole);
    const canApply = ["OPEN", "DISMISSED"].includes(whole.status);
    list.replaceChildren(...whole.changes.map(drawLine));
    list.hidden = whole.changes.length === 0;
    conflict.textContent = whole.conflict ? `It cannot be applied as things are: ${whole.conflict}` : "";
    conflict.hidden = !whole.conflict || !canApply;
    apply.hidden = Boolean(whole.conflict) || !canApply;
    again.hidden = conflict.hidden;
  }

  /** Fetches again and applies only the change on display. The server refuses later changes, by the version. */
  async function applySeen() {
    const number = ++asked;
    note.say("");
    try {
      const whole = await fetch();
      if (number !== asked) return;
      if (asText(whole) !== seen) {
        draw(whole);
        note.fail("Not applied", { message: "something has changed meanwhile; this is how it is now" });
        (apply.hidden ? again : apply).focus();
        return;
      }
      await onApply(whole.version);
    } catch (error) {
      note.fail("Not applied", error);
    }
  }

  return { root, open, close, isOpen: () => !root.hidden };
}

const asText = ({ changes, conflict }) => JSON.stringify([changes, conflict ?? null]);

function drawLine({ what, key, before, after }) {
  return h(
    "li",
    {},
    h("p", {}, what, key === null ? null : h("code", {}, ` ${key}`)),
    h("div", { class: "sides" }, drawSide("before", "−", before), drawSide("after", "+", after)),
  );
}

function drawSide(name, sign, value) {
  const text = typeof value === "string" ? value : JSON.stringify(value, null, 2);
  return h(
    "div",
    { class: `side ${name}`, "data-testid": `change-${name}` },
    h("span", { "aria-hidden": "true" }, `${sign} `),
    h("span", { class: "hidden-text" }, `${name}: `),
    value === null ? h("span", { class: "muted" }, "not there") : h("code", {}, text),
  );
}
