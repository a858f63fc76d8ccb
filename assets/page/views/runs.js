/** The view "Runs". */

import { html } from "../vendor/preact.js";
import { Page } from "../ui.js";

export default function Runs() {
  return html`<${Page} title="Runs"><p>…</p><//>`;
}
