// A conversation: what was asked and answered, and the answer that is being written.

import * as api from "./api.js";
import * as composer from "./composer.js";
import * as history from "./history.js";
import * as options from "./options.js";
import { costOf, costView } from "./cost.js";
import { announce, byId, copy, element, icon } from "./dom.js";
import { form } from "./fields.js";
import { markdown } from "./markdown.js";
import { thumbnail } from "./pictures.js";

const NOTES = {
  stopped: "Stopped.",
  length: "The answer was cut: it may have no more tokens.",
};

let conversation = empty();
let running = null; // an AbortController while an answer is written
let onsaved = () => {};

/**
 * A conversation is {id, title, updated, messages}. A question is {role, text, pictures: [{name, blob}]}, an answer
 * {role, text, state: "writing" | "done" | "stopped" | "length" | "failed", error, schema, cost}.
 */
function empty() {
  return { title: "", updated: 0, messages: [] };
}

/** Give the view its life; `saved` is called after each change of what is kept. */
export function connect(saved) {
  onsaved = saved;
  composer.connect({ onask: submit, onstop: stop });
  show();
}

export const current = () => conversation;

/** Show a conversation, or begin a new one; an answer that is being written is stopped. */
export function open(other = empty()) {
  stop();
  conversation = other;
  composer.clear();
  show();
  byId("question").focus();
}

export function stop() {
  running?.abort();
}

function submit(text, pictures) {
  conversation.title ||= text.slice(0, 80) || pictures[0].name;
  conversation.messages.push({ role: "user", text, pictures });
  return answer();
}

/** Ask the last question again. */
function again() {
  conversation.messages.pop();
  const written = answer();
  byId("stop").focus(); // the button that was pressed is gone
  return written;
}

async function answer() {
  const asked = conversation;
  const message = { role: "assistant", text: "", state: "writing", schema: options.schema() };
  const request = requestFor(asked.messages);
  asked.messages.push(message);
  show();
  running = new AbortController();
  const { signal } = running;
  composer.setWriting(true);
  save(asked);
  try {
    await write(message, await request, signal, asked);
  } catch (error) {
    if (!signal.aborted) Object.assign(message, { state: "failed", error: error.message });
    else if (message.state === "writing") message.state = "stopped";
  }
  if (running?.signal === signal) running = null;
  composer.setWriting(Boolean(running));
  save(asked);
  if (asked === conversation) {
    finish(message);
    announce(message.error ?? (message.state === "done" ? "The answer is complete" : NOTES[message.state]));
  }
}

async function requestFor(messages) {
  const system = options.systemPrompt() ? [{ role: "system", text: options.systemPrompt() }] : [];
  return {
    model: byId("model").value,
    messages: await history.asRequest([...system, ...answered(messages)]),
    ...options.asRequest(),
  };
}

/** The messages without questions that have no word of an answer; the last question has none yet. */
function answered(messages) {
  const isWithout = (message) => message?.role === "assistant" && !message.text && message.state !== "done";
  return messages.filter((message, i) => !isWithout(message) && !isWithout(messages[i + 1]));
}

async function write(message, request, signal, asked) {
  let said = 0; // how much of it a screen reader was told, sentence by sentence
  let saved = performance.now();
  let timings = null;
  for await (const chunk of api.ask(request, signal)) {
    const [choice] = chunk.choices;
    message.text += choice?.delta?.content ?? "";
    if (choice?.finish_reason) message.state = choice.finish_reason === "length" ? "length" : "done";
    timings = chunk.timings ?? timings;
    if (chunk.usage && timings) message.cost = costOf(chunk.usage, timings);
    if (asked === conversation) {
      draw(message);
      const end = message.text.slice(said).search(/[.!?…:]\s|\n/);
      if (end >= 0 && !message.schema) {
        announce(message.text.slice(said, said + end + 1));
        said += end + 1;
      }
    }
    if (performance.now() - saved > 1000) {
      saved = performance.now(); // a reload loses at most this much of it
      save(asked);
    }
  }
  if (asked === conversation && !message.schema) announce(message.text.slice(said));
}

async function save(kept) {
  kept.updated = Date.now();
  try {
    await history.save(kept);
    onsaved();
  } catch {
    byId("no-history").hidden = false;
  }
}

function show() {
  const { messages } = conversation;
  byId("welcome").hidden = messages.length > 0;
  byId("export").disabled = !messages.length;
  byId("messages").replaceChildren(
    ...messages.map((message, i) =>
      message.role === "user" ? questionView(message, i) : answerView(message, i === messages.length - 1),
    ),
  );
  byId("scroll").scrollTop = byId("scroll").scrollHeight;
}

let drawn = 0;

/** Show what the answer is by now, once a frame. */
function draw(message) {
  cancelAnimationFrame(drawn);
  drawn = requestAnimationFrame(() => {
    const text = byId("messages").lastElementChild?.querySelector(".text");
    if (message.state === "writing" && text) atEnd(() => text.replaceChildren(...textOf(message)));
  });
}

/** Show the whole answer; the rest stays as it is, with what has the focus or is open in it. */
function finish(message) {
  if (message === conversation.messages.at(-1)) {
    atEnd(() => byId("messages").lastElementChild.replaceWith(answerView(message, true)));
  }
}

/** Change what is shown, and follow its end where that was in sight. */
function atEnd(change) {
  const scroll = byId("scroll");
  const isAtEnd = scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 40;
  change();
  if (isAtEnd) scroll.scrollTop = scroll.scrollHeight;
}

function questionView(message, i) {
  const pictures = message.pictures.length
    ? element(
        "ul",
        { className: "pictures", "aria-label": "Pictures" },
        ...message.pictures.map((picture) => element("li", {}, thumbnail(picture))),
      )
    : null;
  const change = element(
    "button",
    {
      type: "button",
      className: "icon small",
      "aria-label": "Edit the question",
      onclick: () => edit(view, message, i),
    },
    icon("edit"),
  );
  const text = message.text ? element("p", { className: "said", textContent: message.text }) : null;
  const view = element(
    "article",
    { className: "question", "aria-label": "Question" },
    pictures,
    element("div", { className: "line" }, change, text),
  );
  return view;
}

/** Let a question be written anew; what came after it goes. */
function edit(view, message, i) {
  const area = element("textarea", {
    value: message.text,
    "aria-label": "Question",
    oninput: () => composer.fit(area),
  });
  const leave = () => {
    show();
    byId("messages").children[i].querySelector("button.icon").focus();
  };
  const send = (event) => {
    event.preventDefault();
    stop();
    conversation.messages.splice(i);
    submit(area.value.trim(), message.pictures);
    byId("question").focus();
  };
  const cancel = element("button", {
    type: "button",
    className: "plain",
    textContent: "Cancel",
    onclick: leave,
  });
  const ask = element("button", { type: "submit", className: "main", textContent: "Ask" });
  const editor = element(
    "form",
    { className: "edit", onsubmit: send },
    area,
    element("div", { className: "tools" }, cancel, ask),
  );
  editor.onkeydown = (event) => {
    if (event.key === "Escape") leave();
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) editor.requestSubmit();
  };
  view.querySelector(".line").replaceWith(editor);
  composer.fit(area);
  area.focus();
}

function answerView(message, isLast) {
  const text = element("div", { className: "text" }, ...textOf(message));
  const note = message.error ?? NOTES[message.state];
  const after =
    message.state === "writing"
      ? null
      : element(
          "div",
          { className: "after" },
          copyButton(message),
          isLast ? againButton() : null,
          message.cost ? costView(message.cost) : null,
        );
  return element(
    "article",
    { className: "answer", "aria-label": "Answer", "aria-busy": message.state === "writing" },
    text,
    note ? element("p", { className: message.error ? "wrong" : "quiet", textContent: note }) : null,
    after,
  );
}

function textOf(message) {
  if (message.state === "writing" && !message.text)
    return [element("p", { className: "waiting", textContent: "Reading" })];
  if (message.schema && message.state === "done") return [dataView(message)];
  return message.schema
    ? [element("pre", { className: "data", tabIndex: 0, textContent: message.text })]
    : markdown(message.text);
}

function dataView(message) {
  const owner = conversation;
  try {
    return form(message.schema, JSON.parse(message.text), (value) => {
      message.text = JSON.stringify(value);
      save(owner);
    });
  } catch {
    return element("pre", { className: "data", tabIndex: 0, textContent: message.text }); // no form can be made of it
  }
}

function copyButton(message) {
  const button = element(
    "button",
    { type: "button", className: "icon small", "aria-label": "Copy the answer" },
    icon("copy"),
  );
  button.onclick = async () => {
    try {
      await copy(message.text);
      button.classList.add("done");
      setTimeout(() => button.classList.remove("done"), 1500);
    } catch (error) {
      announce(error.message);
    }
  };
  return button;
}

function againButton() {
  return element(
    "button",
    { type: "button", className: "icon small", "aria-label": "Ask again", onclick: again },
    icon("again"),
  );
}
