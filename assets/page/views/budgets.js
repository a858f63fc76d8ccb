/** The view "Budgets". */

import { html } from "../vendor/preact.js";
import { Page } from "../ui.js";

export default function Budgets() {
  return html`<${Page} title="Budgets"><p>…</p><//>`;
}
