/** Shows a new key once. Closing asks for a confirmation, unless the key was copied. */

import { html, useState } from "../vendor/preact.js";
import { curl } from "../client-setups.js";
import { confirmAction, Copy, Dialog } from "../ui.js";

/** `created`: the response of the server, with the `key` itself. */
export function KeyCreated({ created: { name, key }, onClose }) {
  const [isCopied, setCopied] = useState(false);
  const guard = () =>
    isCopied ||
    confirmAction({
      title: "Close without copying the key?",
      text: "The server cannot show it again. Until you leave this view, the set-ups of clients still contain it.",
      action: "Close",
    });
  const close = async () => (await guard()) && onClose();
  const example = curl({ base: location.origin, key });
  const onCopied = () => setCopied(true);
  return html`
    <${Dialog} title=${`Key “${name}”`} onClose=${onClose} guard=${guard} testid="key-created">
      <p><strong>This key is shown only once.</strong> Copy it now. flowledger stores only its hash.</p>
      <div class="secret"><code data-testid="key-secret">${key}</code><${Copy} text=${key} name="key" label="Copy key" kind="primary" onCopied=${onCopied} autofocus data-testid="key-copy" /></div>
      <p class="muted">Use it as the API key of any client. The set-ups in “Set up a client” now contain it. For example:</p>
      <div class="code-block">
        <div class="code-head"><span class="muted">Shell</span><${Copy} text=${example} name="curl example" onCopied=${onCopied} /></div>
        <pre tabindex="0" role="group" aria-label="Example with curl" data-testid="key-curl">${example}</pre>
      </div>
      <div class="buttons form-buttons"><button type="button" data-testid="key-done" onClick=${close}>Done</button></div>
    <//>
  `;
}
