/** The stored request and response of a call: JSON indented, streamed responses as text and as events. */

import { html, useMemo, useState } from "../vendor/preact.js";
import { parse, remove, stringify } from "../api.js";
import { bytes } from "../format.js";
import { useData } from "../state.js";
import { Button, confirmAction, ErrorNote, Loading, LongText, Section, showError, toast } from "../ui.js";
import { saveFile } from "../copy.js";

/** Longer texts are shown as they are: to indent them would take too long. */
const INDENTED_CHARS_MAX = 2_000_000;

export default function Body({ id }) {
  const [isDeleted, setDeleted] = useState(false);
  const { data, error, reload } = useData(isDeleted ? null : `/api/ledger/${id}/body`);
  const askToDelete = async () => {
    const isConfirmed = await confirmAction({ title: "Delete the request and the response?", text: "The row with its tokens and cost stays in the ledger.", action: "Delete" });
    if (!isConfirmed) return;
    try {
      await remove(`/api/ledger/${id}/body`);
      setDeleted(true);
      toast("done", "Request and response deleted");
    } catch (fault) {
      showError("Cannot delete the request and the response", fault);
    }
  };
  if (isDeleted) return html`<p class="muted">The request and the response were deleted.</p>`;
  if (error) return html`<${ErrorNote} title="Cannot load the request and the response" error=${error} onRetry=${reload} />`;
  if (!data) return html`<${Loading} />`;
  const actions = html`<${Button} kind="danger" data-testid="delete-body" onClick=${askToDelete}>Delete<//>`;
  return html`
    <${Section} title="Request and response" className="call-part" actions=${actions} testid="call-body">
      <${Part} name="Request" id=${id} text=${data.request} size=${data.request_bytes} isCut=${data.is_request_cut} type=${data.request_content_type} />
      <${Part} name="Response" id=${id} text=${data.response} size=${data.response_bytes} isCut=${data.is_response_cut} type=${data.response_content_type} />
    <//>
  `;
}

function Part({ name, id, text, size, isCut, type }) {
  const { readable, streamed } = useMemo(() => read(text ?? "", type ?? ""), [text, type]);
  const [isRaw, setRaw] = useState(false);
  if (!text) return html`<p class="muted">${name}: ${size ? `${bytes(size)} that are not text` : "empty"}.</p>`;
  const file = `call-${id}-${name.toLowerCase()}.${streamed || !readable ? "txt" : "json"}`;
  return html`
    <div class="body-part" data-testid=${`body-${name.toLowerCase()}`}>
      ${streamed && html`<${LongText} name=${`${name}: text of the stream`} text=${streamed} open />`}
      <${LongText} key=${String(isRaw)} name=${streamed ? `${name}: events` : name} text=${isRaw || !readable ? text : readable} open=${!streamed} />
      <p class="body-line muted">
        <span>${[type, isKnown(size) && bytes(size)].filter(Boolean).join(", ")}</span>
        ${isCut && html`<strong class="badge" data-testid="body-cut">cut: only the first ${bytes(new Blob([text]).size)} are stored</strong>`}
        ${readable && html`<button type="button" class="quiet" aria-pressed=${String(isRaw)} onClick=${() => setRaw(!isRaw)}>Raw</button>`}
        <button type="button" class="quiet" onClick=${() => saveFile(file, text, "text/plain")}>Download</button>
      </p>
    </div>
  `;
}

const isKnown = (value) => value !== null && value !== undefined;

/** Returns `readable`, an indented form or null, and `streamed`, the text of a streamed response or null. */
function read(text, type) {
  if (text.length > INDENTED_CHARS_MAX) return { readable: null, streamed: null };
  const isStream = type.includes("event-stream") || /^(?:event|data|id|retry|:)[^\n]*\n/.test(text);
  if (!isStream) return { readable: indented(text), streamed: null };
  const events = text.split(/\r?\n\r?\n/).map(eventOf).filter(Boolean);
  const streamed = events.map(({ json }) => deltaOf(json)).join("");
  const readable = events.map(({ name, data, json }) => `${name ? `${name}\n` : ""}${json ? stringify(json, 2) : data}`).join("\n\n");
  return { readable, streamed: streamed || null };
}

function indented(text) {
  try {
    return stringify(parse(text), 2);
  } catch {
    return null;
  }
}

/** Returns an event of a stream: { name, data, json }. */
function eventOf(block) {
  const lines = block.split(/\r?\n/);
  const value = (field) => lines.filter((line) => line.startsWith(`${field}:`)).map((line) => line.slice(field.length + 1).replace(/^ /, ""));
  const data = value("data").join("\n");
  if (!data) return null;
  let json = null;
  try {
    json = parse(data);
  } catch {
    // "[DONE]", or the last event of a stream that was cut.
  }
  return { name: value("event")[0] ?? "", data, json };
}

/** Returns the text that an event adds, in the formats of the gateway: chat completions, responses, messages, Gemini, Ollama. */
function deltaOf(json) {
  if (!json || typeof json !== "object") return "";
  const texts = [
    json.choices?.[0]?.delta?.content,
    json.choices?.[0]?.text,
    json.type === "response.output_text.delta" ? json.delta : null,
    json.type === "content_block_delta" ? json.delta?.text : null,
    ...(json.candidates?.[0]?.content?.parts ?? []).map((part) => part?.text),
    json.message?.content,
  ];
  return texts.filter((text) => typeof text === "string").join("");
}
