// Pictures: from a drop, a paste or a choice of files to messages, thumbnails and what the model sees of them.

import * as api from "./api.js";
import { byId, element } from "./dom.js";

// What the server reads; browsers know no type of some of them.
const TYPES = {
  jpg: "image/jpeg",
  jpeg: "image/jpeg",
  png: "image/png",
  webp: "image/webp",
  gif: "image/gif",
  bmp: "image/bmp",
  tif: "image/tiff",
  tiff: "image/tiff",
  avif: "image/avif",
  heic: "image/heic",
  heif: "image/heif",
};
/** What is asked for where pictures are chosen: a phone that is not asked for HEIC makes JPEGs of its photos. */
export const ACCEPT = Object.keys(TYPES)
  .filter((suffix) => !TYPES[suffix].startsWith("image/hei"))
  .map((suffix) => `.${suffix}`)
  .join(",");

const suffixOf = (name) => name.split(".").pop().toLowerCase();
const typeOf = (file) =>
  TYPES[suffixOf(file.name)] ?? (Object.values(TYPES).includes(file.type) ? file.type : null);

/** Pictures among files, as {name, blob}; the others by name. Hidden files are neither. */
export function picturesAmong(files) {
  const pictures = [];
  const others = [];
  for (const file of files) {
    const name = file.path || file.webkitRelativePath || file.name;
    if (file.name.startsWith(".")) continue;
    if (typeOf(file)) pictures.push({ name, blob: file });
    else others.push(name);
  }
  return { pictures, others };
}

/** The files of a drop, with those in its folders, and whether there was a folder. */
export async function dropped(transfer) {
  // The list is empty after the first await.
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry()).filter(Boolean);
  const files = [];
  for (const entry of entries) await collect(entry, files);
  return { files, hasFolder: entries.some((entry) => entry.isDirectory) };
}

async function collect(entry, files) {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    file.path = entry.fullPath.slice(1);
    files.push(file);
    return;
  }
  const reader = entry.createReader();
  for (;;) {
    // A folder's entries come in portions; an empty one is the last.
    const portion = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!portion.length) return;
    for (const inner of portion) await collect(inner, files);
  }
}

/** A picture as a URL that holds it, as requests take it. */
export function dataUrl({ name, blob }) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onerror = () => reject(new Error(`${name} cannot be read any more: add it again.`));
    reader.onload = () => resolve(reader.result);
    reader.readAsDataURL(new Blob([blob], { type: typeOf({ name, type: blob.type }) ?? "" }));
  });
}

/** A button with the picture in it, which shows it large and as the model sees it. */
export function thumbnail(picture) {
  const name = picture.name.split("/").pop();
  return element(
    "button",
    {
      type: "button",
      className: "thumbnail",
      "aria-label": `Look at ${name}`,
      title: name,
      onclick: () => look(picture),
    },
    shown(element("img", { alt: "", loading: "lazy", decoding: "async" }), picture.blob),
  );
}

function shown(image, blob) {
  const url = URL.createObjectURL(blob);
  image.onload = () => URL.revokeObjectURL(url);
  image.onerror = () => {
    URL.revokeObjectURL(url);
    image.hidden = true; // a TIFF, which browsers do not show
  };
  image.hidden = false;
  image.src = url;
  return image;
}

/** Show a picture as it was given and as the model sees it. */
async function look(picture) {
  const dialog = byId("picture");
  const [given, seen] = [byId("picture-given"), byId("picture-seen")];
  const [givenSize, seenSize] = [byId("picture-given-size"), byId("picture-seen-size")];
  byId("picture-title").textContent = picture.name.split("/").pop();
  seen.hidden = true;
  seenSize.textContent = "Asking the server…";
  givenSize.textContent = bytes(picture.blob.size);
  shown(given, picture.blob);
  given.addEventListener(
    "load",
    () =>
      (givenSize.textContent = `${given.naturalWidth} × ${given.naturalHeight} pixels, ${bytes(picture.blob.size)}`),
    { once: true },
  );
  const leaving = new AbortController();
  dialog.addEventListener("close", () => leaving.abort(), { once: true });
  dialog.showModal();
  try {
    const view = await api.preview(byId("model").value, await dataUrl(picture), leaving.signal);
    seen.src = view.image_url;
    seen.hidden = false;
    seenSize.textContent = `${view.width} × ${view.height} pixels, ${view.image_tokens.toLocaleString("en")} tokens`;
  } catch (error) {
    if (!leaving.signal.aborted) seenSize.textContent = error.message;
  }
}

function bytes(n) {
  return n < 1e6 ? `${Math.ceil(n / 1e3)} kB` : `${(n / 1e6).toFixed(1)} MB`;
}
