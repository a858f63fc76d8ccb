/** The dialog with the keys of the gateway’s clients. The page holds a new key only until the dialog closes. */

import * as api from "./api.js";
import { confirmAction, createNote, createSheet, newId, onceAtATime } from "./dialogs.js";
import { h, perFrame, setText } from "./dom.js";
import { moment, plural } from "./format.js";
import { createKeyForm } from "./key-form.js";
import { createMeter } from "./meter.js";
import { copyButton, shortText } from "./texts.js";

/** Limits how often the keys are fetched while calls are made. */
const REFRESH_PAUSE_MS = 2_000;
const PATH = "/api/keys";
const GRACE_DEFAULT_S = 3_600;
/** The offered times that a replaced key stays valid, in seconds. */
const GRACES = [
  [0, "no time"],
  [GRACE_DEFAULT_S, "1 hour"],
  [86_400, "1 day"],
  [604_800, "7 days"],
  [2_592_000, "30 days"],
];

/** `flowNames()` returns `{ id, name }` of all flows. */
export function createKeys({ flowNames }) {
  let isOpen = false;
  let isLoaded = false;
  /** Increases with each request, so that outdated responses are ignored. */
  let latestRequest = 0;
  /** The newest list from the server, with complete `budgets`. */
  let keys = [];
  /** By id: { root, update }. */
  const cards = new Map();

  const sheet = createSheet({ testid: "keys", onClose: close });
  const note = createNote();
  const retry = h("button", { type: "button", hidden: true, onclick: () => load() }, "Retry");
  const createdKey = h("div", { class: "secret", "data-testid": "key-created", hidden: true });
  const list = h("ol", { class: "budgets", "aria-label": "Keys" });
  const empty = h("p", { class: "empty" }, "No keys yet.");
  const add = h("button", { type: "button", "data-testid": "key-add", onclick: () => edit(null) }, "Create key");
  const form = createKeyForm({ flowNames, onSave: save, onEnd: endEdit });
  const parts = h("div", { class: "sheet-parts", hidden: true }, createdKey, list, empty, h("div", { class: "buttons" }, add), form.root);
  const description =
    "A key grants a program access to the gateway only. The ledger shows the name of the key, and a budget can limit it. " +
    "On a server without a token, programs without a key have access too, and no key’s budget limits them.";
  sheet.body.append(h("p", { class: "muted" }, description), note.root, retry, parts);

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
    clearKey();
  }

  function clearKey() {
    createdKey.hidden = true;
    createdKey.replaceChildren();
  }

  async function load() {
    if (retry === document.activeElement) sheet.close.focus();
    retry.hidden = true;
    if (!isLoaded) note.say("Loading…");
    try {
      await fetchAll();
      note.say(form.isOpen() ? "You have unsaved changes." : "");
    } catch (error) {
      note.fail("Cannot load the keys", error);
      retry.hidden = false;
    }
  }

  async function fetchAll() {
    const number = ++latestRequest;
    const [{ items }, { budgets }] = await Promise.all([api.get(PATH), api.get("/api/budget")]);
    if (number !== latestRequest) return;
    keys = items.map((key) => ({ ...key, budgets: budgets.filter((budget) => budget.key === key.name) }));
    isLoaded = true;
    retry.hidden = true;
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
      if (!cards.has(id)) cards.set(id, newCard(id));
      const card = cards.get(id);
      card.update(key);
      if (list.children[index] !== card.root) list.insertBefore(card.root, list.children[index] ?? null);
    });
    list.hidden = keys.length === 0;
    empty.hidden = keys.length > 0;
  }

  const newCard = (id) =>
    createCard({ flowNames, onEdit: () => edit(keyOf(id)), onRotate: () => rotateKey(id), onDelete: () => deleteKey(id) });

  const keyOf = (id) => keys.find((key) => key.id === id);

  /** `key` is null for a new one. */
  function edit(key) {
    note.say("");
    clearKey();
    add.hidden = true;
    form.open(key);
  }

  async function save(id, key) {
    const saved = await (id === null ? api.post(PATH, key) : api.patch(`${PATH}/${id}`, key));
    if (!isOpen) return; // The dialog is closed; the user can create another key.
    if (id === null) drawCreated(saved);
    await fetchAll().catch(() => fetchSoon());
  }

  function endEdit(id, isSaved) {
    add.hidden = false;
    if (!isOpen) return;
    if (id !== null) {
      note.say(isSaved ? `“${keyOf(id)?.name}” was saved.` : "");
      return (cards.get(id)?.edit ?? add).focus();
    }
    const copy = createdKey.querySelector("button");
    note.say(isSaved && copy ? "Key created. Copy it now." : "");
    (isSaved && copy ? copy : add).focus();
  }

  function drawCreated({ name, key }) {
    const example = curl(key);
    createdKey.replaceChildren(
      h("h3", {}, `Key “${name}” (shown only once)`),
      shortText("key", key, "key-secret"),
      h("p", { class: "muted" }, "Use it as the API key of any OpenAI or Anthropic client. Example:"),
      h(
        "div",
        { class: "example" },
        h("pre", { tabindex: "0", role: "group", "aria-label": "Example with curl", "data-testid": "key-curl" }, example),
        copyButton("curl example", () => example),
      ),
    );
    createdKey.hidden = false;
  }

  async function rotateKey(id) {
    const { name } = keyOf(id);
    const graceId = newId("grace");
    const options = GRACES.map(([seconds, label]) => h("option", { value: seconds, selected: seconds === GRACE_DEFAULT_S }, label));
    const grace = h("select", { id: graceId, "data-testid": "key-grace" }, ...options);
    const isConfirmed = await confirmAction({
      title: "Replace this key?",
      text: `“${name}” gets a new key, with the same limits and budgets. The current key is refused after this time.`,
      more: h("div", { class: "form-field" }, h("label", { for: graceId }, "The current key stays valid for"), grace),
      action: "Replace key",
    });
    if (!isConfirmed || !isOpen) return;
    try {
      const rotated = await api.post(`${PATH}/${id}/rotate`, { graceSeconds: Number(grace.value) });
      if (!isOpen) return;
      drawCreated(rotated);
      await fetchAll().catch(() => fetchSoon());
      note.say("Key replaced. Copy the new one now.");
      createdKey.querySelector("button").focus();
    } catch (error) {
      note.fail("Cannot replace the key", error);
    }
  }

  async function deleteKey(id) {
    const { name, budgets } = keyOf(id);
    const names = `the ${budgets.length === 1 ? "budget" : "budgets"} ${budgets.map((budget) => `“${budget.name}”`).join(", ")}`;
    const alsoId = newId("also");
    const also = h("input", { type: "checkbox", id: alsoId, "data-testid": "key-with-budgets" });
    const budgetsNote = budgets.length ? " Its budgets stay for a later key of the same name, unless you delete them too." : "";
    const isConfirmed = await confirmAction({
      title: "Delete this key?",
      text: `Programs that use “${name}” will be refused. Its ledger rows stay.${budgetsNote}`,
      more: budgets.length ? h("div", { class: "form-field check" }, h("label", { for: alsoId }, `Also delete ${names}`), also) : null,
      action: "Delete key",
    });
    if (!isConfirmed || !isOpen) return;
    try {
      await api.remove(`${PATH}/${id}${also.checked ? "?with_budgets=true" : ""}`);
      clearKey();
      await fetchAll().catch(() => fetchSoon());
      note.say(also.checked ? `“${name}” and ${names} were deleted.` : `“${name}” was deleted.`);
      (add.hidden ? sheet.close : add).focus();
    } catch (error) {
      note.fail("Cannot delete the key", error);
    }
  }

  return { open, refresh: () => isOpen && fetchSoon(), poll: async () => void (isOpen && (await fetchAll())) };
}

/** One key. Updates happen in place, to keep the focus and the reader's position. */
function createCard({ flowNames, onEdit, onRotate, onDelete }) {
  const title = h("h3", {});
  const facts = ["Created", "Last used", "Expires", "Models", "Flows", "Per minute", "Former key"].map((word) => {
    const value = h("dd", {});
    return { value, root: h("div", {}, h("dt", {}, word), value) };
  });
  const editButton = h("button", { type: "button", "data-testid": "key-edit", onclick: onEdit }, "Edit");
  const rotateButton = h("button", { type: "button", "data-testid": "key-rotate", onclick: () => rotateOnce() }, "Replace…");
  const rotateOnce = onceAtATime(rotateButton, onRotate);
  const deleteButton = h("button", { type: "button", class: "danger", "data-testid": "key-delete", onclick: () => deleteOnce() }, "Delete…");
  const deleteOnce = onceAtATime(deleteButton, onDelete);
  const meters = h("div", { class: "budgets" });
  const root = h(
    "li",
    { class: "budget", "data-testid": "key" },
    h("div", { class: "budget-head" }, title, h("div", { class: "buttons" }, editButton, rotateButton, deleteButton)),
    h("dl", { class: "facts" }, ...facts.map((fact) => fact.root)),
    meters,
  );
  /** By the budget's name: { root, update }. */
  const shown = new Map();

  function update({ name, createdAt, lastUsedAt, expiresAt, budgets, ...limits }) {
    root.dataset.key = name;
    setText(title, name);
    editButton.ariaLabel = `Edit: ${name}`;
    rotateButton.ariaLabel = `Replace: ${name}`;
    deleteButton.ariaLabel = `Delete: ${name}`;
    const isExpired = expiresAt !== null && Date.parse(expiresAt) <= Date.now();
    const expiry = expiresAt === null ? "never" : `${isExpired ? "expired " : ""}${day(expiresAt)}`;
    const words = [moment(createdAt), lastUsedAt === null ? "never" : moment(lastUsedAt), expiry, ...limitWords(limits, flowNames())];
    facts.forEach((fact, at) => {
      setText(fact.value, words[at]);
      fact.root.hidden = words[at] === "";
    });
    facts[2].value.classList.toggle("error-color", isExpired);
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

  return { root, update, edit: editButton };
}

/** Describes the limits of a key; a text is empty if there is none. */
function limitWords({ models, flows, requestsPerMinute, tokensPerMinute, formerKeyValidUntil }, known) {
  const rates = [
    requestsPerMinute === null ? "" : plural(requestsPerMinute, "request"),
    tokensPerMinute === null ? "" : plural(tokensPerMinute, "token"),
  ];
  return [
    (models ?? []).join(", "),
    flows.map((flow) => known.find(({ id }) => id === flow)?.name ?? `flow ${flow}`).join(", "),
    rates.filter(Boolean).join(", "),
    formerKeyValidUntil === null ? "" : `valid until ${day(formerKeyValidUntil)}`,
  ];
}

function createOwnBudget() {
  const terms = h("p", { class: "muted" });
  const root = h("div", { class: "own-budget", "data-testid": "key-budget" }, terms);
  const meter = createMeter(root);

  function update(budget) {
    meter.update(budget);
    setText(terms, `Budget “${budget.name}”: ${budget.hard ? "hard" : "soft"} limit per ${budget.per}`);
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
