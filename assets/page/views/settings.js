/** The view "Settings". */

import { html } from "../vendor/preact.js";
import { Page } from "../ui.js";

export default function Settings() {
  return html`<${Page} title="Settings"><p>…</p><//>`;
}
