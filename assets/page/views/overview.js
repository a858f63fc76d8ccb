/** The view "Overview". */

import { html } from "../vendor/preact.js";
import { PeriodPicker, usePeriod } from "../period-picker.js";
import { Page } from "../ui.js";

export default function Overview({ query }) {
  const { label, from, to, zone } = usePeriod(query);
  return html`<${Page} title="Overview" actions=${html`<${PeriodPicker} query=${query} />`}><p>${label}: ${from} to ${to} in ${zone}</p><//>`;
}
