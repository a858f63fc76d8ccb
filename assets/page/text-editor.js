/** A text area for code: line numbers, marked lines, and indentation with Tab. */

import { html, useImperativeHandle, useMemo, useRef } from "./vendor/preact.js";
import { useId } from "./ui.js";

const INDENT = "  ";
/** Rem; the same as in the style sheet. */
const LINE_REM = 1.25;

/** Types text so that the browser's undo knows it. */
function type(area, text) {
  area.focus();
  if (!document.execCommand("insertText", false, text)) {
    area.setRangeText(text, area.selectionStart, area.selectionEnd, "end");
    area.dispatchEvent(new Event("input", { bubbles: true }));
  }
}

/** Indents the selected lines, or removes one step of indentation. */
function indent(area, isBack) {
  const { selectionStart: from, selectionEnd: to, value } = area;
  if (from === to && !isBack) return type(area, INDENT);
  const begin = value.lastIndexOf("\n", from - 1) + 1;
  const lines = value.slice(begin, to).split("\n");
  const changed = lines.map((line) => (isBack ? line.replace(/^ {1,2}|^\t/, "") : INDENT + line)).join("\n");
  area.setSelectionRange(begin, to);
  type(area, changed);
  area.setSelectionRange(begin, begin + changed.length);
  return undefined;
}

/** `marks`: numbers of lines with faults. `handle.current` gets `jumpTo(offset, length)`. `onSave()` is called for Ctrl+S. */
export function TextEditor({ value, onInput, onSave, label, marks, handle, describedBy, isInvalid, testid }) {
  const area = useRef(null);
  const gutter = useRef(null);
  /** After Escape, Tab leaves the field as everywhere else. */
  const isTabFree = useRef(false);
  const hintId = useId("editor-hint");
  const lineCount = useMemo(() => value.split("\n").length, [value]);
  const numbers = useMemo(() => Array.from({ length: lineCount }, (_, at) => at + 1).join("\n"), [lineCount]);
  useImperativeHandle(handle, () => ({
    jumpTo(offset, length = 0) {
      const line = area.current.value.slice(0, offset).split("\n").length;
      const height = LINE_REM * Number.parseFloat(getComputedStyle(document.documentElement).fontSize);
      area.current.focus({ preventScroll: true });
      area.current.setSelectionRange(offset, offset + length);
      area.current.scrollTop = Math.max(0, line * height - area.current.clientHeight / 2);
      area.current.scrollIntoView({ block: "nearest" });
    },
  }), []);
  const onKeyDown = (event) => {
    const isCommand = event.ctrlKey || event.metaKey;
    if (isCommand && event.key === "s") {
      event.preventDefault();
      onSave();
    } else if (event.key === "Escape") isTabFree.current = true;
    else if (event.key === "Tab" && !isTabFree.current && !isCommand && !event.altKey) {
      event.preventDefault();
      indent(area.current, event.shiftKey);
    } else if (event.key === "Enter" && !isCommand && !event.isComposing) {
      const { value: text, selectionStart } = area.current;
      const before = text.slice(text.lastIndexOf("\n", selectionStart - 1) + 1, selectionStart);
      event.preventDefault();
      type(area.current, `\n${/^ */.exec(before)[0]}${/[[{]\s*$/.test(before) ? INDENT : ""}`);
    } else if (event.key !== "Shift" && event.key !== "Tab") isTabFree.current = false;
  };
  return html`
    <div class="text-editor">
      <div class="text-gutter" ref=${gutter} aria-hidden="true"><pre>${numbers}</pre>${marks.map((line) => html`<span key=${line} class="text-mark" data-line=${line} style=${{ top: `${(line - 1) * LINE_REM + 0.5}rem` }}>${line}</span>`)}</div>
      <textarea ref=${area} data-testid=${testid} aria-label=${label} aria-describedby=${`${hintId} ${describedBy}`} aria-invalid=${isInvalid ? "true" : null} wrap="off" spellcheck="false" autocomplete="off" autocapitalize="off" value=${value}
        onInput=${({ target }) => onInput(target.value)} onKeyDown=${onKeyDown} onFocus=${() => (isTabFree.current = false)} onScroll=${() => (gutter.current.scrollTop = area.current.scrollTop)}></textarea>
    </div>
    <p class="hint" id=${hintId}>Tab indents; to leave the field, press Esc and then Tab. Ctrl+S saves.</p>
  `;
}
