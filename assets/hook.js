/** A flow's webhook. The page holds its secret only until the dialog closes. */

import * as api from "./api.js";
import { ask, createNote, onceAtATime } from "./dialogs.js";
import { h, setText } from "./dom.js";
import { moment } from "./format.js";
import { copyButton, shortText } from "./texts.js";

export function createHook() {
  /** The content: { flow, input, path, hook }; `hook` is null if the flow has none. */
  let shown = null;
  const note = createNote();
  const button = (testid, text, act, kind) => {
    const made = h("button", { type: "button", class: kind, "data-testid": testid, onclick: () => run() }, text);
    const run = onceAtATime(made, act);
    return made;
  };
  const create = button("hook-create", "Create webhook", () => make("No webhook was made"), "primary");
  const renew = button("hook-renew", "New secret…", replaceSecret);
  const remove = button("hook-remove", "Remove…", removeHook, "danger");
  const facts = h("dl", { class: "facts" });
  const secret = h("div", { class: "secret", "data-testid": "hook-once", hidden: true });
  const root = h(
    "section",
    { "aria-labelledby": "hook-title", "data-testid": "hook" },
    h("h3", { id: "hook-title" }, "Webhook"),
    h("p", { class: "muted" }, "Lets another program run this flow with a secret for it alone, without the server’s token."),
    facts,
    secret,
    note.root,
    h("div", { class: "buttons" }, create, renew, remove),
  );

  function show(what) {
    shown = what;
    note.say("");
    draw();
  }

  function hide() {
    shown = null;
    forget();
  }

  function forget() {
    secret.hidden = true;
    secret.replaceChildren();
  }

  function draw() {
    const { hook } = shown;
    create.hidden = hook !== null;
    renew.hidden = remove.hidden = facts.hidden = hook === null;
    facts.replaceChildren();
    if (!hook) return;
    facts.append(
      h("div", { class: "whole" }, h("dt", {}, "POST to"), h("dd", {}, shortText("the address", addressOf(hook), "hook-url"))),
      h("div", {}, h("dt", {}, "Secret made"), h("dd", {}, h("time", { datetime: hook.secretCreatedAt }, moment(hook.secretCreatedAt)))),
    );
  }

  async function make(whatFailed) {
    const asked = shown;
    try {
      const made = await api.put(asked.path);
      if (shown !== asked) return; // The dialog shows another flow or is closed; the user can create another secret.
      asked.hook = { slug: made.slug, secretCreatedAt: new Date().toISOString() };
      draw();
      drawSecret(made.secret);
      note.say("The secret was made. Copy it now.");
      asked.hook = await api.get(asked.path).catch(() => asked.hook); // For the server's timestamps, if it answers.
      if (shown === asked) setText(facts.querySelector("time"), moment(asked.hook.secretCreatedAt));
    } catch (error) {
      note.fail(whatFailed, error);
    }
  }

  function drawSecret(text) {
    const example = curl(addressOf(shown.hook), text, shown.input);
    const copy = shortText("the secret", text, "hook-secret");
    secret.replaceChildren(
      h("h4", {}, "The secret, shown this once"),
      copy,
      h(
        "p",
        { class: "muted" },
        "For example. Deliveries with the same key within 24 hours are one: a new key for each new thing, the same key to try again.",
      ),
      h(
        "div",
        { class: "example" },
        h("pre", { tabindex: "0", role: "group", "aria-label": "Example with curl", "data-testid": "hook-curl" }, example),
        copyButton("the example", () => example),
      ),
    );
    secret.hidden = false;
    copy.querySelector("button").focus();
  }

  async function replaceSecret() {
    const isSure = await ask({
      title: "Make a new secret?",
      text: `Programs that use the present secret of “${shown.flow.name}” are refused from then on. The address stays.`,
      action: "Make new secret",
    });
    if (isSure && shown) await make("The secret is still the old one");
  }

  async function removeHook() {
    const isSure = await ask({
      title: "Remove the webhook?",
      text: `Programs that use it can no longer run “${shown.flow.name}”. A webhook that is created later has another address.`,
      action: "Remove webhook",
    });
    if (!isSure || !shown) return;
    const asked = shown;
    try {
      await api.remove(asked.path);
      if (shown !== asked) return;
      asked.hook = null;
      forget();
      draw();
      create.focus();
      note.say("The webhook was removed.");
    } catch (error) {
      note.fail("The webhook was not removed", error);
    }
  }

  return { root, show, hide };
}

/** Uses the browser's address for the server, because a proxy may hide that address from the server. */
const addressOf = ({ slug }) => `${location.origin}/hooks/${slug}`;

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

const curl = (address, secret, input) =>
  [
    `curl ${quoted(address)}`,
    `-H ${quoted(`X-Flowledger-Secret: ${secret}`)}`,
    "-H 'Idempotency-Key: order-17'",
    `-d ${quoted(JSON.stringify(input))}`,
  ].join(" \\\n  ");
