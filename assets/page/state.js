/** State that all views share: the address, the settings of this browser, the connection, and names of flows. */

import { useEffect, useState } from "./vendor/preact.js";
import * as api from "./api.js";

/** A value with listeners. */
export function createStore(value) {
  const listeners = new Set();
  return {
    get: () => value,
    set(next) {
      if (next === value) return;
      value = next;
      for (const listener of [...listeners]) listener(value);
    },
    subscribe(listener) {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
  };
}

/** Returns the value of a store, and renders the component again when it changes. */
export function useStore(store) {
  const [value, setValue] = useState(store.get());
  useEffect(() => {
    setValue(store.get());
    return store.subscribe((next) => setValue(() => next));
  }, [store]);
  return value;
}

/* The address. */

const readRoute = () => {
  const { pathname, search } = location;
  const [view = "", id = null] = pathname.split("/").slice(1);
  return { path: pathname, view: view || "overview", id: id && decodeURIComponent(id), query: new URLSearchParams(search) };
};

/** `{ path, view, id, query }` of the address: "/runs/7?x=1" is { path: "/runs/7", view: "runs", id: "7", query }. `isBack` after back or forward. */
export const route = createStore(readRoute());
/** Asked before the reader leaves the view, for example an editor with changes. */
let leaveGuard = null;
/** The address of the view that is shown, for the case that leaving it is refused. */
let shownAddress = location.pathname + location.search;
route.subscribe(() => (shownAddress = location.pathname + location.search));
let pathBefore = route.get().path;
let isNewView = false;
route.subscribe(({ path }) => {
  isNewView ||= path !== pathBefore;
  pathBefore = path;
});

/** Returns whether the reader has come to another view since the last call; its heading then gets the focus. */
export function takeNewView() {
  const isNew = isNewView;
  isNewView = false;
  return isNew;
}

addEventListener("popstate", () => {
  if (!leaveGuard) return route.set({ ...readRoute(), isBack: true });
  // The address has already changed: take that back until the reader has decided.
  history.pushState(null, "", shownAddress);
  askToLeave(() => history.back());
  return undefined;
});

/**
 * Asks `guard()`, a promise of whether the reader may leave, before the address changes. Returns a function that ends
 * this. With null, nothing is asked any more.
 */
export function guardLeaving(guard) {
  leaveGuard = guard;
  return () => {
    if (leaveGuard === guard) leaveGuard = null;
  };
}

async function askToLeave(leave) {
  if (!(await leaveGuard())) return;
  leaveGuard = null;
  leave();
}

/** Goes to an address of the page. With `replace`, the address before is not kept in the history. */
export function navigate(address, { replace = false } = {}) {
  if (address === location.pathname + location.search) return;
  if (leaveGuard) return void askToLeave(() => navigate(address, { replace }));
  history[replace ? "replaceState" : "pushState"](null, "", address);
  const before = route.get();
  route.set(readRoute());
  if (route.get().path !== before.path) scrollTo({ top: 0, behavior: "instant" });
}

/** Returns an address with these query parameters; empty ones are left out. */
export function address(path, query = {}) {
  const entries = Object.entries(query).filter(([, value]) => value !== null && value !== undefined && value !== "");
  const text = new URLSearchParams(entries).toString();
  return text ? `${path}?${text}` : path;
}

/** Changes parameters of the present address; null or "" removes one. By default the history keeps one entry. */
export function setQuery(changes, { replace = true } = {}) {
  const { path, query } = route.get();
  navigate(address(path, { ...Object.fromEntries(query), ...changes }), { replace });
}

/* The settings of this browser. */

const SETTINGS_KEY = "flowledger.settings";
export const SYSTEM_ZONE = Intl.DateTimeFormat().resolvedOptions().timeZone || "UTC";
const DEFAULTS = { theme: "system", zone: SYSTEM_ZONE, period: { name: "7d" }, callColumns: null };

function readSettings() {
  try {
    const read = { ...DEFAULTS, ...JSON.parse(localStorage.getItem(SETTINGS_KEY) ?? "{}") };
    new Intl.DateTimeFormat("en-US", { timeZone: read.zone }); // Throws if this browser does not know the zone.
    return read;
  } catch {
    return DEFAULTS; // Storage may be forbidden or damaged; then the settings last as long as the page.
  }
}

/** `theme`: "system", "light" or "dark"; `zone`: an IANA time zone; `period`: see period-picker.js. */
export const settings = createStore(readSettings());

export function changeSettings(changes) {
  settings.set({ ...settings.get(), ...changes });
  try {
    localStorage.setItem(SETTINGS_KEY, JSON.stringify(settings.get()));
  } catch {
    // See readSettings.
  }
}

/** Whether the dialog with the keyboard shortcuts is open. */
export const isHelpShown = createStore(false);

/* The live connection. */

/** `{ state, retryAt, attempt, code }`, see live.js. */
export const connection = createStore({ state: "connecting", retryAt: null, attempt: 0, code: null });
/** Counts the times at which all shown data must be fetched again, because messages were missed. */
export const freshness = createStore(0);

const receivers = new Set();

/** Hands a message of the server to all views; app.js calls this. */
export function publish(message) {
  for (const receive of [...receivers]) receive(message);
}

/** Calls `receive({ seq, type, payload })` with every message while the component is shown. */
export function useMessages(receive, dependencies = []) {
  useEffect(() => {
    receivers.add(receive);
    return () => receivers.delete(receive);
  }, dependencies);
}

/* Data. */

/**
 * Fetches `path` and returns `{ data, error, isLoading, tookMs, reload, setData }`. Fetches again when the path changes,
 * when messages were missed, and on `reload()`; the data before stays until then. A path of null fetches nothing.
 */
export function useData(path) {
  const [state, setState] = useState({ path: null, data: null, error: null, isLoading: true, tookMs: 0 });
  const fresh = useStore(freshness);
  const [turn, setTurn] = useState(0);
  useEffect(() => {
    if (path === null) return undefined;
    let isCurrent = true;
    const beganAt = performance.now();
    setState((before) => ({ ...before, isLoading: true }));
    api.get(path).then(
      (data) => isCurrent && setState({ path, data, error: null, isLoading: false, tookMs: performance.now() - beganAt }),
      (error) => isCurrent && setState((before) => ({ ...before, path, data: before.path === path ? before.data : null, error, isLoading: false })),
    );
    return () => (isCurrent = false);
  }, [path, fresh, turn]);
  return {
    data: state.data,
    isStale: state.path !== path,
    error: state.error,
    isLoading: state.isLoading,
    tookMs: state.tookMs,
    reload: () => setTurn((before) => before + 1),
    setData: (change) => setState((before) => ({ ...before, data: change(before.data) })),
  };
}

/** Returns a function that calls `act` at most once in `pauseMs`, and once after the last request. */
export function useThrottled(act, pauseMs) {
  const [throttle] = useState(() => {
    const own = { act, pauseMs, timer: 0, lastAt: -Infinity };
    own.request = () => {
      own.timer ||= setTimeout(() => {
        own.timer = 0;
        own.lastAt = performance.now();
        own.act();
      }, Math.max(0, own.lastAt + own.pauseMs - performance.now()));
    };
    return own;
  });
  Object.assign(throttle, { act, pauseMs });
  useEffect(() => () => clearTimeout(throttle.timer), []);
  return throttle.request;
}

/* Names of flows. */

const flowNames = new Map();
const namesChanged = createStore(0);

/** Remembers names that came with other data. */
export function rememberFlows(flows) {
  let hasNews = false;
  for (const { id, name } of flows) {
    if (flowNames.get(id) === name) continue;
    flowNames.set(id, name);
    hasNews = true;
  }
  if (hasNews) namesChanged.set(namesChanged.get() + 1);
}

/** Returns the name of a flow; fetches it once if it is not known yet. */
export async function flowName(id) {
  if (!flowNames.has(id)) {
    flowNames.set(id, `flow ${id}`);
    const flow = await api.getIfAny(`/api/flows/${id}`).catch(() => null);
    if (flow) rememberFlows([flow]);
  }
  return flowNames.get(id);
}

/** Returns a function from ids of flows to names, and renders again when it knows more names. */
export function useFlowNames() {
  useStore(namesChanged);
  return (id) => {
    if (!flowNames.has(id)) flowName(id);
    return flowNames.get(id);
  };
}
