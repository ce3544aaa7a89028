// What is asked for besides the question: kept in this browser, sent with every request.

import { byId } from "./dom.js";
import { settings } from "./storage.js";

const NAME = "acestep-gguf options";
const EXAMPLE = {
  type: "object",
  properties: {
    description: { type: "string", maxLength: 200 },
    colours: { type: "array", items: { type: "string", maxLength: 20 }, maxItems: 5 },
    is_indoors: { enum: ["yes", "no", "unclear"] },
  },
  required: ["description", "colours", "is_indoors"],
};
const FIELDS = ["system", "max-tokens", "temperature", "schema"];

let options = JSON.parse(settings.getItem(NAME) ?? "{}");

/** The JSON Schema that answers follow, or null. */
export const schema = () => (options.schema ? JSON.parse(options.schema) : null);

export const systemPrompt = () => options.system ?? "";

/** What the options add to a request. */
export function asRequest() {
  const body = {};
  if (options["max-tokens"]) body.max_completion_tokens = Number(options["max-tokens"]);
  if (options.temperature) body.temperature = Number(options.temperature);
  if (options.schema) {
    body.response_format = {
      type: "json_schema",
      json_schema: { name: "answer", strict: true, schema: schema() },
    };
  }
  return body;
}

/** Give the dialog its life. */
export function connect() {
  const dialog = byId("options");
  const wrong = byId("schema-wrong");
  const open = () => {
    for (const name of FIELDS) byId(name).value = options[name] ?? "";
    wrong.hidden = true;
    dialog.showModal();
  };
  for (const id of ["open-options", "schema-on", "folder-schema-on"]) byId(id).onclick = open;
  byId("schema-example").onclick = () => (byId("schema").value = JSON.stringify(EXAMPLE, null, 2));
  byId("options-clear").onclick = () => {
    for (const name of FIELDS) byId(name).value = "";
  };
  dialog.querySelector("form").onsubmit = (event) => {
    const problem = problemOf(byId("schema").value);
    wrong.hidden = !problem;
    wrong.textContent = problem;
    if (problem) {
      event.preventDefault();
      byId("schema").focus();
      return;
    }
    options = Object.fromEntries(FIELDS.map((name) => [name, byId(name).value.trim()]));
    settings.setItem(NAME, JSON.stringify(options));
    update();
  };
  update();
}

function update() {
  for (const id of ["schema-on", "folder-schema-on"]) byId(id).hidden = !options.schema;
}

function problemOf(text) {
  if (!text.trim()) return "";
  try {
    const parsed = JSON.parse(text);
    const isObject = typeof parsed === "object" && parsed !== null && !Array.isArray(parsed);
    return isObject ? "" : "A schema is a JSON object: { … }";
  } catch (error) {
    return `This is no JSON: ${error.message}`;
  }
}
