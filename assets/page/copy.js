/** Copies text to the clipboard, and saves it as a file. */

const SAVED_MS = 60_000;

/** Browsers allow the clipboard API only on localhost and HTTPS; elsewhere `execCommand` copies. Returns success. */
export async function copyText(text, beside) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const field = document.createElement("textarea");
    field.className = "hidden-text";
    field.readOnly = true;
    field.value = text;
    beside.after(field); // Inside the same dialog, because only its elements can have the focus.
    field.select();
    const isCopied = document.execCommand("copy");
    field.remove();
    beside.focus();
    return isCopied;
  }
}

/** Saves a text or a blob as a file. */
export function saveFile(name, content, type = "application/json") {
  const blob = content instanceof Blob ? content : new Blob([content], { type });
  const url = URL.createObjectURL(blob);
  const link = Object.assign(document.createElement("a"), { href: url, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), SAVED_MS);
}
