/** The view "Run". */

import { html } from "../vendor/preact.js";
import { Page } from "../ui.js";

export default function Run() {
  return html`<${Page} title="Run"><p>…</p><//>`;
}
