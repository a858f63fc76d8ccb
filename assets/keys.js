/** The dialog with the keys of the gateway’s clients. The page holds a new key only until the dialog closes. */

import * as api from "./api.js";
import { ask, createNote, createSheet, newId, onceAtATime } from "./dialogs.js";
import { h, perFrame, setText } from "./dom.js";
import { moment } from "./format.js";
import { createKeyForm } from "./key-form.js";
import { createMeter } from "./meter.js";
import { copyButton, shortText } from "./texts.js";

/** Limits how often the keys are fetched while calls are made. */
const REFRESH_PAUSE_MS = 2_000;
const PATH = "/api/keys";

export function createKeys() {
  let isOpen = false;
  let isLoaded = false;
  /** Increases with each request, so that outdated responses are ignored. */
  let asked = 0;
  /** The newest list from the server, with complete `budgets`. */
  let keys = [];
  /** By id: { root, update }. */
  const cards = new Map();

  const sheet = createSheet({ testid: "keys", onClose: close });
  const note = createNote();
  const again = h("button", { type: "button", hidden: true, onclick: () => load() }, "Try again");
  const once = h("div", { class: "secret", "data-testid": "key-once", hidden: true });
  const list = h("ol", { class: "budgets", "aria-label": "Keys" });
  const empty = h("p", { class: "empty" }, "There are no keys.");
  const add = h("button", { type: "button", "data-testid": "key-add", onclick: edit }, "Create a key");
  const form = createKeyForm({ onSave: make, onEnd: endEdit });
  const parts = h("div", { class: "sheet-parts", hidden: true }, once, list, empty, h("div", { class: "buttons" }, add), form.root);
  const what =
    "Each opens the gateway (/v1) to a program, and nothing else; its name is in the ledger, and a budget can be for it alone. " +
    "A server without a token also lets programs in that come without a key: no key’s budget holds those.";
  sheet.body.append(h("p", { class: "muted" }, what), note.root, again, parts);

  /** Fetches soon, one time for all requests until then, and only while the dialog is open. */
  const fetchSoon = perFrame(() => isOpen && fetchAll().catch(() => {}), REFRESH_PAUSE_MS); // The connection line shows the error.

  function open(focusBack) {
    isOpen = true;
    sheet.open("Keys", focusBack);
    return load();
  }

  /** Closing the dialog removes the key from the page. */
  function close() {
    isOpen = false;
    forget();
  }

  function forget() {
    once.hidden = true;
    once.replaceChildren();
  }

  async function load() {
    if (again === document.activeElement) sheet.close.focus();
    again.hidden = true;
    if (!isLoaded) note.say("Loading…");
    try {
      await fetchAll();
      note.say(form.isOpen() ? "The key that you had begun is not made yet." : "");
    } catch (error) {
      note.fail("The keys are not there", error);
      again.hidden = false;
    }
  }

  async function fetchAll() {
    const number = ++asked;
    const [{ items }, { budgets }] = await Promise.all([api.get(PATH), api.get("/api/budget")]);
    if (number !== asked) return;
    keys = items.map((key) => ({ ...key, budgets: budgets.filter((budget) => budget.key === key.name) }));
    isLoaded = true;
    again.hidden = true;
    parts.hidden = false;
    draw();
  }

  function draw() {
    const ids = new Set(keys.map(({ id }) => id));
    for (const [id, card] of cards) {
      if (ids.has(id)) continue;
      card.root.remove();
      cards.delete(id);
    }
    keys.forEach((key, index) => {
      const { id } = key;
      if (!cards.has(id)) cards.set(id, createCard({ onRemove: () => remove(id) }));
      const card = cards.get(id);
      card.update(key);
      if (list.children[index] !== card.root) list.insertBefore(card.root, list.children[index] ?? null);
    });
    list.hidden = keys.length === 0;
    empty.hidden = keys.length > 0;
  }

  function edit() {
    note.say("");
    forget();
    add.hidden = true;
    form.open();
  }

  async function make(key) {
    const made = await api.post(PATH, key);
    if (!isOpen) return; // The dialog is closed; the user can create another key.
    drawOnce(made);
    await fetchAll().catch(() => fetchSoon());
  }

  function endEdit(isMade) {
    add.hidden = false;
    if (!isOpen) return;
    const copy = once.querySelector("button");
    note.say(isMade && copy ? "The key was made. Copy it now." : "");
    (isMade && copy ? copy : add).focus();
  }

  function drawOnce({ name, key }) {
    const example = curl(key);
    once.replaceChildren(
      h("h3", {}, `The key “${name}”, shown this once`),
      shortText("the key", key, "key-secret"),
      h("p", { class: "muted" }, "As the API key of any client of OpenAI or Anthropic. For example:"),
      h(
        "div",
        { class: "example" },
        h("pre", { tabindex: "0", role: "group", "aria-label": "Example with curl", "data-testid": "key-curl" }, example),
        copyButton("the example", () => example),
      ),
    );
    once.hidden = false;
  }

  async function remove(id) {
    const { name, budgets } = keys.find((key) => key.id === id);
    const names = `the ${budgets.length === 1 ? "budget" : "budgets"} ${budgets.map((budget) => `“${budget.name}”`).join(", ")}`;
    const alsoId = newId("also");
    const also = h("input", { type: "checkbox", id: alsoId, "data-testid": "key-with-budgets" });
    const stay = budgets.length ? " What is set for it in Budgets stays, for a key that gets its name again." : "";
    const isSure = await ask({
      title: "Remove this key?",
      text: `Programs that use “${name}” are refused from then on. Its rows stay in the ledger.${stay}`,
      more: budgets.length ? h("div", { class: "form-field check" }, h("label", { for: alsoId }, `Remove ${names} as well`), also) : null,
      action: "Remove key",
    });
    if (!isSure || !isOpen) return;
    try {
      await api.remove(`${PATH}/${id}${also.checked ? "?with_budgets=true" : ""}`);
      forget();
      await fetchAll().catch(() => fetchSoon());
      note.say(`“${name}” was removed${also.checked ? `, and ${names}` : ""}.`);
      (add.hidden ? sheet.close : add).focus();
    } catch (error) {
      note.fail("The key was not removed", error);
    }
  }

  return { open, refresh: () => isOpen && fetchSoon(), poll: async () => void (isOpen && (await fetchAll())) };
}

/** One key. Updates happen in place, to keep the focus and the reader's position. */
function createCard({ onRemove }) {
  const title = h("h3", {});
  const facts = ["Created", "Last used", "Expires"].map((word) => ({ word, told: h("dd", {}) }));
  const removeButton = h("button", { type: "button", class: "danger", "data-testid": "key-remove", onclick: () => removing() }, "Remove…");
  const removing = onceAtATime(removeButton, onRemove);
  const meters = h("div", { class: "budgets" });
  const root = h(
    "li",
    { class: "budget", "data-testid": "key" },
    h("div", { class: "budget-head" }, title, h("div", { class: "buttons" }, removeButton)),
    h("dl", { class: "facts" }, ...facts.map(({ word, told }) => h("div", {}, h("dt", {}, word), told))),
    meters,
  );
  /** By the budget's name: { root, update }. */
  const shown = new Map();

  function update({ name, createdAt, lastUsedAt, expiresAt, budgets }) {
    root.dataset.key = name;
    setText(title, name);
    removeButton.ariaLabel = `Remove: ${name}`;
    const isOver = expiresAt !== null && Date.parse(expiresAt) <= Date.now();
    const expiry = expiresAt === null ? "never" : `${isOver ? "expired " : ""}${day(expiresAt)}`;
    const words = [moment(createdAt), lastUsedAt === null ? "not yet" : moment(lastUsedAt), expiry];
    facts.forEach(({ told }, at) => setText(told, words[at]));
    facts[2].told.classList.toggle("refused", isOver);
    for (const [known, { root: gone }] of shown) {
      if (budgets.some((budget) => budget.name === known)) continue;
      gone.remove();
      shown.delete(known);
    }
    for (const budget of budgets) {
      if (!shown.has(budget.name)) shown.set(budget.name, createOwnBudget());
      const own = shown.get(budget.name);
      own.update(budget);
      if (own.root.parentElement !== meters) meters.append(own.root);
    }
    meters.hidden = budgets.length === 0;
  }

  return { root, update };
}

function createOwnBudget() {
  const terms = h("p", { class: "muted" });
  const root = h("div", { class: "own-budget", "data-testid": "key-budget" }, terms);
  const meter = createMeter(root);

  function update(budget) {
    meter.update(budget);
    setText(terms, `Budget “${budget.name}”: ${budget.hard ? "hard" : "soft"}, per ${budget.per}`);
  }

  return { root, update };
}

const days = new Intl.DateTimeFormat("en-US", { dateStyle: "medium", timeStyle: "short", hourCycle: "h23" });
const day = (rfc3339) => days.format(new Date(rfc3339));

/** Uses the browser's address for the server, because a proxy may hide that address from the server. */
const curl = (key) =>
  [
    `curl '${location.origin}/v1/chat/completions'`,
    `-H 'Authorization: Bearer ${key}'`,
    `-d '{"model": "echo/echo-1", "messages": [{"role": "user", "content": "Hi"}]}'`,
  ].join(" \\\n  ");
