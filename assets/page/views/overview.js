/** The view "Overview". */

import { html } from "../vendor/preact.js";
import { Page } from "../ui.js";

export default function Overview() {
  return html`<${Page} title="Overview"><p>…</p><//>`;
}
