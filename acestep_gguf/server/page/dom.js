// Nodes of the page. Text stays text, whoever wrote it: nothing here or elsewhere parses HTML.

export const byId = (id) => document.getElementById(id);

/** A node with properties, attributes, listeners (`onclick`) and children; children that are null are left out. */
export function element(name, properties = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key in node) node[key] = value;
    else node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child != null));
  return node;
}

const SVG = "http://www.w3.org/2000/svg";

export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("aria-hidden", "true");
  svg.append(document.createElementNS(SVG, "use"));
  svg.firstChild.setAttribute("href", `#icon-${name}`);
  return svg;
}

/** Bytes as a file in the browser's downloads. */
export function download(name, blob) {
  const url = URL.createObjectURL(blob);
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

/** Tell a screen reader; what it says first is not cut off. */
export function announce(text) {
  const announcer = byId("announcer");
  announcer.append(element("p", { textContent: text }));
  while (announcer.childElementCount > 20) announcer.firstChild.remove();
}

/** Copy a text, also without a secure context, where browsers have no clipboard object. */
export async function copy(text) {
  if (navigator.clipboard && window.isSecureContext) {
    await navigator.clipboard.writeText(text);
  } else {
    const before = document.activeElement;
    const area = element("textarea", { value: text, className: "visually-hidden", readOnly: true });
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    before?.focus();
    if (!done) throw new Error("The browser does not let this page copy.");
  }
  announce("Copied");
}
