// An answer that follows a JSON Schema, as a form. What a person corrects in it is the answer from then on.

import { element } from "./dom.js";

/** A form for a value; `onchange` is called with the whole value after each correction. */
export function form(schema, value, onchange) {
  const root = { value };
  const changed = () => onchange(root.value);
  return element(
    "div",
    { className: "fields", role: "group", "aria-label": "Answer as data" },
    field(schema, schema, root, "value", "", changed),
  );
}

function field(root, schema, holder, key, name, changed) {
  const value = holder[key];
  const known = resolved(root, schema, value);
  const title = String(known.title ?? name).replaceAll("_", " ");
  if (value !== null && typeof value === "object") return group(root, known, value, title, changed);
  const input = inputFor(known, value);
  input.onchange = () => {
    holder[key] = read(input, value, known);
    changed();
  };
  if (known.description) input.title = String(known.description);
  return element("label", {}, element("span", { textContent: title || "Answer" }), input);
}

function group(root, schema, value, title, changed) {
  const names = Object.keys(value);
  const isList = Array.isArray(value);
  const children = names.map((name, i) => {
    const inner = isList
      ? (schema.prefixItems?.[i] ?? schema.items)
      : (schema.properties?.[name] ?? schema.additionalProperties);
    return field(root, inner, value, name, isList ? `${i + 1}` : name, changed);
  });
  if (!children.length) children.push(element("p", { className: "quiet", textContent: "Nothing" }));
  return element("fieldset", {}, title ? element("legend", { textContent: title }) : null, ...children);
}

/** The part of a schema that says most about a value: references followed, of alternatives the one with its type. */
function resolved(root, schema, value, depth = 0) {
  if (typeof schema !== "object" || schema === null || depth > 8) return {};
  if (typeof schema.$ref === "string") return resolved(root, pointed(root, schema.$ref), value, depth + 1);
  const alternatives = schema.anyOf ?? schema.oneOf;
  if (!Array.isArray(alternatives)) return schema;
  const parts = alternatives.map((part) => resolved(root, part, value, depth + 1));
  return { ...schema, ...(parts.find((part) => fits(part, value)) ?? {}) };
}

function pointed(root, reference) {
  const names = reference.replace(/^#\/?/, "").split("/").filter(Boolean);
  return names.reduce(
    (at, name) => at?.[decodeURIComponent(name).replaceAll("~1", "/").replaceAll("~0", "~")],
    root,
  );
}

function fits(schema, value) {
  if (Array.isArray(schema.enum)) return schema.enum.includes(value);
  const type = value === null ? "null" : Array.isArray(value) ? "array" : typeof value;
  return schema.type === type || (schema.type === "integer" && Number.isInteger(value));
}

function inputFor(schema, value) {
  if (Array.isArray(schema.enum) && schema.enum.includes(value)) {
    const choices = schema.enum.map((choice, i) =>
      element("option", { value: i, textContent: shown(choice), selected: choice === value }),
    );
    return element("select", {}, ...choices);
  }
  if (typeof value === "boolean") return element("input", { type: "checkbox", checked: value });
  if (typeof value === "number") return element("input", { type: "number", step: "any", value });
  const text = value === null ? "" : value;
  if (text.length > 60 || text.includes("\n"))
    return element("textarea", { value: text, rows: Math.min(8, Math.ceil(text.length / 60) + 1) });
  return element("input", { type: "text", value: text, placeholder: value === null ? "null" : "" });
}

function read(input, before, schema) {
  if (input.tagName === "SELECT") return schema.enum[Number(input.value)];
  if (input.type === "checkbox") return input.checked;
  if (input.type === "number") return Number.isFinite(input.valueAsNumber) ? input.valueAsNumber : before;
  return before === null && !input.value ? null : input.value;
}

const shown = (value) => (typeof value === "string" ? value : JSON.stringify(value));
