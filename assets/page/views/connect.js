/** The view "Connect". */

import { html } from "../vendor/preact.js";
import { Page } from "../ui.js";

export default function Connect() {
  return html`<${Page} title="Connect"><p>…</p><//>`;
}
