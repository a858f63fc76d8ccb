/** The view "Flow". */

import { html } from "../vendor/preact.js";
import { Page } from "../ui.js";

export default function Flow() {
  return html`<${Page} title="Flow"><p>…</p><//>`;
}
