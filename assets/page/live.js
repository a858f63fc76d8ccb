/**
 * The live connection to flowledger: a module of its own, without imports and without the DOM, so
 * that any page (or worker) can use it:
 *
 *     import { connect } from "/assets/live.js";
 *     const live = connect({
 *       onFresh: () => fetchPageData(),
 *       onMessage: ({ seq, type, payload }) => console.log(seq, type, payload),
 *       onState: ({ state, retryAt }) => console.log(state),
 *     });
 *
 * `connect(options)` returns a `Live` at once; all options are optional:
 *   url        the address; `/ws` on the server that this module came from by default
 *   since      deliver every logged event after this `seq` first; without it, from now on
 *   epoch      the epoch that came with `since`, from HELLO or the status of a flow
 *   token      the server's token, or a function that returns the current one
 *   onMessage  called with every message: `{ seq?, type, payload }`
 *   onState    called with `{ state, retryAt, attempt, code }` when any of it changes; `state` is
 *              "connecting" until the first attempt has ended, then "connected" or "disconnected";
 *              `retryAt` is the start of the next attempt (ms since the epoch), null during an
 *              attempt; `code` is the code of the last close
 *   onFresh    called if events do not continue the earlier ones: on the first connection without
 *              `since`, and if the server could not replay every missed event. Fetch the data that
 *              you show in this callback; later changes arrive as messages.
 * The same three are dispatched as CustomEvents "message", "state" and "fresh" (see `detail`).
 *
 * `Live` reconnects without end. After a loss it requests the events after the last one it saw, so
 * that every logged event is delivered once and in order; repeats are dropped.
 * SUBSCRIBE holds for one connection: send it again whenever the state becomes "connected".
 */

/** Before attempt n the wait is random between 0 and BACKOFF_FIRST_MS × 2ⁿ, at most BACKOFF_MAX_MS. */
const BACKOFF_FIRST_MS = 500;
const BACKOFF_MAX_MS = 20_000;
/** After a connection that lasted this long, the backoff starts again from the beginning. */
const STABLE_MS = 5_000;
/** After this much silence the client sends a PING … */
const SILENCE_MAX_MS = 60_000;
/** … and the server has this long to respond; also the limit for connecting, up to HELLO. */
const RESPONSE_MAX_MS = 10_000;
const CHECK_EVERY_MS = 1_000;
/** Close codes that blame this client. A quick retry would fail again. */
const REFUSED_CODES = [1002, 1003, 1007, 1008, 1009];
const REFUSED_WAIT_MS = 60_000;
/** The code that this module reports for a connection that ended without a close frame. */
const ABNORMAL = 1006;

export function connect(options) {
  return new Live(options);
}

export class Live extends EventTarget {
  /** The newest message, in the form that `onMessage` receives. */
  lastMessage = null;

  #url;
  #token;
  #seq;
  /** The history that `#seq` belongs to: the epoch of the last HELLO. */
  #epoch;
  #socket = null;
  #status = { state: "connecting", retryAt: null, attempt: 0, code: null };
  #connectedAt = 0;
  #receivedAt = 0;
  #pingedAt = 0;
  #retryTimer;
  #checkTimer;
  #closed = false;
  #online = () => this.retry();

  constructor({ url, since, epoch, token, onMessage, onState, onFresh } = {}) {
    super();
    this.#url = url ? new URL(url, globalThis.location?.href) : new URL("/ws", import.meta.url);
    this.#url.protocol = this.#url.protocol.replace("http", "ws");
    this.#token = token;
    this.#seq = since ?? null;
    this.#epoch = epoch ?? null;
    for (const [name, listener] of Object.entries({ message: onMessage, state: onState, fresh: onFresh })) {
      if (listener) this.addEventListener(name, (event) => listener(event.detail));
    }
    globalThis.addEventListener?.("online", this.#online);
    // Later, because the listeners may use the object that the caller does not have yet.
    queueMicrotask(() => this.#closed || this.#open());
  }

  /** True if messages can be sent: after the server's HELLO, until the socket is lost. */
  get isConnected() {
    return this.#status.state === "connected";
  }

  /** `{ state, retryAt, attempt, code }`, in the form that `onState` receives. */
  get status() {
    return this.#status;
  }

  /** Sends an object as JSON. Returns false, and neither sends nor keeps it, if not connected. */
  sendMessage(message) {
    if (!this.isConnected || this.#socket.readyState !== WebSocket.OPEN) return false;
    this.#socket.send(JSON.stringify(message));
    return true;
  }

  /** Reconnects at once instead of waiting; if connected, checks that the server still responds. */
  retry() {
    if (this.#closed) return;
    if (this.isConnected) this.#ping();
    else this.#open();
  }

  /** Ends the connection permanently. */
  close() {
    this.#closed = true;
    globalThis.removeEventListener?.("online", this.#online);
    this.#drop(1000);
    this.#setStatus({ state: "disconnected", retryAt: null, code: 1000 });
  }

  #open() {
    this.#drop();
    const url = new URL(this.#url);
    if (this.#seq !== null) {
      url.searchParams.set("since", this.#seq);
      if (this.#epoch !== null) url.searchParams.set("epoch", this.#epoch);
    }
    const token = typeof this.#token === "function" ? this.#token() : this.#token;
    // Browsers cannot set headers on a WebSocket, so a subprotocol carries the token.
    const socket = token ? new WebSocket(url, ["flowledger", `bearer.${hex(token)}`]) : new WebSocket(url);
    socket.onmessage = (event) => this.#receive(event.data);
    socket.onclose = (event) => this.#handleClose(event.code);
    this.#socket = socket;
    this.#receivedAt = Date.now();
    this.#pingedAt = 0;
    this.#checkTimer = setInterval(() => this.#check(), CHECK_EVERY_MS);
    this.#setStatus({ retryAt: null });
  }

  #receive(text) {
    this.#receivedAt = Date.now();
    this.#pingedAt = 0;
    let message;
    try {
      message = JSON.parse(text);
    } catch {
      return; // The server sends JSON only, so this came from an intermediary.
    }
    if (message.seq !== undefined) {
      if (this.#seq !== null && message.seq <= this.#seq) return;
      this.#seq = message.seq;
    }
    // Update the state for HELLO before the listeners run; report it after HELLO is delivered.
    const isFresh = message.type === "HELLO" && this.#handleHello(message.payload);
    this.lastMessage = message;
    this.#dispatch("message", message);
    if (message.type !== "HELLO") return;
    this.#connectedAt = Date.now();
    this.#setStatus({ state: "connected", code: null });
    if (isFresh) this.#dispatch("fresh");
  }

  /** Returns true if events do not continue here. A newest `seq` below ours means a replaced log. */
  #handleHello({ seq, epoch, recovered }) {
    const continues = this.#seq !== null && seq >= this.#seq && recovered !== false;
    if (!continues) this.#seq = seq;
    this.#epoch = epoch ?? null;
    return !continues;
  }

  #handleClose(code) {
    this.#drop();
    const wasStable = this.isConnected && Date.now() - this.#connectedAt >= STABLE_MS;
    const attempt = wasStable ? 0 : this.#status.attempt;
    const ceiling = Math.min(BACKOFF_MAX_MS, BACKOFF_FIRST_MS * 2 ** attempt);
    const wait = REFUSED_CODES.includes(code) ? REFUSED_WAIT_MS : Math.random() * ceiling;
    this.#retryTimer = setTimeout(() => this.#open(), wait);
    this.#setStatus({ state: "disconnected", retryAt: Date.now() + wait, attempt: attempt + 1, code });
  }

  /** Measures silence, because browsers take minutes to notice a dead peer. */
  #check() {
    const now = Date.now();
    if (!this.isConnected) {
      if (now - this.#receivedAt > RESPONSE_MAX_MS) this.#handleClose(ABNORMAL);
    } else if (this.#pingedAt) {
      if (now - this.#pingedAt > RESPONSE_MAX_MS) this.#handleClose(ABNORMAL);
    } else if (now - this.#receivedAt > SILENCE_MAX_MS) {
      this.#ping();
    }
  }

  #ping() {
    this.sendMessage({ type: "PING" });
    this.#pingedAt ||= Date.now();
  }

  /** Drops the socket, without its close handshake, and all timers. */
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
    this.#dispatch("state", this.#status);
  }

  #dispatch(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}

function hex(text) {
  return Array.from(new TextEncoder().encode(text), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
