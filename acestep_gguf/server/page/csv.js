// Tables as CSV, with the rules of `acestep-gguf batch`.

// Programs for spreadsheets compute what begins so, and a stranger may have written it into a picture.
const FORMULA = /^(?:[=@\t\r]|[+-](?![0-9.]+$))/;
const CONTROLS = /[\x00-\x08\x0b-\x1f\x7f-\x9f]/g;

function cell(value) {
  if (value === null || value === undefined) return "";
  if (typeof value === "number") return String(value);
  let text = (typeof value === "string" ? value : JSON.stringify(value)).replace(CONTROLS, "\ufffd");
  if (FORMULA.test(text)) text = `'${text}`;
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/** Rows, which are objects, as a file; columns are in the order in which rows first have them. */
export function csv(rows) {
  const columns = [...new Set(rows.flatMap(Object.keys))];
  const lines = [columns, ...rows.map((row) => columns.map((name) => row[name]))];
  // The mark at the beginning tells spreadsheets that this is UTF-8.
  const text = `\ufeff${lines.map((line) => line.map(cell).join(",") + "\r\n").join("")}`;
  return new Blob([text], { type: "text/csv;charset=utf-8" });
}
