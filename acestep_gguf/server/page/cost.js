// What an answer cost: seconds and tokens, and what was known from before.

import { element } from "./dom.js";

const number = (value, digits = 0) => value.toLocaleString("en", { maximumFractionDigits: digits });
const seconds = (value) => (value < 0.01 ? "< 0.01 s" : `${number(value, value < 10 ? 2 : 1)} s`);
const speed = (perSecond) => (perSecond ? `${number(perSecond, perSecond < 10 ? 1 : 0)} tokens/s` : null);
const tokens = (n) => `${number(n)} ${n === 1 ? "token" : "tokens"}`;
const list = (...parts) => parts.filter(Boolean).join(", ");

/** The numbers of an answer, from the usage and the timings of its stream. */
export function costOf(usage, timings) {
  const { image_tokens: images, cached_tokens: cached } = usage.prompt_tokens_details;
  return { prompt: usage.prompt_tokens, completion: usage.completion_tokens, images, cached, ...timings };
}

export const totalSeconds = (cost) =>
  (cost.load_ms + cost.image_ms + cost.prompt_ms + cost.predicted_ms) / 1000;

/** One line that opens into the whole account. */
export function costView(cost) {
  const known = cost.cached ? `${number(cost.cached)} known from before` : null;
  const parts = [
    ["Loading", cost.load_ms, "the model, for this answer"],
    ["Pictures", cost.image_ms, cost.images ? tokens(cost.images) : null],
    ["Reading", cost.prompt_ms, list(tokens(cost.prompt), known, speed(cost.prompt_per_second))],
    ["Writing", cost.predicted_ms, list(tokens(cost.completion), speed(cost.predicted_per_second))],
  ].map(([name, ms, what], i) => ({ name, s: ms / 1000, what, part: `part-${i}` }));
  const total = totalSeconds(cost);
  const summary = [
    seconds(total),
    tokens(cost.completion),
    speed(cost.predicted_per_second),
    cost.cached ? `${number(cost.cached)} of ${number(cost.prompt)} from the cache` : null,
  ].filter(Boolean);
  const shownParts = parts.filter(({ name, s, what }) => what && (s || name !== "Loading"));
  const rows = shownParts.map(({ name, s, what, part }) =>
    element(
      "tr",
      {},
      element("th", { scope: "row", className: part, textContent: name }),
      element("td", { textContent: seconds(s) }),
      element("td", { textContent: what }),
    ),
  );
  const shares = shownParts.map(({ s, part }) => {
    const share = element("i", { className: part });
    share.style.flexGrow = total ? s / total : 0;
    return share;
  });
  const show = ({ target }) => target.scrollIntoView({ block: "nearest" });
  return element(
    "details",
    { className: "cost", ontoggle: show },
    element("summary", { textContent: summary.join(" · ") }),
    element("div", { className: "bar", "aria-hidden": "true" }, ...shares),
    element("table", {}, element("tbody", {}, ...rows)),
  );
}
