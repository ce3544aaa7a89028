// Markdown as DOM nodes. A model's answer is a stranger's text: HTML in it stays text, pictures are not loaded,
// and links lead to http and https only.

import { element } from "./dom.js";

const DEPTH = 8; // of quotes, lists and emphasis within each other; what is deeper stays text

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)/;
const HEADING = /^ {0,3}(#{1,6})[ \t]+(.*)$/;
const RULE = /^ {0,3}(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])(?:[ \t]+|$)/;
const TABLE_RULE = /^ *\|?(?: *:?-+:? *\|)+(?: *:?-+:? *)?$/;

/** The nodes of a text. */
export function markdown(text) {
  return blocks(text.replace(/\r\n?/g, "\n").split("\n"), 0);
}

function blocks(lines, depth) {
  const nodes = [];
  for (let at = 0; at < lines.length;) {
    const parse = depth < DEPTH && PARSERS.find(([starts]) => starts(lines, at));
    if (!lines[at].trim()) at++;
    else if (parse) at = parse[1](lines, at, depth, nodes);
    else at = paragraph(lines, at, depth, nodes);
  }
  return nodes;
}

const PARSERS = [
  [(lines, at) => FENCE.test(lines[at]), fence],
  [(lines, at) => HEADING.test(lines[at]), heading],
  [(lines, at) => RULE.test(lines[at]), rule],
  [(lines, at) => QUOTE.test(lines[at]), quote],
  [(lines, at) => ITEM.test(lines[at]), list],
  [(lines, at) => lines[at].includes("|") && TABLE_RULE.test(lines[at + 1] ?? ""), table],
];

function fence(lines, at, _depth, nodes) {
  const [, mark, language] = lines[at].match(FENCE);
  const isEnd = (line) => line.trim().startsWith(mark) && !line.trim().replaceAll(mark[0], "");
  let end = at + 1;
  while (end < lines.length && !isEnd(lines[end])) end++;
  const code = element("code", { textContent: lines.slice(at + 1, end).join("\n") });
  nodes.push(element("pre", { tabIndex: 0, role: "region", "aria-label": language || "Code" }, code));
  return end + 1;
}

function heading(lines, at, depth, nodes) {
  const [, marks, text] = lines[at].match(HEADING);
  const level = Math.min(marks.length + 2, 6); // below the page's own
  nodes.push(element(`h${level}`, {}, ...inline(text.trimEnd().replace(/[ \t]#+$/, ""), depth)));
  return at + 1;
}

function rule(_lines, at, _depth, nodes) {
  nodes.push(element("hr"));
  return at + 1;
}

function quote(lines, at, depth, nodes) {
  let end = at;
  while (end < lines.length && QUOTE.test(lines[end])) end++;
  const inner = lines.slice(at, end).map((line) => line.replace(QUOTE, ""));
  nodes.push(element("blockquote", {}, ...blocks(inner, depth + 1)));
  return end;
}

function list(lines, at, depth, nodes) {
  const [, indent, mark] = lines[at].match(ITEM);
  const numbered = /\d/.test(mark);
  const node = element(numbered ? "ol" : "ul", numbered ? { start: parseInt(mark, 10) } : {});
  while (at < lines.length) {
    const next = lines[at].trim() ? at : at + 1; // items may have a blank line between them
    const item = lines[next]?.match(ITEM);
    if (!item || item[1].length !== indent.length || /\d/.test(item[2]) !== numbered) break;
    const inner = [lines[next].slice(item[0].length)];
    for (at = next + 1; at < lines.length && belongs(lines, at, indent.length); at++)
      inner.push(outdented(lines[at], item[0].length));
    const content = blocks(inner, depth + 1);
    // One paragraph is the item's own text.
    node.append(
      element(
        "li",
        {},
        ...(content[0]?.tagName === "P" ? [...content[0].childNodes, ...content.slice(1)] : content),
      ),
    );
  }
  nodes.push(node);
  return at;
}

/** Whether a line goes on with the item of a list: it is indented further, or blank before one that is. */
function belongs(lines, at, indent) {
  const spaces = (line) => line.length - line.trimStart().length;
  if (lines[at].trim()) return spaces(lines[at]) > indent;
  return Boolean(lines[at + 1]?.trim()) && spaces(lines[at + 1]) > indent;
}

function outdented(line, most) {
  return line.slice(Math.min(most, line.length - line.trimStart().length));
}

function table(lines, at, depth, nodes) {
  const row = (line, name, properties) =>
    element("tr", {}, ...cells(line).map((cell) => element(name, properties, ...inline(cell, depth))));
  const head = element("thead", {}, row(lines[at], "th", { scope: "col" }));
  const body = element("tbody");
  for (at += 2; at < lines.length && lines[at].includes("|"); at++) body.append(row(lines[at], "td", {}));
  nodes.push(
    element(
      "div",
      { className: "table", tabIndex: 0, role: "region", "aria-label": "Table" },
      element("table", {}, head, body),
    ),
  );
  return at;
}

function cells(line) {
  return line
    .trim()
    .replace(/^\||\|$/g, "")
    .split("|")
    .map((cell) => cell.trim());
}

function paragraph(lines, at, depth, nodes) {
  let end = at + 1;
  while (
    end < lines.length &&
    lines[end].trim() &&
    !(depth < DEPTH && PARSERS.some(([starts]) => starts(lines, end)))
  )
    end++;
  const node = element("p");
  lines.slice(at, end).forEach((line, i) => {
    if (i) node.append(element("br")); // a line that the model ended, as in text that it read, ends here too
    node.append(...inline(line.trim(), depth));
  });
  nodes.push(node);
  return end;
}

const MARKS = [
  ["**", "strong"],
  ["__", "strong"],
  ["~~", "del"],
  ["*", "em"],
  ["_", "em"],
];
const TARGET = /[ \t]*((?:[^\s()]|\([^\s()]*\))*)(?:[ \t]+"[^"]*")?[ \t]*\)/y; // with brackets in pairs, and a title
const SPECIAL = /[\\`*_~[!<]|https?:\/\//g;

/** The nodes of one line. */
function inline(text, depth) {
  const nodes = [];
  const absent = new Set(); // marks that do not come again: each is looked for to the end once
  const find = (mark, from) => {
    const found = absent.has(mark) ? -1 : text.indexOf(mark, from);
    if (found < 0) absent.add(mark);
    return found;
  };
  let plain = 0; // where text without a meaning begins
  let at = 0;
  const add = (node, from, to) => {
    if (from > plain) nodes.push(text.slice(plain, from));
    if (node) nodes.push(node);
    plain = at = to;
  };
  while (depth < DEPTH) {
    SPECIAL.lastIndex = at;
    const special = SPECIAL.exec(text);
    if (!special) break;
    const from = special.index;
    const found = read(text, from, find, depth);
    if (found) add(found[0], from, found[1]);
    else at = from + special[0].length;
  }
  if (plain < text.length) nodes.push(text.slice(plain));
  return nodes;
}

/** A node and where its text ends, if one begins at `from`. */
function read(text, from, find, depth) {
  const rest = text.slice(from, from + 2);
  if (rest[0] === "\\")
    return /[!-/:-@[-`{-~]/.test(rest[1] ?? "") ? [document.createTextNode(rest[1]), from + 2] : null;
  if (rest[0] === "`") return code(text, from, find);
  if (rest === "![" || rest[0] === "[") return link(text, from, find, depth);
  if (rest[0] === "<") return address(text.slice(from + 1, Math.max(find(">", from), from + 1)), from + 1, 1);
  if (rest[0] === "h") return address(withoutStops(text.slice(from).match(/^[^\s<>"]+/)[0]), from, 0);
  return emphasis(text, from, find, depth);
}

function code(text, from, find) {
  const mark = text.slice(from).match(/^`+/)[0];
  const end = find(mark, from + mark.length);
  return end < 0
    ? null
    : [element("code", { textContent: text.slice(from + mark.length, end).trim() }), end + mark.length];
}

function link(text, from, find, depth) {
  const start = text[from] === "!" ? from + 2 : from + 1;
  const middle = find("](", start);
  if (middle < 0 || text.slice(start, middle).includes("[")) return null;
  TARGET.lastIndex = middle + 2;
  const found = TARGET.exec(text);
  if (!found) return null;
  const label = inline(text.slice(start, middle), depth + 1);
  const node = text[from] === "!" ? null : anchor(found[1], label); // of a picture, its description
  return [node ?? element("span", {}, ...label), TARGET.lastIndex];
}

/** A web address that stands in the text. */
function address(target, from, nAfter) {
  const node = anchor(target, [target]);
  return node && [node, from + target.length + nAfter];
}

/** An address without the marks that end the sentence around it. */
function withoutStops(target) {
  let end = target.length;
  while (end && ".,;:!?'\")]*_~".includes(target[end - 1])) end--;
  return target.slice(0, end);
}

function anchor(target, label) {
  if (target.length > 2000 || !/^https?:\/\//i.test(target) || !URL.canParse(target)) return null;
  return element("a", { href: target, target: "_blank", rel: "noopener noreferrer nofollow" }, ...label);
}

function emphasis(text, from, find, depth) {
  for (const [mark, name] of MARKS) {
    if (!text.startsWith(mark, from)) continue;
    const start = from + mark.length;
    if (/\s|^$/.test(text[start] ?? "") || (mark[0] === "_" && /\w/.test(text[from - 1] ?? ""))) return null;
    for (let end = find(mark, start); end >= 0; end = find(mark, end + mark.length)) {
      if (text[end + mark.length] === mark[0]) end += mark.length === 2 ? 1 : 2; // ** within *, and *** at the end
      const closes =
        end > start &&
        !/\s/.test(text[end - 1]) &&
        !(mark[0] === "_" && /\w/.test(text[end + mark.length] ?? ""));
      if (closes && text.startsWith(mark, end)) {
        return [element(name, {}, ...inline(text.slice(start, end), depth + 1)), end + mark.length];
      }
    }
  }
  return null;
}
