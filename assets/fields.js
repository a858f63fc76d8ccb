/** Form fields, each with a label, a hint and an error. */

import { newId } from "./dialogs.js";
import { h } from "./dom.js";

export const LOCAL_ZONE = new Intl.DateTimeFormat().resolvedOptions().timeZone ?? "UTC";

/** `control` is an input, a select or a textarea; tests find it as `FORM-NAME`. */
export function createField(form, name, label, control, hint) {
  const [id, hintId, faultId] = [newId(name), newId("hint"), newId("fault")];
  const fault = h("p", { class: "fault", id: faultId, "data-testid": `${form}-${name}-fault`, hidden: true });
  control.id = id;
  control.name = name;
  control.dataset.testid = `${form}-${name}`;
  control.setAttribute("aria-describedby", hint ? `${hintId} ${faultId}` : faultId);
  const root = h(
    "div",
    { class: control.type === "checkbox" ? "form-field check" : "form-field" },
    h("label", { for: id }, label),
    control,
    hint ? h("p", { class: "muted hint", id: hintId }, hint) : null,
    fault,
  );
  /** Without messages, marks the field as valid. */
  const fail = (messages) => {
    fault.hidden = messages.length === 0;
    fault.textContent = messages.join("; ");
    control.ariaInvalid = messages.length ? "true" : null;
  };
  return { root, control, fail };
}

/** Shows each fault at the field that `nameOf(fault)` names, and returns the faults that belong to no field. */
export function showFaults(fields, faults, nameOf) {
  for (const [name, field] of Object.entries(fields)) {
    field.fail(faults.filter((fault) => nameOf(fault) === name).map(({ message }) => message));
  }
  return faults.filter((fault) => !Object.hasOwn(fields, nameOf(fault)));
}

/** Returns the error that describes refused input; `others` are the faults without a field. */
export const faultSummary = (faults, others) => ({
  message: faults.length > others.length ? "please fix the highlighted fields" : "the server reported errors",
  details: others,
});

/** A datalist of all time zones, for inputs whose `list` is `root.id`; there are hundreds, so call `fill` on demand. */
export function createZones() {
  const root = h("datalist", { id: newId("zones") });
  const fill = () => {
    if (!root.children.length) root.append(...zoneNames().map((name) => h("option", { value: name })));
  };
  return { root, fill };
}

function zoneNames() {
  const names = Intl.supportedValuesOf?.("timeZone") ?? [];
  return names.includes("UTC") ? names : ["UTC", ...names];
}
