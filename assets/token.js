/** Asks a person for the server's token. */

import { byId } from "./dom.js";

/** Resolves to what was entered; `wasRefused` says that the last one was wrong. */
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
    // Without a token there is nothing to show, so the question stays.
    dialog.onclose = () => dialog.showModal();
  });
}
