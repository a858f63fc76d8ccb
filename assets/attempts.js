/** The attempts of a node or of a map's item: one call each, with its result. */

import { isRefused } from "./calls.js";
import { h } from "./dom.js";
import { costText, count, duration, moment } from "./format.js";

export const STATE_WORDS = { __proto__: null, WAITING: "waiting", RUNNING: "running", COMPLETED: "completed", FAILED: "failed", CANCELLED: "cancelled", SKIPPED: "skipped" };

export const fact = (name, value) => (value === null || value === undefined || value === "" ? [] : [h("div", {}, h("dt", {}, name), h("dd", {}, value))]);

export const tokens = (input, output) => `${count(input)} → ${count(output)}`;

export const isCounted = (call) => call.status !== "PENDING" && call.usage_source !== "none";

/** Returns the latency, or the time from start to end of the last attempt if no call has ended. */
export function durationMs({ latencyMs, startedAt, finishedAt }) {
  if (latencyMs !== null && latencyMs !== undefined) return latencyMs;
  return startedAt && finishedAt ? Date.parse(finishedAt) - Date.parse(startedAt) : null;
}

/** Returns elements for all calls, in order; an empty list if there are none. */
export function drawAttempts(calls) {
  return calls.length ? [h("h4", {}, "Attempts"), h("ol", { class: "attempts" }, ...calls.map(drawAttempt))] : [];
}

function drawAttempt(call) {
  return h(
    "li",
    { "data-testid": "history-attempt", "data-status": call.status },
    h(
      "p",
      {},
      h("strong", {}, `Attempt ${call.attempt}`),
      " ",
      h("span", { class: "status" }, isRefused(call) ? "failed: refused" : call.status.toLowerCase()),
      h("span", { class: "muted" }, ` · ${call.provider} / ${call.model_used}`),
    ),
    h("p", { class: "muted" }, [moment(call.timestamp), ...attemptNumbers(call)].join(" · ")),
    call.error_message ? h("p", { class: "error-text" }, call.error_message) : null,
  );
}

function attemptNumbers(call) {
  if (call.status === "PENDING") return ["no response yet"];
  const prefix = call.usage_source === "estimated" ? "~" : "";
  return [
    call.cached || isRefused(call) ? null : isCounted(call) ? `${prefix}${tokens(call.input_tokens, call.output_tokens)} tokens` : "no token counts",
    costText(call),
    call.latency_ms === null ? "" : duration(call.latency_ms),
    (call.first_token_ms ?? null) === null ? "" : `first token after ${duration(call.first_token_ms)}`,
  ].filter(Boolean);
}
