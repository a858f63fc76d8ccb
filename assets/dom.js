/** DOM helpers that every part of the page uses. */

/**
 * Creates an element: `h("p", { class: "note", onclick: f }, "text", child)`. Strings become text
 * nodes, never HTML; attributes that are null or false are left out.
 */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export const byId = (id) => document.getElementById(id);

/** Sets text only if it differs, to avoid a needless layout. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Marks an unknown value: a muted dash whose title names the reason. */
export const dash = (reason) =>
  h("span", { class: "muted", title: reason }, h("span", { "aria-hidden": "true" }, "–"), h("span", { class: "hidden-text" }, reason));

/**
 * Returns a function that requests one `draw` in the next frame, for any number of calls, and not before `pauseMs`
 * have passed since the last draw. Background tabs get no frames; a timer draws there, so that updates do not pile up.
 */
export function perFrame(draw, pauseMs = 0) {
  let frame = 0;
  let timer = 0;
  let drawnAt = -pauseMs;
  const run = () => {
    cancelAnimationFrame(frame);
    clearTimeout(timer);
    timer = 0;
    drawnAt = performance.now();
    draw();
  };
  const request = () => {
    frame = requestAnimationFrame(run);
    timer = setTimeout(run, 1000);
  };
  return () => {
    timer ||= setTimeout(request, Math.max(0, drawnAt + pauseMs - performance.now()));
  };
}

export const prefersStillness = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
