/** The dialog that chooses the columns of the view "Calls". This browser remembers them. */

import { html } from "../vendor/preact.js";
import { changeSettings, settings, useStore } from "../state.js";
import { Button, Dialog } from "../ui.js";
import { COLUMNS, shownColumns } from "./calls-rows.js";

export default function ColumnsDialog({ onClose }) {
  const { callColumns } = useStore(settings);
  const shown = shownColumns(callColumns, false).map(({ name }) => name);
  const toggle = (name) => {
    const names = shown.includes(name) ? shown.filter((one) => one !== name) : [...shown, name];
    changeSettings({ callColumns: names });
  };
  return html`
    <${Dialog} title="Columns" onClose=${onClose} testid="columns-dialog">
      <fieldset class="columns-choice">
        <legend class="hidden-text">Columns to show</legend>
        ${COLUMNS.filter(({ name }) => name !== "time").map(({ name, label, title }) => html`
          <label key=${name} class="check"><input type="checkbox" data-testid=${`column-${name}`} checked=${shown.includes(name)} onChange=${() => toggle(name)} /> ${title ?? label}</label>
        `)}
      </fieldset>
      <p class="buttons form-buttons"><${Button} disabled=${callColumns === null} onClick=${() => changeSettings({ callColumns: null })}>Restore defaults<//><${Button} kind="primary" onClick=${onClose}>Done<//></p>
    <//>
  `;
}
