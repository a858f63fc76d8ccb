/**
 * The live connection to flowledger: a module of its own, without imports and without the DOM, so
 * that any page (or worker) can use it:
 *
 *     import { connect } from "/assets/live.js";
 *     const live = connect({
 *       onFresh: () => fetchWhatThePageShows(),
 *       onMessage: ({ seq, type, payload }) => console.log(seq, type, payload),
 *       onState: ({ state, retryAt }) => console.log(state),
 *     });
 *
 * `connect(options)` returns a `Live` at once; all options may be left out:
 *   url        where to connect; `/ws` of the server that this module came from by default
 *   since      deliver every logged event after this `seq` first; without it, from now on
 *   token      the server's token, or a function that gives the present one
 *   onMessage  called with every message: `{ seq?, type, payload }`
 *   onState    called with `{ state, retryAt, attempt, code }` when any of it changes; `state` is
 *              "connecting" until the first attempt has ended, then "connected" or "disconnected";
 *              `retryAt` (ms since the epoch) is when the next attempt begins, null while one is
 *              under way; `code` is the code of the last close
 *   onFresh    called when events do not join what came before: on the first connection without
 *              `since`, and when the server could not replay all that was missed. Fetch here what
 *              you show; whatever happens later arrives as messages.
 * The same three are dispatched as CustomEvents "message", "state" and "fresh" (see `detail`).
 *
 * What `Live` promises: it reconnects without end; after a loss it asks for the events after the
 * last one it saw, so every logged event is delivered once and in order; a repeat is dropped.
 * SUBSCRIBE holds for one connection: send it again whenever the state becomes "connected".
 */

/** Before attempt n the wait is random between 0 and BACKOFF_FIRST_MS × 2ⁿ, at most BACKOFF_MAX_MS. */
const BACKOFF_FIRST_MS = 500;
const BACKOFF_MAX_MS = 20_000;
/** A connection that lasted this long was a good one: the backoff starts from the beginning. */
const STABLE_MS = 5_000;
/** After this much silence the server is asked for a sign of life … */
const SILENCE_MAX_MS = 60_000;
/** … and has this long to give one; also the limit for the opening, up to HELLO. */
const ANSWER_MAX_MS = 10_000;
const CHECK_EVERY_MS = 1_000;
/** Close codes that mean that this client is at fault. Trying again soon is rude. */
const REFUSED_CODES = [1002, 1003, 1007, 1008, 1009];
const REFUSED_WAIT_MS = 60_000;
/** Ours, for a connection that no close frame ended. */
const ABNORMAL = 1006;

export function connect(options) {
  return new Live(options);
}

export class Live extends EventTarget {
  /** The newest message, as `onMessage` got it. */
  lastMessage = null;

  #url;
  #token;
  #seq;
  #socket = null;
  #status = { state: "connecting", retryAt: null, attempt: 0, code: null };
  #connectedAt = 0;
  #heardAt = 0;
  #pingedAt = 0;
  #retryTimer;
  #checkTimer;
  #closed = false;
  #online = () => this.retry();

  constructor({ url, since, token, onMessage, onState, onFresh } = {}) {
    super();
    this.#url = url ? new URL(url, globalThis.location?.href) : new URL("/ws", import.meta.url);
    this.#url.protocol = this.#url.protocol.replace("http", "ws");
    this.#token = token;
    this.#seq = since ?? null;
    for (const [name, listener] of Object.entries({ message: onMessage, state: onState, fresh: onFresh })) {
      if (listener) this.addEventListener(name, (event) => listener(event.detail));
    }
    globalThis.addEventListener?.("online", this.#online);
    // Not before the caller holds this object, which its listeners may want to use.
    queueMicrotask(() => this.#closed || this.#open());
  }

  /** Whether messages can be sent: the server has greeted and the socket is not lost. */
  get isConnected() {
    return this.#status.state === "connected";
  }

  /** `{ state, retryAt, attempt, code }` as `onState` got it. */
  get status() {
    return this.#status;
  }

  /** Sends an object as JSON; false, and nothing is sent or kept, while not connected. */
  sendMessage(message) {
    if (!this.isConnected || this.#socket.readyState !== WebSocket.OPEN) return false;
    this.#socket.send(JSON.stringify(message));
    return true;
  }

  /** Tries at once instead of waiting; while connected it checks that the server still answers. */
  retry() {
    if (this.#closed) return;
    if (this.isConnected) this.#ping();
    else this.#open();
  }

  /** Ends the connection for good. */
  close() {
    this.#closed = true;
    globalThis.removeEventListener?.("online", this.#online);
    this.#drop(1000);
    this.#setStatus({ state: "disconnected", retryAt: null, code: 1000 });
  }

  #open() {
    this.#drop();
    const url = new URL(this.#url);
    if (this.#seq !== null) url.searchParams.set("since", this.#seq);
    const token = typeof this.#token === "function" ? this.#token() : this.#token;
    // Browsers cannot set headers on a WebSocket; subprotocols are what carries the token.
    const socket = token ? new WebSocket(url, ["flowledger", `bearer.${hex(token)}`]) : new WebSocket(url);
    socket.onmessage = (event) => this.#receive(event.data);
    socket.onclose = (event) => this.#lost(event.code);
    this.#socket = socket;
    this.#heardAt = Date.now();
    this.#pingedAt = 0;
    this.#checkTimer = setInterval(() => this.#check(), CHECK_EVERY_MS);
    this.#setStatus({ retryAt: null });
  }

  #receive(text) {
    this.#heardAt = Date.now();
    this.#pingedAt = 0;
    let message;
    try {
      message = JSON.parse(text);
    } catch {
      return; // The server sends JSON only; something between us and it does not.
    }
    if (message.seq !== undefined) {
      if (this.#seq !== null && message.seq <= this.#seq) return;
      this.#seq = message.seq;
    }
    // What HELLO means is settled before anybody hears of it, and told after it was delivered.
    const isFresh = message.type === "HELLO" && this.#greet(message.payload);
    this.lastMessage = message;
    this.#tell("message", message);
    if (message.type !== "HELLO") return;
    this.#connectedAt = Date.now();
    this.#setStatus({ state: "connected", code: null });
    if (isFresh) this.#tell("fresh");
  }

  /** Whether events start afresh here. A newest `seq` below ours means that the log was replaced. */
  #greet({ seq, recovered }) {
    const joins = this.#seq !== null && seq >= this.#seq && recovered !== false;
    if (!joins) this.#seq = seq;
    return !joins;
  }

  #lost(code) {
    this.#drop();
    const wasStable = this.isConnected && Date.now() - this.#connectedAt >= STABLE_MS;
    const attempt = wasStable ? 0 : this.#status.attempt;
    const ceiling = Math.min(BACKOFF_MAX_MS, BACKOFF_FIRST_MS * 2 ** attempt);
    const wait = REFUSED_CODES.includes(code) ? REFUSED_WAIT_MS : Math.random() * ceiling;
    this.#retryTimer = setTimeout(() => this.#open(), wait);
    this.#setStatus({ state: "disconnected", retryAt: Date.now() + wait, attempt: attempt + 1, code });
  }

  /** A dead peer is not noticed by the browser for minutes, so silence is measured here. */
  #check() {
    const now = Date.now();
    if (!this.isConnected) {
      if (now - this.#heardAt > ANSWER_MAX_MS) this.#lost(ABNORMAL);
    } else if (this.#pingedAt) {
      if (now - this.#pingedAt > ANSWER_MAX_MS) this.#lost(ABNORMAL);
    } else if (now - this.#heardAt > SILENCE_MAX_MS) {
      this.#ping();
    }
  }

  #ping() {
    this.sendMessage({ type: "PING" });
    this.#pingedAt ||= Date.now();
  }

  /** Lets go of the socket without waiting for its close handshake, and of all timers. */
  #drop(code) {
    clearTimeout(this.#retryTimer);
    clearInterval(this.#checkTimer);
    if (!this.#socket) return;
    this.#socket.onmessage = this.#socket.onclose = null;
    this.#socket.close(code);
    this.#socket = null;
  }

  #setStatus(change) {
    this.#status = { ...this.#status, ...change };
    this.#tell("state", this.#status);
  }

  #tell(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}

function hex(text) {
  return Array.from(new TextEncoder().encode(text), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
