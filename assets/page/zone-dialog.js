/** A dialog with all time zones of the browser and a search field. */

import { html, useEffect, useMemo, useRef, useState } from "./vendor/preact.js";
import { Dialog, useId } from "./ui.js";

/** Returns "GMT+1" for a zone, at present. */
function offsetOf(zone) {
  const parts = new Intl.DateTimeFormat("en-US", { timeZone: zone, timeZoneName: "shortOffset" }).formatToParts(new Date());
  return parts.find(({ type }) => type === "timeZoneName").value;
}

const readable = (zone) => zone.replaceAll("_", " ");

/** All zones: first the browser's and UTC. */
function zonesOf(system) {
  return [...new Set([system, "UTC", ...(Intl.supportedValuesOf?.("timeZone") ?? [])])].map((zone) => ({ zone, offset: offsetOf(zone) }));
}

/** Returns the zones that contain a text: first those with a word that begins with it. */
function matching(zones, text) {
  const places = zones.map((of) => [of, ` ${readable(of.zone).replaceAll("/", " ")} ${of.zone} ${of.offset}`.toLowerCase()]);
  const found = places.filter(([, words]) => words.includes(text));
  const isFirst = ([, words]) => words.includes(` ${text}`);
  return [...found.filter(isFirst), ...found.filter((of) => !isFirst(of))].map(([of]) => of);
}

/** `zone`: the chosen one. `onChoice(zone)` is called before `onClose()`. */
export function ZoneDialog({ zone, system, onChoice, onClose }) {
  const id = useId("zones");
  const [text, setText] = useState("");
  const zones = useMemo(() => zonesOf(system), [system]);
  const found = matching(zones, text.trim().toLowerCase());
  const [at, setAt] = useState(() => Math.max(0, zones.findIndex((of) => of.zone === zone)));
  const list = useRef(null);
  useEffect(() => list.current.children[at]?.scrollIntoView({ block: "nearest" }), [at, text]);
  const take = (chosen) => {
    onChoice(chosen.zone);
    onClose();
  };
  const onKeyDown = (event) => {
    const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: 8, PageUp: -8 };
    if (event.key in moves) setAt(Math.min(found.length - 1, Math.max(0, at + moves[event.key])));
    else if (event.key === "Enter") found[at] && take(found[at]);
    else return;
    event.preventDefault();
  };
  const onInput = ({ target }) => {
    setText(target.value);
    setAt(0);
  };
  return html`
    <${Dialog} title="Time zone" onClose=${onClose} testid="zone-dialog">
      <p class="muted" id=${`${id}-hint`}>All times, days and periods of this page use this zone. Budgets and schedules keep their own.</p>
      <label class="hidden-text" for=${id}>Search for a time zone</label>
      <input id=${id} type="search" autofocus autocomplete="off" placeholder="Search, for example Berlin" data-testid="zone-search" role="combobox" aria-expanded="true" aria-controls=${`${id}-list`} aria-describedby=${`${id}-hint`} aria-activedescendant=${found[at] ? `${id}-${at}` : null} onInput=${onInput} onKeyDown=${onKeyDown} />
      ${found.length === 0 && html`<p role="status">No time zone matches.</p>`}
      <ul class="zones" role="listbox" aria-label="Time zones" id=${`${id}-list`} ref=${list}>
        ${found.map((of, index) => html`
          <li key=${of.zone} id=${`${id}-${index}`} role="option" aria-selected=${of.zone === zone ? "true" : "false"} class=${index === at ? "active" : ""} data-testid="zone-option" onClick=${() => take(of)}>
            <span>${readable(of.zone)}${of.zone === system ? " (this browser)" : ""}</span><span class="muted">${of.offset}</span>
          </li>
        `)}
      </ul>
    <//>
  `;
}
