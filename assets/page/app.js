/** The page: its frame, the view of the present address, and the live connection. Start reading here. */

import { html, render, useEffect, useErrorBoundary, useRef, useState } from "./vendor/preact.js";
import * as api from "./api.js";
import { connect } from "./live.js";
import { connection, flowName, freshness, isHelpShown, navigate, publish, rememberFlows, route, settings, useStore } from "./state.js";
import { Dialog, Empty, ErrorNote, Loading, Page, Questions, Toasts, toast } from "./ui.js";

/** If there is no connection after this time, the page shows data without one, and polls. */
const POLL_AFTER_MS = 5_000;
const POLL_EVERY_MS = 5_000;
/** A failure replayed after a reconnect shows a toast only if it is younger than this. */
const TOAST_AGE_MAX_MS = 30_000;
/** A key after `g` counts if it follows within this time. */
const SEQUENCE_MS = 1_500;

/** View, label, key after `g`, path of its icon (24 × 24), module. */
const VIEWS = [
  ["overview", "Overview", "o", "M4 13h6V4H4zm0 7h6v-5H4zm10 0h6v-9h-6zm0-16v5h6V4z", () => import("./views/overview.js")],
  ["flows", "Flows", "f", "M5 3h5v5H5zm9 6.500h5v5h-5zM5 16h5v5H5zM7.500 8v8M10 5.500h3q3 0 3.500 4M10 18.500h3q3 0 3.500-4", () => import("./views/flows.js")],
  ["runs", "Runs", "r", "M7 4.500v15l12-7.500z", () => import("./views/runs.js")],
  ["calls", "Calls", "c", "M4 6h16M4 12h16M4 18h10", () => import("./views/calls.js")],
  ["savings", "Savings", "s", "M12 3v18M16.500 7.500c-1-2-9-3-9 1s9 2.500 9 6.500-8 3.500-9.500.5", () => import("./views/savings.js")],
  ["budgets", "Budgets", "b", "M4 17a8 8 0 1 1 16 0M12 17l4-6", () => import("./views/budgets.js")],
  ["connect", "Connect", "k", "M9 7V3m6 4V3M6.500 7h11v4a5.500 5.500 0 0 1-11 0zM12 16.500V21", () => import("./views/connect.js")],
  ["settings", "Settings", "t", "M4 7h9m4 0h3M4 17h3m4 0h9M15 4.500v5m-6 5v5", () => import("./views/settings.js")],
];
/** Views in the bar of a phone; the others are behind "More". */
const BAR_VIEWS = ["overview", "flows", "runs", "calls"];
/** The details of one object have a module of their own. */
const DETAILS = { flows: () => import("./views/flow.js"), runs: () => import("./views/run.js") };

const pathOf = (view) => (view === "overview" ? "/" : `/${view}`);

/** Loads the module of a view once; its `default` is a component. */
const loaded = new Map();

function useView({ view, id }) {
  const name = id === null ? view : `${view}/`;
  const [, renderAgain] = useState(0);
  useEffect(() => {
    if (loaded.has(name)) return;
    const load = id === null ? VIEWS.find(([known]) => known === view)?.[4] : DETAILS[view];
    if (!load) return;
    load().then(
      (module) => loaded.set(name, { View: module.default }),
      (error) => loaded.set(name, { error }),
    ).finally(() => renderAgain((turn) => turn + 1));
  }, [name]);
  const isKnown = id === null ? VIEWS.some(([known]) => known === view) : view in DETAILS;
  return { ...(isKnown ? loaded.get(name) : { View: NotFound }), name };
}

const NotFound = () => html`<${Page} title="Page not found"><${Empty} title="This address does not exist."><p><a href="/">Go to the overview</a></p><//><//>`;

/** Shows the view of the address; an error in it leaves the rest of the page usable. */
function View({ place }) {
  const { View: Shown, error: loadError, name } = useView(place);
  const [error, reset] = useErrorBoundary((thrown) => console.error(thrown));
  useEffect(() => reset(), [place.path]);
  if (error || loadError) return html`<${Page} title="Error"><${ErrorNote} title="This view cannot be shown" error=${error ?? loadError} onRetry=${() => location.reload()} /><//>`;
  if (!Shown) return html`<${Loading} />`;
  return html`<${Shown} key=${name + (place.id ?? "")} id=${place.id} query=${place.query} />`;
}

const Icon = ({ path }) => html`<svg viewBox="0 0 24 24" width="20" height="20" aria-hidden="true" fill="none" stroke="currentColor" stroke-width="1.8" stroke-linejoin="round" stroke-linecap="round"><path d=${path} /></svg>`;

const NavLink = ({ view, label, letter, icon, current }) => html`
  <a href=${pathOf(view)} aria-current=${current === view ? "page" : null} data-testid=${`nav-${view}`} title=${`${label} (g, then ${letter})`}><${Icon} path=${icon} /><span>${label}</span></a>
`;

function Navigation({ current }) {
  const more = useRef(null);
  const links = VIEWS.map(([view, label, letter, icon]) => html`<${NavLink} key=${view} ...${{ view, label, letter, icon, current }} />`);
  const isInMore = !BAR_VIEWS.includes(current);
  useEffect(() => {
    more.current.open = false;
  }, [current]);
  return html`
    <nav class="nav" aria-label="Views">
      <ul>
        ${links.map((link) => html`<li key=${link.key} class=${BAR_VIEWS.includes(link.key) ? "" : "in-more"}>${link}</li>`)}
        <li class="more">
          <details ref=${more}>
            <summary class=${isInMore ? "current" : ""} data-testid="nav-more"><${Icon} path="M5 12h.01M12 12h.01M19 12h.01" /><span>More</span></summary>
            <ul>${links.filter(({ key }) => !BAR_VIEWS.includes(key)).map((link) => html`<li key=${link.key}>${link}</li>`)}</ul>
          </details>
        </li>
      </ul>
    </nav>
  `;
}

const CONNECTION_WORDS = { connected: "Live", connecting: "Connecting…", disconnected: "Disconnected" };

/** The state of the live connection. Announces only the word: a countdown read aloud would be a nuisance. */
function ConnectionLine() {
  const { state, retryAt } = useStore(connection);
  const [, tick] = useState(0);
  const isDown = state === "disconnected";
  useEffect(() => {
    const timer = isDown && setInterval(() => tick((n) => n + 1), 1000);
    return () => clearInterval(timer);
  }, [isDown]);
  const wait = retryAt === null ? "retrying now" : `retrying in ${Math.max(0, Math.ceil((retryAt - Date.now()) / 1000))} s`;
  return html`
    <div class="connection" data-testid="connection" data-state=${state}>
      <span class="dot" aria-hidden="true"></span><span role="status">${CONNECTION_WORDS[state]}</span>
      ${isDown && html`<span class="muted"> ${wait}</span> <button type="button" class="quiet" onClick=${() => live.retry()}>Retry now</button>`}
    </div>
  `;
}

const SHORTCUTS = [
  ...VIEWS.map(([, label, letter]) => [["g", letter], `Go to ${label}`]),
  [["/"], "Search in this view, or in all calls"],
  [["?"], "Show these shortcuts"],
  [["Esc"], "Close a dialog or panel"],
];

const Help = ({ onClose }) => html`
  <${Dialog} title="Keyboard shortcuts" onClose=${onClose} testid="shortcuts">
    <dl class="shortcuts">
      ${SHORTCUTS.map(([keys, text]) => html`<div key=${text}><dt>${keys.map((key, at) => [at > 0 && " then ", html`<kbd>${key}</kbd>`])}</dt><dd>${text}</dd></div>`)}
    </dl>
  <//>
`;

function TokenDialog({ wasRejected, onToken }) {
  const root = useRef(null);
  useEffect(() => root.current.showModal(), []);
  const submit = (event) => {
    event.preventDefault();
    onToken(new FormData(event.target).get("token").trim());
  };
  // Without a token the page can show nothing, so Escape does not close it.
  return html`
    <dialog ref=${root} class="question" aria-labelledby="token-title" data-testid="token-dialog" onCancel=${(event) => event.preventDefault()}>
      <form onSubmit=${submit}>
        <h2 id="token-title">Token required</h2>
        <p>Enter the token that the server was started with (<code>--token</code> or <code>FLOWLEDGER_TOKEN</code>). This browser stores it until you log out in Settings.</p>
        ${wasRejected && html`<p class="fault" role="alert" data-testid="token-error">Invalid token. Please check it and try again.</p>`}
        <div class="field"><label for="token-input">Token</label><input id="token-input" name="token" data-testid="token-input" type="password" required pattern="\\s*[!-~]+\\s*" title="Use printable ASCII characters without spaces." autocomplete="current-password" /></div>
        <button class="primary" data-testid="token-submit">Continue</button>
      </form>
    </dialog>
  `;
}

function App() {
  const place = useStore(route);
  const isHelpOpen = useStore(isHelpShown);
  const [tokenRequest, setTokenRequest] = useState(null);
  useTheme();
  useEffect(() => onKeys(() => isHelpShown.set(true)), []);
  useEffect(() => {
    api.onTokenNeeded((wasRejected) => new Promise((resolve) => setTokenRequest({ wasRejected, resolve })));
  }, []);
  const onToken = (token) => {
    tokenRequest.resolve(token);
    setTokenRequest(null);
    setTimeout(() => live.retry()); // The connection needs the new token too.
  };
  return html`
    <a class="skip" href="#main" onClick=${skip}>Skip to content</a>
    <header class="side">
      <a class="brand" href="/" aria-label="flowledger: overview"><${Logo} /><span>flowledger</span></a>
      <${Navigation} current=${place.view} />
      <div class="side-foot">
        <${Toasts} />
        <${ConnectionLine} />
        <button type="button" class="quiet" data-testid="help-button" onClick=${() => isHelpShown.set(true)}>Shortcuts <kbd>?</kbd></button>
      </div>
    </header>
    <main id="main" tabindex="-1"><${View} place=${place} /></main>
    <${Questions} />
    ${isHelpOpen && html`<${Help} onClose=${() => isHelpShown.set(false)} />`}
    ${tokenRequest && html`<${TokenDialog} wasRejected=${tokenRequest.wasRejected} onToken=${onToken} />`}
  `;
}

const Logo = () => html`<svg viewBox="0 0 32 32" width="24" height="24" aria-hidden="true"><rect width="32" height="32" rx="7" fill="var(--accent)" /><path d="M8 10h16M8 16h10M8 22h13" stroke="var(--on-accent)" stroke-width="3" stroke-linecap="round" /></svg>`;

function skip(event) {
  event.preventDefault();
  document.querySelector("main").focus();
}

/** Applies the chosen theme; "system" leaves it to the browser. */
function useTheme() {
  const { theme } = useStore(settings);
  useEffect(() => {
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
  }, [theme]);
}

/** Listens to shortcuts, except in fields and dialogs. */
function onKeys(showHelp) {
  let beganAt = -Infinity;
  const press = (event) => {
    const isTyping = event.target.closest?.("input, select, textarea, [contenteditable], dialog[open]");
    if (isTyping || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    const isSecond = performance.now() - beganAt < SEQUENCE_MS;
    beganAt = -Infinity;
    const view = isSecond && VIEWS.find(([, , letter]) => letter === event.key)?.[0];
    if (view) navigate(pathOf(view));
    else if (event.key === "g") beganAt = performance.now();
    else if (event.key === "?") showHelp();
    else if (event.key === "/") focusSearch();
    else return;
    event.preventDefault();
  };
  document.addEventListener("keydown", press);
  return () => document.removeEventListener("keydown", press);
}

function focusSearch() {
  const field = document.querySelector("[data-search]");
  if (field) return field.focus();
  navigate("/calls?focus=search");
  return undefined;
}

/** Links to the page's own addresses change the view without loading the page again. */
document.addEventListener("click", (event) => {
  const link = event.target.closest?.("a[href]");
  if (!link || event.defaultPrevented || event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
  if (link.target || link.hasAttribute("download") || link.origin !== location.origin || link.getAttribute("href").startsWith("#")) return;
  const view = link.pathname.split("/")[1] || "overview";
  if (!VIEWS.some(([known]) => known === view)) return;
  event.preventDefault();
  navigate(link.pathname + link.search);
});

/* The live connection. */

/** Messages up to this `seq` are replays. */
let newestAtHello = 0;

const refresh = () => freshness.set(freshness.get() + 1);

const live = connect({
  token: api.currentToken,
  onMessage: receive,
  onState: (status) => {
    connection.set(status);
    setPolling(status.state !== "connected");
  },
  // The first connection needs no second fetch: the views have just fetched their data.
  onFresh: () => newestAtHello && wasConnected && refresh(),
});
let wasConnected = false;
let polling = 0;

/** Fetches the shown data again at intervals while there is no connection. */
function setPolling(isOn) {
  if (!isOn) {
    clearTimeout(polling);
    polling = 0;
    setTimeout(() => (wasConnected = true));
    return;
  }
  polling ||= setTimeout(function poll() {
    refresh();
    polling = setTimeout(poll, POLL_EVERY_MS);
  }, POLL_AFTER_MS);
}

function receive(message) {
  const { type, payload } = message;
  if (type === "HELLO") newestAtHello = payload.seq;
  if (type === "FLOW_STARTED" || type === "FLOW_CHANGED") rememberFlows([{ id: payload.flowId, name: payload.name }]);
  publish(message);
  const isReplayed = message.seq <= newestAtHello && Date.now() - Date.parse(payload?.timestamp) > TOAST_AGE_MAX_MS;
  if (!isReplayed) NOTICES[type]?.(payload);
}

/** Toasts for failures; the user's own actions show theirs. */
const NOTICES = {
  __proto__: null,
  async FLOW_FAILED({ flowId, runId, error }) {
    toast("error", [{ name: await flowName(flowId) }, " failed"], error, { label: "Show run", href: `/runs/${runId}` });
  },
  BUDGET_WARNING({ budget, percent, used, spent, held, limit, per, hard, kind, session }) {
    const link = { label: "Show budgets", href: "/budgets" };
    if (kind === "loop") {
      const effect = hard ? `Budget “${budget}” refuses its further calls.` : "No budget stops it.";
      toast("warning", ["Session ", { name: session }, " repeats itself"], `${used[0].toUpperCase()}${used.slice(1)}. ${effect}`, link);
      return;
    }
    const amounts = held ? `${spent} spent, ${held} held` : used;
    const effect = hard ? "Calls that might exceed the limit are refused." : "This budget only warns.";
    toast("warning", ["Budget “", { name: budget }, `”: ${percent} % used`], `${amounts} of ${limit} per ${per}. ${effect}`, link);
  },
};

const root = document.getElementById("app");
root.replaceChildren();
render(html`<${App} />`, root);

