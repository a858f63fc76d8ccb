/** A flow's webhook. The page holds its secret only until the dialog closes. */

import * as api from "./api.js";
import { confirmAction, createNote, onceAtATime } from "./dialogs.js";
import { h, setText } from "./dom.js";
import { moment } from "./format.js";
import { stringify } from "./json.js";
import { copyButton, shortText } from "./texts.js";

export function createWebhook() {
  /** The content: { flow, input, path, hook }; `hook` is null if the flow has none. */
  let shown = null;
  const note = createNote();
  const button = (testid, text, act, kind) => {
    const element = h("button", { type: "button", class: kind, "data-testid": testid, onclick: () => run() }, text);
    const run = onceAtATime(element, act);
    return element;
  };
  const create = button("webhook-create", "Create webhook", () => saveWebhook("Cannot create the webhook"), "primary");
  const replace = button("webhook-replace", "Replace secret…", replaceSecret);
  const remove = button("webhook-delete", "Delete…", deleteWebhook, "danger");
  const facts = h("dl", { class: "facts" });
  const secret = h("div", { class: "secret", "data-testid": "webhook-created", hidden: true });
  const root = h(
    "section",
    { "aria-labelledby": "webhook-title", "data-testid": "webhook" },
    h("h3", { id: "webhook-title" }, "Webhook"),
    h("p", { class: "muted" }, "Another program can run this flow with the webhook’s secret. It does not need the server’s token."),
    facts,
    secret,
    note.root,
    h("div", { class: "buttons" }, create, replace, remove),
  );

  function show(content) {
    shown = content;
    note.say("");
    draw();
  }

  function hide() {
    shown = null;
    clearSecret();
  }

  function clearSecret() {
    secret.hidden = true;
    secret.replaceChildren();
  }

  function draw() {
    const { hook } = shown;
    create.hidden = hook !== null;
    replace.hidden = remove.hidden = facts.hidden = hook === null;
    facts.replaceChildren();
    if (!hook) return;
    facts.append(
      h("div", { class: "whole" }, h("dt", {}, "URL"), h("dd", {}, shortText("webhook URL", urlOf(hook), "webhook-url"))),
      h("div", {}, h("dt", {}, "Secret created"), h("dd", {}, h("time", { datetime: hook.secretCreatedAt }, moment(hook.secretCreatedAt)))),
    );
  }

  /** Creates the webhook, or a new secret for it. */
  async function saveWebhook(errorTitle) {
    const opened = shown;
    try {
      const created = await api.put(opened.path);
      if (shown !== opened) return; // The dialog shows another flow or is closed; the user can create another secret.
      opened.hook = { slug: created.slug, secretCreatedAt: new Date().toISOString() };
      draw();
      drawSecret(created.secret);
      note.say("Secret created. Copy it now.");
      opened.hook = await api.get(opened.path).catch(() => opened.hook); // For the server's timestamps, if it responds.
      if (shown === opened) setText(facts.querySelector("time"), moment(opened.hook.secretCreatedAt));
    } catch (error) {
      note.fail(errorTitle, error);
    }
  }

  function drawSecret(text) {
    const example = curl(urlOf(shown.hook), text, shown.input);
    const copy = shortText("webhook secret", text, "webhook-secret");
    secret.replaceChildren(
      h("h4", {}, "Secret (shown only once)"),
      copy,
      h(
        "p",
        { class: "muted" },
        "Use a new Idempotency-Key for each event, and the same key for a retry. Within 24 hours, deliveries with the same key start only one run. Example:",
      ),
      h(
        "div",
        { class: "example" },
        h("pre", { tabindex: "0", role: "group", "aria-label": "Example with curl", "data-testid": "webhook-curl" }, example),
        copyButton("curl example", () => example),
      ),
    );
    secret.hidden = false;
    copy.querySelector("button").focus();
  }

  async function replaceSecret() {
    const isConfirmed = await confirmAction({
      title: "Replace the secret?",
      text: `Programs that use the current secret of “${shown.flow.name}” will be refused. The URL stays the same.`,
      action: "Replace secret",
    });
    if (isConfirmed && shown) await saveWebhook("Cannot replace the secret");
  }

  async function deleteWebhook() {
    const isConfirmed = await confirmAction({
      title: "Delete the webhook?",
      text: `Programs that use it can no longer run “${shown.flow.name}”. A new webhook will have another URL.`,
      action: "Delete webhook",
    });
    if (!isConfirmed || !shown) return;
    const opened = shown;
    try {
      await api.remove(opened.path);
      if (shown !== opened) return;
      opened.hook = null;
      clearSecret();
      draw();
      create.focus();
      note.say("Webhook deleted.");
    } catch (error) {
      note.fail("Cannot delete the webhook", error);
    }
  }

  return { root, show, hide };
}

/** Uses the browser's address for the server, because a proxy may hide that address from the server. */
const urlOf = ({ slug }) => `${location.origin}/hooks/${slug}`;

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

const curl = (url, secret, input) =>
  [
    `curl ${quoted(url)}`,
    `-H ${quoted(`X-Flowledger-Secret: ${secret}`)}`,
    "-H 'Idempotency-Key: order-17'",
    `-d ${quoted(stringify(input))}`,
  ].join(" \\\n  ");
