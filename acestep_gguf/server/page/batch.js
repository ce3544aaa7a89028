// A folder of pictures as a queue: each is asked the same, and the answers become a table.

import * as api from "./api.js";
import * as options from "./options.js";
import { costOf, totalSeconds } from "./cost.js";
import { csv } from "./csv.js";
import { announce, byId, download, element } from "./dom.js";
import { asRequest } from "./history.js";
import { ACCEPT, picturesAmong, thumbnail } from "./pictures.js";

const AT_A_TIME = 4; // the server writes several answers at once; a browser opens six connections to a host
const FULL = 429; // status of a server whose queue is full

let rows = []; // {picture, view, state: "" | "writing" | "done" | "failed", text, finish, error, cost, data}
let question = "";
let schema = null;
let running = null; // an AbortController

export function connect() {
  for (const [button, input] of [
    ["choose-folder", "folder-files"],
    ["choose-many", "many-files"],
  ]) {
    byId(button).onclick = () => byId(input).click();
    byId(input).onchange = ({ target }) => {
      take([...target.files]);
      target.value = "";
    };
  }
  byId("many-files").accept = ACCEPT;
  byId("folder-form").onsubmit = (event) => {
    event.preventDefault();
    if (!running) start();
  };
  byId("halt").onclick = () => running?.abort();
  byId("save-csv").onclick = () => download("answers.csv", csv(rows.map(record)));
}

/** Make these files the queue. */
export function take(files) {
  running?.abort();
  const { pictures, others } = picturesAmong(files);
  const natural = new Intl.Collator("en", { numeric: true }).compare; // 2.jpg before 10.jpg
  pictures.sort((a, b) => natural(a.name, b.name));
  rows = pictures.map((picture) => ({ picture, state: "" }));
  question = "";
  byId("folder-title").textContent = folderName(pictures) ?? "Ask about a folder";
  const left = others.length
    ? ` ${others.length} other ${others.length === 1 ? "file is" : "files are"} left out.`
    : "";
  byId("folder-state").textContent = rows.length
    ? `${count(rows.length)}.${left}`
    : `There is no picture in it.${left}`;
  byId("folder-table").hidden = !rows.length;
  byId("start").disabled = !rows.length;
  byId("save-csv").disabled = true;
  byId("folder-progress").hidden = true;
  draw();
  byId("folder-question").focus();
}

const count = (n) => (n === 1 ? "1 picture" : `${n.toLocaleString("en")} pictures`);

function folderName(pictures) {
  const tops = new Set(pictures.map(({ name }) => (name.includes("/") ? name.split("/")[0] : null)));
  return tops.size === 1 ? [...tops][0] : null;
}

/** Ask about the pictures that have no answer to this question yet. */
async function start() {
  const asked = byId("folder-question").value.trim();
  const isAnother = asked !== question || JSON.stringify(options.schema()) !== JSON.stringify(schema);
  question = asked;
  schema = options.schema();
  for (const row of rows) if (isAnother || row.state !== "done") Object.assign(row, fresh());
  draw();
  running = new AbortController();
  const { signal } = running;
  setRunning(true);
  const queue = rows.filter((row) => row.state !== "done");
  const worker = async () => {
    while (queue.length && !signal.aborted) await ask(queue.shift(), signal);
  };
  await Promise.all(Array.from({ length: AT_A_TIME }, worker));
  if (running?.signal === signal) running = null;
  if (running) return; // another folder came
  setRunning(false);
  progress();
  announce(byId("folder-state").textContent);
}

const fresh = () => ({ state: "", text: "", finish: "", error: null, cost: null, data: null });

async function ask(row, signal) {
  row.state = "writing";
  drawRow(row);
  try {
    await write(row, signal);
    row.state = "done";
  } catch (error) {
    Object.assign(row, fresh(), signal.aborted ? {} : { state: "failed", error: error.message });
  }
  drawRow(row);
  progress();
}

async function write(row, signal) {
  const system = options.systemPrompt() ? [{ role: "system", text: options.systemPrompt() }] : [];
  const messages = await asRequest([...system, { role: "user", text: question, pictures: [row.picture] }]);
  const body = { model: byId("model").value, messages, ...options.asRequest() };
  for (;;) {
    let timings = null;
    try {
      for await (const chunk of api.ask(body, signal)) {
        const [choice] = chunk.choices;
        row.text += choice?.delta?.content ?? "";
        row.finish = choice?.finish_reason ?? row.finish;
        timings = chunk.timings ?? timings;
        if (chunk.usage && timings) row.cost = costOf(chunk.usage, timings);
      }
      row.data = schema ? members(row.text) : null;
      return;
    } catch (error) {
      if (error.status !== FULL) throw error;
      await pause(Math.min(error.retryAfter || 1, 60), signal);
    }
  }
}

function pause(s, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, s * 1000);
    signal.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
  });
}

/** The members of an answer that is an object; of another answer, null. */
function members(text) {
  try {
    const value = JSON.parse(text);
    return typeof value === "object" && value !== null && !Array.isArray(value) ? value : null;
  } catch {
    return null; // cut before its end
  }
}

/** A row of the file, with the columns of `acestep-gguf batch`. */
function record({ picture, text, finish, cost, error, data }) {
  const own = {
    id: picture.name,
    prompt: question,
    text,
    finish_reason: finish,
    prompt_tokens: cost?.prompt,
    image_tokens: cost?.images,
    completion_tokens: cost?.completion,
    seconds: cost && Math.round(totalSeconds(cost) * 1000) / 1000,
    error,
  };
  const named = Object.entries(data ?? {}).map(([name, value]) => [
    name in own ? `answer_${name}` : name,
    value,
  ]);
  return { ...own, ...Object.fromEntries(named) };
}

function setRunning(isRunning) {
  const hadFocus = [byId("start"), byId("halt")].includes(document.activeElement);
  byId("start").hidden = isRunning;
  byId("halt").hidden = !isRunning;
  byId("folder-question").readOnly = isRunning;
  byId("folder-progress").hidden = false;
  progress();
  if (hadFocus) byId(isRunning ? "halt" : "start").focus();
}

function progress() {
  const done = rows.filter((row) => row.state === "done").length;
  const failed = rows.filter((row) => row.state === "failed").length;
  byId("folder-progress").max = rows.length || 1;
  byId("folder-progress").value = done + failed;
  byId("save-csv").disabled = !done && !failed;
  byId("folder-state").textContent =
    `${done} of ${count(rows.length)} answered${failed ? `, ${failed} failed` : ""}.`;
}

/** The columns of answers: the members that a schema names, or one for the text. */
function columns() {
  const names = Object.keys(schema?.properties ?? {});
  return names.length ? names : ["Answer"];
}

function draw() {
  const heads = ["Picture", ...columns(), "Tokens", "Seconds"];
  byId("folder-head").replaceChildren(
    ...heads.map((name) => element("th", { scope: "col", textContent: name.replaceAll("_", " ") })),
  );
  for (const row of rows) {
    row.view = element("tr");
    drawRow(row);
  }
  byId("folder-rows").replaceChildren(...rows.map((row) => row.view));
}

function drawRow(row) {
  const name = element(
    "th",
    { scope: "row" },
    element(
      "div",
      {},
      (row.name ??= thumbnail(row.picture)),
      element("span", { textContent: row.picture.name.split("/").slice(-1)[0] }),
    ),
  );
  const numbers = [row.cost?.completion, row.cost && totalSeconds(row.cost).toFixed(2)];
  row.view.className = row.state;
  row.view.replaceChildren(
    name,
    ...answerCells(row),
    ...numbers.map((value) => element("td", { className: "number", textContent: value ?? "" })),
  );
}

function answerCells(row) {
  const names = columns();
  const note = { writing: "Reading", failed: row.error }[row.state];
  if (note !== undefined)
    return [
      element("td", {
        colSpan: names.length,
        className: row.state === "failed" ? "wrong" : "waiting",
        textContent: note,
      }),
    ];
  if (!row.data) return [element("td", { colSpan: names.length, textContent: row.text ?? "" })];
  return names.map((name) => element("td", { textContent: asText(row.data[name]) }));
}

function asText(value) {
  if (value === undefined) return "";
  if (Array.isArray(value) && !value.some((item) => typeof item === "object")) return value.join(", ");
  return typeof value === "string" ? value : JSON.stringify(value);
}
