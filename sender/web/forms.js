/** Labelled fields, and a form that shows errors at their field. */

import { ApiProblem } from "./api.js";
import { append, fill, freshId, h, icon } from "./dom.js";
import { errorText } from "./components.js";

/**
 * @typedef {object} Field
 * @property {HTMLElement} element label, input, hint, error
 * @property {any} input
 * @property {string} name
 * @property {(message: string) => void} setError empty: no error
 */

/**
 * @param {{label: string, name: string, input?: any, type?: string, value?: any, hint?: string, required?: boolean, class?: string, attributes?: Record<string, any>}} options
 * @returns {Field}
 */
export function field({ label, name, input, type = "text", value, hint, required, class: className = "", attributes = {} }) {
  const id = freshId("field");
  const control = input ?? h("input", { type, name, value: value ?? "", required, autocomplete: "off", ...attributes });
  control.id = id;
  const hintId = `${id}-hint`;
  const errorId = `${id}-error`;
  const error = h("p", { class: "field-error", id: errorId, hidden: true });
  if (hint) control.setAttribute("aria-describedby", hintId);
  const element = h("div", { class: `field ${className}` },
    h("label", { for: id }, label, required && h("span", { class: "required" }, " (required)")),
    control,
    hint && h("p", { class: "hint", id: hintId }, hint),
    error);
  const setError = (/** @type {string} */ message) => {
    error.hidden = !message;
    fill(error, message && [icon("warning"), message]);
    if (message) control.setAttribute("aria-invalid", "true");
    else control.removeAttribute("aria-invalid");
    const described = [hint && hintId, message && errorId].filter(Boolean).join(" ");
    if (described) control.setAttribute("aria-describedby", described);
    else control.removeAttribute("aria-describedby");
  };
  control.addEventListener("input", () => setError(""));
  return { element, input: control, name, setError };
}

/**
 * @param {{name: string, options: [value: string, label: string][], value?: string, required?: boolean}} options
 * @returns {any} a select element
 */
export function select({ name, options, value, required }) {
  return h("select", { name, required }, options.map(([key, label]) => h("option", { value: key, selected: key === (value ?? "") }, label)));
}

/**
 * Creates radio buttons with a legend.
 * @param {{legend: string, name: string, options: {value: string, label: string, hint?: string, more?: any}[], value: string, onchange?: (value: string) => void}} options
 */
export function choices({ legend, name, options, value, onchange }) {
  const group = h("fieldset", { class: "choices" }, h("legend", {}, legend));
  for (const option of options) {
    const id = freshId("choice");
    const input = h("input", { type: "radio", name, value: option.value, id, checked: option.value === value, "aria-describedby": option.hint ? `${id}-hint` : null });
    const more = option.more && h("div", { class: "choice-more", hidden: option.value !== value }, option.more);
    append(group, [h("div", { class: "choice" }, input,
      h("div", {}, h("label", { for: id }, option.label), option.hint && h("p", { class: "hint", id: `${id}-hint` }, option.hint), more))]);
  }
  const read = () => /** @type {HTMLInputElement} */ (group.querySelector("input[type=radio]:checked")).value;
  group.addEventListener("change", (event) => {
    if (/** @type {HTMLInputElement} */ (event.target).name !== name) return;
    group.querySelectorAll(":scope > .choice").forEach((choice) => {
      const radio = /** @type {HTMLInputElement} */ (choice.querySelector("input[type=radio]"));
      const more = /** @type {HTMLElement | null} */ (choice.querySelector(".choice-more"));
      if (more) more.hidden = !radio.checked;
    });
    onchange?.(read());
  });
  return { element: group, read };
}

/**
 * Creates a form with one submission at a time, which shows errors of the daemon at the fields that they name.
 * @param {{fields: Field[], content: any, submit: string, onsubmit: () => Promise<void>, cancel?: any, class?: string}} options
 * @returns {HTMLFormElement}
 */
export function form({ fields, content, submit, onsubmit, cancel, class: className = "form" }) {
  const summary = h("div", { class: "alert", "data-tone": "bad", role: "alert", hidden: true });
  const button = h("button", { type: "submit", class: "button primary" }, submit);
  const element = h("form", { class: className, novalidate: true }, content, summary, h("div", { class: "form-actions" }, cancel, button));

  const show = (/** @type {unknown} */ error) => {
    /** @type {string[]} */
    const rest = [];
    if (error instanceof ApiProblem && error.errors.length) {
      for (const { field: name, message } of error.errors) {
        const known = fields.find((candidate) => candidate.name === name.split(".").pop());
        if (known) known.setError(message);
        else rest.push(`${name}: ${message}`);
      }
      if (rest.length) rest.unshift(error.message);
    } else {
      rest.push(errorText(error));
    }
    summary.hidden = rest.length === 0;
    fill(summary, icon("warning"), h("p", {}, rest.join(" ")));
    /** @type {HTMLElement | null} */ (element.querySelector("[aria-invalid=true]"))?.focus();
  };

  element.addEventListener("submit", async (/** @type {SubmitEvent} */ event) => {
    event.preventDefault();
    if (button.disabled) return;
    summary.hidden = true;
    const missing = fields.filter((candidate) => candidate.input.offsetParent !== null && !candidate.input.checkValidity());
    for (const each of fields) each.setError(missing.includes(each) ? validityText(each.input) : "");
    if (missing.length) {
      missing[0].input.focus();
      return;
    }
    button.disabled = true;
    element.setAttribute("aria-busy", "true");
    try {
      await onsubmit();
    } catch (error) {
      show(error);
    } finally {
      button.disabled = false;
      element.removeAttribute("aria-busy");
    }
  });
  return element;
}

/** @param {HTMLInputElement} input */
function validityText(input) {
  if (input.validity.customError) return input.validationMessage;
  if (input.validity.valueMissing) return input.tagName === "SELECT" ? "Choose one." : "Fill this in.";
  return input.validationMessage;
}

/** Creates an error of one field, found before submission. @param {string} name @param {string} message */
export function fieldProblem(name, message) {
  return new ApiProblem(422, "Not sent", message, [{ field: name, message }], "");
}
