/** The dialog with the optimizer's suggestions and their results. */

import * as api from "./api.js";
import { confirmAction, createNote, createSheet } from "./dialogs.js";
import { h, perFrame, setText } from "./dom.js";
import { count } from "./format.js";
import { createSavingCard } from "./saving-card.js";
import { expectedSaving } from "./saving-format.js";

/** Limits how often the suggestions are fetched while calls are made. */
const REFRESH_PAUSE_MS = 2_000;
/** Limits the suggestions shown of each current status … */
const PRESENT_MAX = 1_000;
/** … and the number of past ones of each status that one press adds. */
const PAST_STEP = 20;
const PATH = "/api/ledger/optimizations";
const PRESENT = ["OPEN", "APPLIED"];
const PAST = ["DISMISSED", "WITHDRAWN", "REVERTED"];

/** `badge` is an element that shows the number of open suggestions; `labelOf(flowId, nodeId)` returns a node's name. */
export function createSavings({ badge, labelOf }) {
  let isOpen = false;
  let isLoaded = false;
  /** The newest known state of each suggestion, by id. */
  const known = new Map();
  const cards = new Map();
  /** Increases with each request and each message, so that outdated responses are ignored. */
  let latestRequest = 0;
  let isFetching = false;
  let isMore = false;
  /** The cursor of the next page of each past status; null if there is none. */
  let pastNext = null;

  const sheet = createSheet({ testid: "savings", onClose: () => (isOpen = false) });
  const note = createNote();
  const retry = h("button", { type: "button", hidden: true, onclick: () => show() }, "Retry");
  const openList = createList("Open", "saving-open", "No suggestions yet. They appear shortly after calls finish.");
  const appliedList = createList("Applied", "saving-applied", "No applied suggestions yet.");
  const pastItems = h("ol", { class: "budgets", "aria-label": "Dismissed, withdrawn and reverted" });
  const pastNote = createNote();
  const pastMore = h("button", { type: "button", hidden: true, "data-testid": "saving-more", onclick: () => fetchPast() }, "Load more");
  const pastSummary = h("summary", {}, "Dismissed, withdrawn and reverted");
  const past = h(
    "details",
    { "data-testid": "saving-past", ontoggle: () => past.open && !pastNext && fetchPast() },
    pastSummary,
    h("div", { class: "saving-part" }, pastNote.root, pastItems, h("div", { class: "buttons" }, pastMore)),
  );
  const parts = h("div", { class: "sheet-parts", hidden: true }, openList.root, appliedList.root, past);
  const description = "Suggestions that make your flows cheaper or faster, based on your calls. Amounts are estimates for 30 days, with their 95 % interval.";
  sheet.body.append(h("p", { class: "muted" }, description), note.root, retry, parts);

  /** Fetches soon, one time for all requests until then, and only while the dialog is open. */
  const fetchSoon = perFrame(() => isOpen && load().catch(() => {}), REFRESH_PAUSE_MS); // The connection line shows the error.

  /** Opens the dialog, at the suggestion `id` if there is one. */
  async function open(focusBack, id = null) {
    isOpen = true;
    note.say("");
    sheet.open("Savings", focusBack);
    if (isLoaded) draw();
    if ((await show()) && id !== null) focusOn(id, sheet.close);
  }

  async function show() {
    if (retry === document.activeElement) sheet.close.focus();
    retry.hidden = true;
    if (!isLoaded) note.say("Loading…");
    try {
      await load();
      note.say("");
      return true;
    } catch (error) {
      note.fail("Cannot load the suggestions", error);
      retry.hidden = false;
      return false;
    }
  }

  async function load() {
    const request = ++latestRequest;
    isFetching = true;
    const pages = await Promise.all(PRESENT.map((status) => api.get(`${PATH}?status=${status}&limit=${PRESENT_MAX}`))).finally(() => (isFetching = false));
    if (request !== latestRequest) return;
    const gone = new Set([...known.values()].filter(({ status }) => PRESENT.includes(status)).map(({ id }) => id));
    for (const item of pages.flatMap(({ items }) => items)) {
      known.set(item.id, item);
      gone.delete(item.id);
    }
    for (const id of gone) known.delete(id);
    // These suggestions are past now, and no message said so.
    if (gone.size && pastNext) refetchPast();
    isMore = (pages[0].next ?? null) !== null;
    isLoaded = true;
    retry.hidden = true;
    draw();
  }

  /** Receives a message, which is newer than any response still under way. */
  function receive(suggestion) {
    latestRequest += 1;
    const isNew = suggestion.status === "OPEN" && known.get(suggestion.id)?.status !== "OPEN";
    known.set(suggestion.id, suggestion);
    if (isFetching) load().catch(() => {}); // The connection line shows the error.
    draw();
    cards.get(suggestion.id)?.refreshTrial();
    if (isOpen && isNew) sheet.root.querySelector("[data-announcer]").textContent = `New suggestion: ${suggestion.title}. ${expectedSaving(suggestion)}`;
  }

  function refetchPast() {
    pastNext = null;
    if (past.open) fetchPast();
  }

  async function fetchPast() {
    const first = !pastNext;
    const wanted = first ? PAST.map((status) => [status, ""]) : Object.entries(pastNext).filter(([, next]) => next !== null);
    pastNote.say("Loading…");
    try {
      const pages = await Promise.all(wanted.map(([status, next]) => api.get(`${PATH}?status=${status}&limit=${PAST_STEP}${next && `&before=${next}`}`)));
      pastNext = Object.fromEntries(pages.map(({ next }, index) => [wanted[index][0], next ?? null]));
      // Messages that arrived meanwhile are newer.
      for (const item of pages.flatMap(({ items }) => items)) if (!known.has(item.id)) known.set(item.id, item);
      pastNote.say("");
      draw();
      pastNote.say(pastItems.children.length ? "" : "None.");
    } catch (error) {
      pastNote.fail("Cannot load these suggestions", error);
      pastMore.hidden = false;
    }
  }

  function draw() {
    const all = [...known.values()];
    const open = all.filter(({ status }) => status === "OPEN").sort(byGain);
    badge.hidden = open.length === 0;
    setText(badge.querySelector(".badge"), `${count(open.length)}${isMore ? "+" : ""}`);
    if (!isOpen || !isLoaded) return;
    parts.hidden = false;
    const focused = document.activeElement;
    for (const [id, card] of cards) {
      if (known.has(id)) continue;
      card.root.remove();
      cards.delete(id);
    }
    const most = Math.max(0, ...open.flatMap(amounts));
    drawInto(openList.items, open, most);
    drawInto(appliedList.items, all.filter(({ status }) => status === "APPLIED").sort(byAge), most);
    drawInto(pastItems, all.filter(({ status }) => PAST.includes(status)).sort(byAge), most);
    openList.update();
    appliedList.update();
    pastMore.hidden = !pastNext || Object.values(pastNext).every((next) => next === null);
    if (pastItems.children.length) pastNote.say("");
    // A moved element has lost the focus, and a removed one cannot have it.
    if (!sheet.root.contains(document.activeElement) && focused !== document.body) (focused.checkVisibility() ? focused : sheet.close).focus({ preventScroll: true });
  }

  function drawInto(list, suggestions, most) {
    suggestions.forEach((suggestion, index) => {
      const { id } = suggestion;
      if (!cards.has(id)) cards.set(id, createCard(id));
      const { root, update } = cards.get(id);
      update(suggestion, most);
      if (list.children[index] !== root) list.insertBefore(root, list.children[index] ?? null);
    });
  }

  function createCard(id) {
    const path = `${PATH}/${id}`;
    return createSavingCard({
      path,
      labelOf,
      onApply: (body) => act(id, () => api.post(`${path}/apply`, body), "was applied"),
      onDismiss: () => act(id, () => api.post(`${path}/dismiss`), "was dismissed"),
      onRevert: () => revert(id, path),
    });
  }

  async function revert(id, path) {
    const { title, flowName } = known.get(id);
    const isConfirmed = await confirmAction({
      title: "Revert this suggestion?",
      text: `“${flowName}” returns to its state before “${title}” was applied. Active runs continue unchanged.`,
      action: "Revert",
    });
    if (isConfirmed) await act(id, () => api.post(`${path}/revert`), "was reverted");
  }

  /** Runs an action. The focus then follows the suggestion, or moves to the next one if it is hidden. */
  async function act(id, send, result) {
    const next = cards.get(id).root.nextElementSibling?.dataset.savingId ?? null;
    // Drop the fields that lists do not have; their parts fetch them.
    const { changes, conflict, trial, ...suggestion } = await send();
    receive(suggestion);
    note.say(`“${suggestion.title}” ${result}.`);
    if (isOpen) focusOn(suggestion.status === "APPLIED" ? id : Number(next), pastSummary);
  }

  /** Focuses a suggestion, or `other` if it is hidden. */
  function focusOn(id, other) {
    const title = cards.get(id)?.title;
    (title?.checkVisibility() ? title : other).focus();
  }

  return { open, load, receive, refresh: () => isOpen && fetchSoon() };
}

function createList(name, testid, none) {
  const items = h("ol", { class: "budgets", "aria-label": name });
  const empty = h("p", { class: "empty" }, none);
  const root = h("section", { "data-testid": testid }, h("h3", {}, name), items, empty);
  const update = () => {
    items.hidden = items.children.length === 0;
    empty.hidden = !items.hidden;
  };
  return { root, items, update };
}

const gain = ({ savingPer30Days: saving }) => saving?.expectedUsd ?? 0;
/** Sorts by money saved, then by time saved. */
const byGain = (a, b) => gain(b) - gain(a) || (b.savingMs ?? 0) - (a.savingMs ?? 0) || b.id - a.id;
const byAge = (a, b) => Date.parse(b.changedAt) - Date.parse(a.changedAt) || b.id - a.id;
/** Returns the upper bounds of the saving, for the suggestion and all alternatives. */
const amounts = ({ savingPer30Days: saving, alternatives = [] }) => [saving, ...alternatives.map((it) => it.savingPer30Days)].filter(Boolean).map(({ highUsd }) => highUsd);
