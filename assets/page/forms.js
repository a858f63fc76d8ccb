/** Forms: values, fields with their faults, and what happens when the server refuses the input. */

import { html, useLayoutEffect, useRef, useState } from "./vendor/preact.js";
import { parse } from "./api.js";
import { Button, confirmAction, ErrorNote, Field } from "./ui.js";

/**
 * The state of a form. `name` begins the test ids of its fields ("budget-limit"). `check(values)` returns faults
 * (`{ field, message }`) that are found without the server; `send(values)` stores the values and throws the server's
 * errors; `fieldOf(fault)` returns the form's field of a fault. `title` is the title of other errors.
 */
export function useForm({ name, initial, check = () => [], send, fieldOf = ({ field }) => field, title }) {
  const [values, setValues] = useState(initial);
  /** Also holds input that is not rendered yet, for an Enter right after a key. */
  const latest = useRef(values);
  const [faults, setFaults] = useState([]);
  const [problem, setProblem] = useState(null);
  const [isBusy, setBusy] = useState(false);
  const root = useRef(null);
  const known = useRef(new Set());
  useLayoutEffect(() => {
    if (!faults.length) return;
    const field = root.current?.querySelector("[aria-invalid=true]");
    field?.closest("details")?.setAttribute("open", "");
    field?.focus();
  }, [faults]);
  const refuse = (all) => {
    const placed = all.map((fault) => ({ field: fieldOf(fault), message: fault.message }));
    setFaults(placed);
    const others = placed.filter(({ field }) => !known.current.has(field));
    const message = placed.length > others.length ? "Please fix the highlighted fields" : "The server reported errors";
    setProblem({ title: "Not saved", error: { message, details: others } });
  };
  const submit = async (event) => {
    event.preventDefault();
    if (isBusy) return;
    const found = check(latest.current);
    setProblem(null);
    if (found.length) return refuse(found);
    setFaults([]);
    setBusy(true);
    try {
      await send(latest.current);
    } catch (error) {
      if (error.status === 422 && Array.isArray(error.details)) refuse(error.details);
      else setProblem({ title, error });
    } finally {
      setBusy(false);
    }
  };
  const isChanged = () => JSON.stringify(latest.current) !== JSON.stringify(initial);
  return {
    name, values, problem, isBusy, submit, root,
    set(field, value) {
      latest.current = { ...latest.current, [field]: value };
      setValues(latest.current);
    },
    faultOf(field) {
      known.current.add(field);
      return faults.filter((fault) => fault.field === field).map(({ message }) => message).join("; ") || null;
    },
    /** For `Dialog`: asks before it discards input. */
    guard: () => !isChanged() || confirmAction({ title: "Discard your changes?", text: "The input was not saved.", action: "Discard" }),
  };
}

/** A form with its fields, the error and its buttons. The server checks each field, so the browser does not. */
export const Form = ({ form, children, action, onCancel }) => html`
  <form noValidate ref=${form.root} onSubmit=${form.submit} data-testid=${`${form.name}-form`}>
    ${children}
    ${form.problem && html`<${ErrorNote} ...${form.problem} testid=${`${form.name}-problem`} />`}
    <div class="buttons form-buttons">
      <button type="button" data-testid=${`${form.name}-cancel`} onClick=${onCancel}>Cancel</button>
      <${Button} kind="primary" type="submit" busy=${form.isBusy} data-testid=${`${form.name}-save`}>${action}<//>
    </div>
  </form>
`;

const testIds = (form, name) => ({ "data-testid": `${form.name}-${name}`, name });

/** A text field; `multiline` shows several lines. */
export const TextField = ({ form, name, label, hint, multiline = false, ...rest }) => html`
  <${Field} label=${label} hint=${hint} fault=${form.faultOf(name)} faultTestid=${`${form.name}-${name}-fault`}>
    ${(attributes) => {
      const shared = { autocomplete: "off", spellcheck: false, ...attributes, ...testIds(form, name), ...rest, value: form.values[name], onInput: ({ target }) => form.set(name, target.value) };
      return multiline ? html`<textarea rows="3" ...${shared}></textarea>` : html`<input ...${shared} />`;
    }}
  <//>
`;

/** `options`: pairs of value and label. */
export const SelectField = ({ form, name, label, hint, options, ...rest }) => html`
  <${Field} label=${label} hint=${hint} fault=${form.faultOf(name)} faultTestid=${`${form.name}-${name}-fault`}>
    ${(attributes) => html`
      <select ...${attributes} ...${testIds(form, name)} ...${rest} value=${form.values[name]} onChange=${({ target }) => form.set(name, target.value)}>
        ${options.map(([value, text]) => html`<option key=${value} value=${value} selected=${String(value) === String(form.values[name])}>${text}</option>`)}
      </select>
    `}
  <//>
`;

export function CheckField({ form, name, label, hint, disabled = false }) {
  const fault = form.faultOf(name);
  const id = `${form.name}-${name}-check`;
  const notes = [fault && `${id}-fault`, hint && `${id}-hint`].filter(Boolean).join(" ") || null;
  return html`
    <div class="field">
      <label class="check"><input type="checkbox" ...${testIds(form, name)} checked=${form.values[name]} disabled=${disabled} aria-invalid=${fault ? "true" : null} aria-describedby=${notes} onChange=${({ target }) => form.set(name, target.checked)} /> <span>${label}</span></label>
      ${hint && html`<p class="hint" id=${`${id}-hint`}>${hint}</p>`}
      ${fault && html`<p class="fault" id=${`${id}-fault`} data-testid=${`${form.name}-${name}-fault`}>${fault}</p>`}
    </div>
  `;
}

/** Names for the `list` of a text field. */
export const Options = ({ id, values }) => html`<datalist id=${id}>${values.map((value) => html`<option key=${value} value=${value}></option>`)}</datalist>`;

/** All time zones of the browser. */
export function zoneNames() {
  const names = Intl.supportedValuesOf?.("timeZone") ?? [];
  return names.includes("UTC") ? names : ["UTC", ...names];
}

export const isWhole = (text) => /^\d+$/.test(text);

/** Returns a whole number with all its digits; JavaScript's numbers would round large ones. */
export const whole = (text) => parse(text.replace(/^0+(?=\d)/, ""));

/** Returns a whole number, or other text as it is, for the server's error. */
export const wholeOrText = (text) => (isWhole(text) ? whole(text) : text);
