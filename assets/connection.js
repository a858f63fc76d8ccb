/** The connection line: shows the connection's state, and polls while there is no connection. */

import { setText } from "./dom.js";

/** Without a connection for this time, the page starts to poll … */
const POLL_AFTER_MS = 5_000;
/** … at this interval. */
const POLL_EVERY_MS = 5_000;
const WORDS = { connected: "Connected", connecting: "Connecting…", disconnected: "Disconnected" };

/** `root` contains the line's parts; `retry()` reconnects at once; `poll()` fetches the page's data. */
export function createConnection({ root, retry, poll }) {
  const [word, detail, button] = root.querySelectorAll(".word, .detail, button");
  let status = { state: "connecting", retryAt: null };
  let downSince = Date.now();
  let ticking = 0;
  let polling = 0;
  let pollResult = "";
  button.addEventListener("click", retry);

  function show(newStatus) {
    const wasConnected = status.state === "connected";
    status = newStatus;
    const isConnected = status.state === "connected";
    if (wasConnected && !isConnected) downSince = Date.now();
    if (isConnected) {
      clearInterval(ticking);
      clearTimeout(polling);
      ticking = polling = 0;
      pollResult = "";
    } else {
      ticking ||= setInterval(draw, 1000);
      polling ||= setTimeout(pollOnce, Math.max(0, downSince + POLL_AFTER_MS - Date.now()));
    }
    draw();
  }

  async function pollOnce() {
    try {
      await poll();
      pollResult = "polling every 5 s";
    } catch {
      pollResult = "cannot reach the server";
    }
    if (status.state === "connected") return;
    polling = setTimeout(pollOnce, POLL_EVERY_MS);
    draw();
  }

  /** Announces only the word to screen readers: a countdown read aloud would be a nuisance. */
  function draw() {
    root.dataset.state = status.state;
    setText(word, WORDS[status.state]);
    setText(detail, status.state === "disconnected" ? [retryText(), pollResult].filter(Boolean).join(" · ") : "");
    button.hidden = status.state !== "disconnected";
  }

  function retryText() {
    if (status.retryAt === null) return "retrying now";
    return `retrying in ${Math.max(0, Math.ceil((status.retryAt - Date.now()) / 1000))} s`;
  }

  return { show };
}
