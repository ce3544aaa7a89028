// The server's key: asked for when it is needed, kept in this tab's session.

import { byId } from "./dom.js";
import { session } from "./storage.js";

const NAME = "acestep-gguf key";

export function authorization() {
  const key = session.getItem(NAME);
  return key ? { Authorization: `Bearer ${key}` } : {};
}

let asking = null;

/** Ask for the key; requests that wait for it share one dialog. Gives whether there is one now. */
export function askForKey(refused) {
  const key = session.getItem(NAME);
  if (key && refused.Authorization !== `Bearer ${key}`) return Promise.resolve(true); // another request asked meanwhile
  asking ??= show(Boolean(refused.Authorization)).finally(() => (asking = null));
  return asking;
}

function show(wrong) {
  const dialog = byId("key");
  const text = byId("key-text");
  byId("key-wrong").hidden = !wrong;
  text.value = "";
  dialog.showModal();
  text.focus();
  return new Promise((resolve) => {
    dialog.querySelector("form").onsubmit = (event) => {
      event.preventDefault();
      session.setItem(NAME, text.value.trim());
      dialog.close("given");
    };
    byId("key-cancel").onclick = () => dialog.close("");
    dialog.onclose = () => {
      resolve(dialog.returnValue === "given");
      dialog.returnValue = "";
      text.value = "";
    };
  });
}
