/** The view "Calls". */

import { html } from "../vendor/preact.js";
import { Page } from "../ui.js";

export default function Calls() {
  return html`<${Page} title="Calls"><p>…</p><//>`;
}
