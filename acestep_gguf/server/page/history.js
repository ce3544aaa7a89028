// Conversations, kept in this browser's IndexedDB and nowhere else.

import { dataUrl } from "./pictures.js";

const STORE = "conversations";
let opened = null;

function database() {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open("acestep-gguf", 1);
    request.onupgradeneeded = () =>
      request.result.createObjectStore(STORE, { keyPath: "id", autoIncrement: true });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return opened;
}

async function run(mode, work) {
  const transaction = (await database()).transaction(STORE, mode);
  return new Promise((resolve, reject) => {
    const request = work(transaction.objectStore(STORE));
    transaction.oncomplete = () => resolve(request.result);
    transaction.onabort = transaction.onerror = () => reject(transaction.error);
  });
}

/** All conversations, the newest first. */
export async function all() {
  const conversations = await run("readonly", (store) => store.getAll());
  return conversations.sort((a, b) => b.updated - a.updated);
}

let last = Promise.resolve(); // writes come one after another: the first one gives a conversation its id
const removed = new Set();

/** Keep a conversation as it is now; a new one is given its `id`. */
export function save(conversation) {
  last = last
    .catch(() => {})
    .then(async () => {
      if (removed.has(conversation.id)) return; // an answer to it was still being written
      conversation.id = await run("readwrite", (store) => store.put(conversation));
    });
  return last;
}

export function remove(id) {
  removed.add(id);
  return run("readwrite", (store) => store.delete(id));
}

/** Conversations as JSON, each with its messages as a request has them, pictures included. */
export async function exported(conversations) {
  const written = [];
  for (const { title, updated, messages } of conversations) {
    written.push({ title, updated: new Date(updated).toISOString(), messages: await asRequest(messages) });
  }
  const data = { format: "acestep-gguf page 1", conversations: written };
  return new Blob([JSON.stringify(data, null, 1)], { type: "application/json" });
}

/** Messages as a request has them. */
export function asRequest(messages) {
  return Promise.all(
    messages.map(async ({ role, text, pictures }) => {
      if (!pictures?.length) return { role, content: text };
      const parts = pictures.map(async (picture) => ({
        type: "image_url",
        image_url: { url: await dataUrl(picture) },
      }));
      return { role, content: [...(await Promise.all(parts)), ...(text ? [{ type: "text", text }] : [])] };
    }),
  );
}
