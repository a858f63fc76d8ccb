/** Asks the user for the server's token. */

import { byId } from "./dom.js";

/** Resolves to the input; `wasRefused` means that the last token was wrong. */
export function askForToken(wasRefused) {
  const dialog = byId("token-dialog");
  const input = byId("token-input");
  byId("token-refused").hidden = !wasRefused;
  input.value = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.querySelector("form").onsubmit = (event) => {
      event.preventDefault();
      dialog.onclose = null;
      dialog.close();
      resolve(input.value.trim());
    };
    // Without a token there is nothing to show, so the dialog stays open.
    dialog.onclose = () => dialog.showModal();
  });
}
