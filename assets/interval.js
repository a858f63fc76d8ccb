/** An interval of money as a bar, with a mark at its most likely amount; screen readers get a text. */

import { h } from "./dom.js";
import { roughly } from "./format.js";

export function createInterval() {
  const range = h("div", { class: "interval-range" });
  const mark = h("div", { class: "interval-mark" });
  const root = h("div", { class: "interval", role: "img", "data-testid": "interval" }, range, mark);

  /** `most` is the amount at the right end of the bar. */
  function update({ lowUsd, expectedUsd, highUsd }, most) {
    const share = (amount) => (most > 0 ? Math.min(100, (100 * amount) / most) : 0);
    // Set through the CSSOM, which the content security policy allows.
    range.style.insetInlineStart = `${share(lowUsd)}%`;
    range.style.inlineSize = `${share(highUsd) - share(lowUsd)}%`;
    mark.style.insetInlineStart = `${share(expectedUsd)}%`;
    root.ariaLabel = `Between ${roughly(lowUsd)} and ${roughly(highUsd)} USD in 30 days, most likely ${roughly(expectedUsd)}`;
  }

  return { root, update };
}
