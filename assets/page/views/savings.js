/** The view "Savings". */

import { html } from "../vendor/preact.js";
import { Page } from "../ui.js";

export default function Savings() {
  return html`<${Page} title="Savings"><p>…</p><//>`;
}
