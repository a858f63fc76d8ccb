/** A suggestion's change to its flow, before and after, with the button that applies it. */

import { html, useEffect, useRef, useState } from "../vendor/preact.js";
import * as api from "../api.js";
import { address } from "../state.js";
import { Button, ErrorNote, Loading } from "../ui.js";

/** Longer texts are compared line by line, up to this number of lines. */
const DIFF_LINES_MAX = 400;

const canApply = ({ status }) => ["OPEN", "DISMISSED"].includes(status);
const asText = ({ changes, conflict }) => JSON.stringify([changes, conflict ?? null]);

/** `body`: the alternative to apply, if any. `onApply(body)` applies exactly the version on display. */
export default function SavingChange({ item, path, body, onApply }) {
  const url = address(path, canApply(item) ? body : {});
  const [details, setDetails] = useState(null);
  const [failure, setFailure] = useState(null);
  /** Increases with each request, so that outdated responses are ignored. */
  const latest = useRef(0);
  const load = async () => {
    const request = ++latest.current;
    setFailure(null);
    try {
      const loaded = await api.get(url);
      if (request === latest.current) setDetails(loaded);
    } catch (error) {
      if (request === latest.current) setFailure({ title: "Cannot load the change", error });
    }
  };
  useEffect(() => {
    load();
    return () => (latest.current += 1);
  }, [url]);
  /** Fetches again and applies only the change on display. The server refuses later changes, by the version. */
  const apply = async () => {
    const request = ++latest.current;
    setFailure(null);
    try {
      const now = await api.get(url);
      if (request !== latest.current) return;
      if (asText(now) !== asText(details)) {
        setDetails(now);
        setFailure({ title: "Not applied", error: { message: "the change has been updated; check it and apply it again" } });
        return;
      }
      await onApply({ ...body, version: now.version });
    } catch (error) {
      setFailure({ title: "Cannot apply", error });
    }
  };
  const isApplicable = details && canApply(details);
  const hasConflict = isApplicable && details.conflict;
  return html`
    <div class="saving-part" role="group" aria-label="Change" data-testid="saving-change">
      ${!details && !failure && html`<${Loading} />`}
      ${details?.changes.length > 0 && html`<ul class="changes" aria-label="Changes">${details.changes.map((change, at) => html`<${Change} key=${at} change=${change} />`)}</ul>`}
      ${hasConflict && html`<p class="fault" data-testid="saving-conflict">Cannot apply: ${details.conflict}</p>`}
      ${failure && html`<${ErrorNote} ...${failure} testid="saving-failure" />`}
      <div class="buttons">
        ${(hasConflict || failure?.title === "Cannot load the change") && html`<${Button} data-testid="saving-reload" onClick=${load}>Reload<//>`}
        ${isApplicable && !hasConflict && html`<${Button} kind="primary" data-testid="saving-apply" onClick=${apply}>Apply<//>`}
      </div>
    </div>
  `;
}

const textOf = (value) => (typeof value === "string" ? value : api.stringify(value, 2));
const isLong = (value) => typeof value === "string" && (value.includes("\n") || value.length > 80);

/** `what`: "node draft"; `key`: the path of the field, or null for the whole. */
function Change({ change: { what, key, before, after } }) {
  const isDiff = isLong(before) && isLong(after);
  return html`
    <li>
      <p><bdi>${what}</bdi>${key !== null && html` <code>${key}</code>`}</p>
      ${isDiff ? html`<${LineDiff} before=${before} after=${after} />` : html`<div class="sides"><${Side} name="before" sign="−" value=${before} /><${Side} name="after" sign="+" value=${after} /></div>`}
    </li>
  `;
}

const Side = ({ name, sign, value }) => html`
  <div class=${`saving-side ${name}`} data-testid=${`change-${name}`}>
    <span aria-hidden="true">${sign} </span><span class="hidden-text">${name}: </span>${value === null ? html`<span class="muted">not set</span>` : html`<code>${textOf(value)}</code>`}
  </div>
`;

const LineDiff = ({ before, after }) => html`
  <pre class="diff" tabindex="0" role="group" aria-label="Lines before and after" data-testid="change-diff">
    ${linesOf(before.split("\n"), after.split("\n")).map(([sign, line], at) =>
      sign === "−" ? html`<del key=${at}>− ${line}${"\n"}</del>` : sign === "+" ? html`<ins key=${at}>+ ${line}${"\n"}</ins>` : html`<span key=${at}>  ${line}${"\n"}</span>`,
    )}
  </pre>
`;

/** Returns the lines of two texts with their signs, by the longest common subsequence. */
function linesOf(before, after) {
  if (before.length > DIFF_LINES_MAX || after.length > DIFF_LINES_MAX) return [...before.map((line) => ["−", line]), ...after.map((line) => ["+", line])];
  const common = Array.from({ length: before.length + 1 }, () => new Uint16Array(after.length + 1));
  for (let i = before.length - 1; i >= 0; i--) {
    for (let j = after.length - 1; j >= 0; j--) {
      common[i][j] = before[i] === after[j] ? common[i + 1][j + 1] + 1 : Math.max(common[i + 1][j], common[i][j + 1]);
    }
  }
  const lines = [];
  let [i, j] = [0, 0];
  while (i < before.length || j < after.length) {
    if (i < before.length && j < after.length && before[i] === after[j]) {
      lines.push([" ", before[i++]]);
      j++;
    } else if (j >= after.length || (i < before.length && common[i + 1][j] >= common[i][j + 1])) {
      lines.push(["−", before[i++]]);
    } else lines.push(["+", after[j++]]);
  }
  return lines;
}
