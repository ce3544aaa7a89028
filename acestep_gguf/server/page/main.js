// The page: its two views, what is dropped or pasted on it, and its list of conversations.

import * as api from "./api.js";
import * as batch from "./batch.js";
import * as chat from "./chat.js";
import * as composer from "./composer.js";
import * as history from "./history.js";
import * as options from "./options.js";
import { byId, download, element, icon } from "./dom.js";
import { dropped } from "./pictures.js";
import { settings } from "./storage.js";

function trouble(text) {
  byId("trouble").textContent = text;
  byId("trouble").hidden = !text;
}

// Views

function view(name) {
  for (const other of ["chat", "folder"]) {
    byId(other).hidden = other !== name;
    if (other === name) byId(`to-${other}`).setAttribute("aria-current", "page");
    else byId(`to-${other}`).removeAttribute("aria-current");
  }
  byId("export").hidden = name !== "chat";
}

byId("to-chat").onclick = () => view("chat");
byId("to-folder").onclick = () => view("folder");

// Appearance

byId("theme").value = settings.getItem("acestep-gguf theme") ?? "";
byId("theme").onchange = ({ target }) => {
  document.documentElement.dataset.theme = target.value;
  settings.setItem("acestep-gguf theme", target.value);
};

// Files that are dropped or pasted

function isOfFiles(event) {
  return event.dataTransfer?.types.includes("Files");
}

let inside = 0; // entering a node comes before leaving the one around it

addEventListener("dragenter", (event) => {
  if (isOfFiles(event)) byId("drop").hidden = ++inside === 0;
});
addEventListener("dragleave", (event) => {
  if (isOfFiles(event)) byId("drop").hidden = --inside === 0;
});
addEventListener("dragover", (event) => {
  if (isOfFiles(event)) event.preventDefault();
});
addEventListener("drop", (event) => {
  if (!isOfFiles(event)) return;
  event.preventDefault();
  inside = 0;
  byId("drop").hidden = true;
  composer.holdUntil(take(event.dataTransfer));
});

async function take(transfer) {
  try {
    const { files, hasFolder } = await dropped(transfer);
    if (hasFolder || !byId("folder").hidden) {
      view("folder");
      batch.take(files);
    } else attach(files);
  } catch (error) {
    trouble(`What was dropped cannot be read: ${error.message}`);
  }
}

addEventListener("paste", (event) => {
  const files = [...event.clipboardData.files];
  if (!files.length || byId("chat").hidden || document.querySelector("dialog[open]")) return;
  event.preventDefault();
  attach(files);
});

function attach(files) {
  const others = composer.attach(files);
  trouble(others.length ? `No picture that this server reads: ${others.join(", ")}` : "");
}

// Conversations

let listed = "";

async function listConversations() {
  const conversations = await history.all();
  const names = JSON.stringify([chat.current().id, ...conversations.map(({ id, title }) => [id, title])]);
  if (names === listed) return; // what has the focus in it keeps it
  listed = names;
  const items = conversations.map((conversation) => {
    const isCurrent = conversation.id === chat.current().id;
    const open = element("button", {
      type: "button",
      className: "entry",
      textContent: conversation.title,
      onclick: () => openConversation(conversation),
    });
    if (isCurrent) open.setAttribute("aria-current", "true");
    const remove = element(
      "button",
      {
        type: "button",
        className: "icon small",
        "aria-label": `Delete ${conversation.title}`,
        onclick: () => removeConversation(conversation),
      },
      icon("remove"),
    );
    return element("li", {}, open, remove);
  });
  byId("conversations").replaceChildren(...items);
  byId("export-all").disabled = !items.length;
}

async function openConversation({ id }) {
  const found = (await history.all()).find((conversation) => conversation.id === id);
  for (const message of found.messages) if (message.state === "writing") message.state = "stopped"; // the page went away
  view("chat");
  chat.open(found);
  closeSide();
  listConversations();
}

async function removeConversation({ id, title }) {
  if (!confirm(`Delete “${title}”?`)) return;
  if (id === chat.current().id) chat.open();
  await history.remove(id);
  await listConversations();
  byId("new").focus();
}

byId("new").onclick = () => {
  view("chat");
  chat.open();
  closeSide();
  listConversations();
};
byId("export-all").onclick = async () =>
  download("conversations.json", await history.exported(await history.all()));
byId("export").onclick = async () => download("conversation.json", await history.exported([chat.current()]));

// The list of conversations on a phone, where it lies over the page

function setSide(isOpen) {
  byId("side").classList.toggle("open", isOpen);
  byId("shade").hidden = !isOpen;
  byId("open-side").setAttribute("aria-expanded", isOpen);
  document.querySelector("main").inert = isOpen;
}

function closeSide() {
  if (byId("shade").hidden) return;
  setSide(false);
  byId("open-side").focus();
}

byId("open-side").onclick = () => {
  setSide(true);
  byId("new").focus();
};
byId("shade").onclick = closeSide;

addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
  if (byId("shade").hidden) chat.stop();
  else closeSide();
});

// Start

async function listModels() {
  const names = await api.models();
  byId("model").replaceChildren(...names.map((name) => element("option", { textContent: name })));
  byId("model").disabled = names.length < 2;
}

options.connect();
batch.connect();
chat.connect(listConversations);
listConversations().catch(() => (byId("no-history").hidden = false));
listModels().catch((error) => trouble(error.message));
