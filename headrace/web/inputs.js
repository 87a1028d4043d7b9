// Form controls for one property of a JSON Schema.

import { el } from "./dom.js";

/**
 * What is made for a property: `inputs` (elements in order), `value` (the one with the value), `write(value)`,
 * `move(value)` where a slider follows, and `onchange`, to be set, which gets each new value.
 */
export function makeInput(about, id) {
  const made = { inputs: [], onchange: () => {} };
  const changed = (value) => made.onchange(value);
  if (Array.isArray(about.enum)) makeChoice(made, about, id, changed);
  else if (about.type === "boolean") makeSwitch(made, id, changed);
  else if (about.type === "integer" || about.type === "number") makeNumber(made, about, id, changed);
  else makeText(made, about, id, changed);
  return made;
}

function makeChoice(made, about, id, changed) {
  const options = about.enum.map((item, index) => el("option", { value: index }, String(item)));
  made.value = el("select", { id, class: "value" }, ...options);
  made.value.addEventListener("change", () => changed(about.enum[Number(made.value.value)]));
  made.write = (value) => (made.value.value = String(about.enum.indexOf(value)));
  made.inputs = [made.value];
}

function makeSwitch(made, id, changed) {
  made.value = el("input", { id, type: "checkbox" });
  made.value.addEventListener("change", () => changed(made.value.checked));
  made.write = (value) => (made.value.checked = Boolean(value));
  made.inputs = [made.value];
}

function makeText(made, about, id, changed) {
  const wide = about.multiline ? "textarea" : "input";
  made.value = el(wide, { id, class: "value wide", rows: about.multiline ? 3 : null });
  const text = about.type === "string" || typeof about.default === "string";
  made.value.addEventListener("change", () => changed(text ? made.value.value : fromText(made.value.value)));
  made.write = (value) => (made.value.value = text ? (value ?? "") : JSON.stringify(value ?? null));
  made.inputs = [made.value];
}

function makeNumber(made, about, id, changed) {
  const { minimum: min, maximum: max } = about;
  const step = about.step ?? (about.type === "integer" ? 1 : null);
  const attributes = { min, max, step: step ?? "any" };
  made.value = el("input", { id, type: "number", class: "value", ...attributes });
  made.inputs = [made.value];
  const bounded = min != null && max != null && (max - min) / (step ?? (max - min) / 200) <= 2000;
  const range = bounded
    ? el("input", { type: "range", ...attributes, step: step ?? (max - min) / 200, tabindex: -1, "aria-hidden": "true" })
    : null;
  if (range) {
    made.inputs.push(range);
    range.addEventListener("input", () => {
      made.value.value = range.value;
      changed(Number(range.value));
    });
  }
  made.value.addEventListener("change", () => {
    const number = Number(made.value.value);
    // What is no number is sent as it is: the worker says what it expects.
    changed(made.value.value !== "" && Number.isFinite(number) ? number : made.value.value);
  });
  made.move = (value) => range && value != null && (range.value = value);
  made.write = (value) => {
    made.value.value = value ?? "";
    made.move(value);
  };
}

function fromText(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}
