/** Asks the user for the server's token. */

import { byId } from "./dom.js";

/** Resolves to the input; `wasRejected` means that the last token was wrong. */
export function askForToken(wasRejected) {
  const dialog = byId("token-dialog");
  const input = byId("token-input");
  byId("token-error").hidden = !wasRejected;
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
