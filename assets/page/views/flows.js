/** The view "Flows". */

import { html } from "../vendor/preact.js";
import { Page } from "../ui.js";

export default function Flows() {
  return html`<${Page} title="Flows"><p>…</p><//>`;
}
