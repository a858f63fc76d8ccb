/** A suggestion's change to its flow, before and after, with the button that applies it. */

import { createNote, onceAtATime } from "./dialogs.js";
import { h } from "./dom.js";
import { stringify } from "./json.js";

/** `fetch()` returns the suggestion with its `changes`; `onApply(version)` applies the version that was shown. */
export function createChange({ id, fetch, onApply }) {
  const note = createNote();
  const list = h("ul", { class: "changes", "aria-label": "Changes" });
  const conflict = h("p", { class: "error-color", "data-testid": "saving-conflict", hidden: true });
  const apply = h("button", { type: "button", class: "primary", "data-testid": "saving-apply", hidden: true, onclick: () => applyOnce() }, "Apply");
  const reload = h("button", { type: "button", "data-testid": "saving-reload", hidden: true, onclick: () => open() }, "Reload");
  const root = h(
    "div",
    { class: "saving-part", id, role: "group", "aria-label": "Change", "data-testid": "saving-change", hidden: true },
    list,
    conflict,
    note.root,
    h("div", { class: "buttons" }, reload, apply),
  );
  /** The text of the change on display. */
  let shownText = "";
  /** Increases with each request, so that outdated responses are ignored. */
  let latestRequest = 0;
  const applyOnce = onceAtATime(apply, applyShown);

  async function open() {
    root.hidden = false;
    const request = ++latestRequest;
    const hadFocus = root.contains(document.activeElement);
    note.say("Loading…");
    try {
      const details = await fetch();
      if (request !== latestRequest) return;
      note.say("");
      draw(details);
    } catch (error) {
      if (request !== latestRequest) return;
      draw({ status: "", changes: [] });
      note.fail("Cannot load the change", error);
      reload.hidden = false;
    }
    if (hadFocus) (apply.hidden ? reload : apply).focus();
  }

  function close() {
    latestRequest += 1;
    root.hidden = true;
  }

  function draw(details) {
    shownText = asText(details);
    const canApply = ["OPEN", "DISMISSED"].includes(details.status);
    list.replaceChildren(...details.changes.map(drawLine));
    list.hidden = details.changes.length === 0;
    conflict.textContent = details.conflict ? `Cannot apply: ${details.conflict}` : "";
    conflict.hidden = !details.conflict || !canApply;
    apply.hidden = Boolean(details.conflict) || !canApply;
    reload.hidden = conflict.hidden;
  }

  /** Fetches again and applies only the change on display. The server refuses later changes, by the version. */
  async function applyShown() {
    const request = ++latestRequest;
    note.say("");
    try {
      const details = await fetch();
      if (request !== latestRequest) return;
      if (asText(details) !== shownText) {
        draw(details);
        note.fail("Not applied", { message: "the change has been updated; check it and apply it again" });
        (apply.hidden ? reload : apply).focus();
        return;
      }
      await onApply(details.version);
    } catch (error) {
      note.fail("Cannot apply", error);
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
  const text = typeof value === "string" ? value : stringify(value, 2);
  return h(
    "div",
    { class: `side ${name}`, "data-testid": `change-${name}` },
    h("span", { "aria-hidden": "true" }, `${sign} `),
    h("span", { class: "hidden-text" }, `${name}: `),
    value === null ? h("span", { class: "muted" }, "not set") : h("code", {}, text),
  );
}
