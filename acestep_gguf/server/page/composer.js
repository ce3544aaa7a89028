// Where a question is written, and pictures are put to it.

import { byId, element, icon, announce } from "./dom.js";
import { ACCEPT, picturesAmong, thumbnail } from "./pictures.js";

const attached = [];
let coming = Promise.resolve(); // files that were dropped and are still being gathered

/** Give the form its life; `onask` is called with a question's text and pictures. */
export function connect({ onask, onstop }) {
  const question = byId("question");
  byId("composer").onsubmit = async (event) => {
    event.preventDefault();
    await coming;
    const text = question.value.trim();
    if (!text && !attached.length) return question.focus();
    if (!byId("stop").hidden) return; // an answer is being written
    const pictures = attached.splice(0);
    question.value = "";
    fit(question);
    update();
    onask(text, pictures);
  };
  byId("stop").onclick = onstop;
  question.oninput = () => fit(question);
  question.onkeydown = (event) => {
    const isPhone = matchMedia("(pointer: coarse)").matches; // its keyboard has no Shift+Enter
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing && !isPhone) {
      event.preventDefault();
      byId("composer").requestSubmit();
    }
  };
  for (const [button, input] of [
    ["pick", "pick-files"],
    ["take", "take-photo"],
  ]) {
    byId(input).accept = input === "pick-files" ? ACCEPT : "image/*";
    byId(button).onclick = () => byId(input).click();
    byId(input).onchange = ({ target }) => {
      attach([...target.files]);
      target.value = ""; // the same file may be chosen again
    };
  }
}

/** Put pictures to the question; gives the names of files that are none. */
export function attach(files) {
  const { pictures, others } = picturesAmong(files);
  attached.push(...pictures);
  update();
  if (pictures.length)
    announce(pictures.length === 1 ? `${pictures[0].name} added` : `${pictures.length} pictures added`);
  byId("question").focus();
  return others;
}

/** Let a question that is asked before this is done wait for it. */
export function holdUntil(done) {
  coming = Promise.allSettled([coming, done]);
}

/** Whether a question can be asked, or an answer be stopped. */
export function setWriting(isWriting) {
  const hadFocus = [byId("ask"), byId("stop")].includes(document.activeElement);
  byId("ask").hidden = isWriting;
  byId("stop").hidden = !isWriting;
  if (hadFocus) byId(isWriting ? "stop" : "question").focus();
}

/** Begin anew. */
export function clear() {
  attached.length = 0;
  byId("question").value = "";
  fit(byId("question"));
  update();
}

function update() {
  const items = attached.map((picture, i) => {
    const remove = () => {
      attached.splice(i, 1);
      update();
      announce(`${picture.name} removed`);
      (
        byId("attached").querySelectorAll(".remove")[Math.min(i, attached.length - 1)] ?? byId("question")
      ).focus();
    };
    const button = element(
      "button",
      { type: "button", className: "remove", "aria-label": `Remove ${picture.name}`, onclick: remove },
      icon("remove"),
    );
    return element("li", {}, thumbnail(picture), button);
  });
  byId("attached").replaceChildren(...items);
  byId("attached").hidden = !items.length;
}

/** As high as its text. */
export function fit(area) {
  area.style.height = "auto";
  area.style.height = `${Math.min(area.scrollHeight, innerHeight * 0.4)}px`;
}
