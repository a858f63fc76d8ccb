/** Actions on the selected runs of the view "Runs". */

import { html } from "../vendor/preact.js";
import { count, plural } from "../format.js";
import { actOnRuns, fitting } from "../run-actions.js";
import { Button } from "../ui.js";

const ACTIONS = [
  ["cancel", "Cancel", "danger"],
  ["retry", "Retry", ""],
  ["delete", "Delete…", "danger"],
];

/** `onDone(action, runIds)` is called with the runs to which an action was applied; the others stay selected. */
export function BulkBar({ runs, onDone, onClear }) {
  const act = async (action) => {
    const succeeded = await actOnRuns(action, runs);
    if (succeeded) onDone(action, succeeded);
  };
  return html`
    <div class="bulk-bar" role="region" aria-label="Selected runs" data-testid="bulk-bar">
      <strong role="status">${plural(runs.length, "run")} selected</strong>
      <div class="buttons">
        ${ACTIONS.map(([action, label, kind]) => {
          const number = fitting(action, runs).length;
          return number > 0 && html`<${Button} key=${action} kind=${kind} data-testid=${`bulk-${action}`} onClick=${() => act(action)}>${label}${number < runs.length ? ` ${count(number)}` : ""}<//>`;
        })}
        <button type="button" class="quiet" onClick=${onClear}>Clear selection</button>
      </div>
    </div>
  `;
}
