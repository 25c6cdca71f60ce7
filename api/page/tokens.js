// Tokens as they were chosen: a span each, and on hover, or with the arrow keys, what else was likely.

import { byId, element } from "./element.js";
import { percent } from "./units.js";

const LIKELY = 0.5;
const UNLIKELY = 0.2;
const visible = (text) => text.replaceAll(" ", "␣").replaceAll("\n", "↵").replaceAll("\t", "⇥") || "∅";
const known = new WeakMap();

export function tokenSpan(token, isTinted) {
  if (token.logprob == null) return document.createTextNode(token.text);
  const span = element("span", { class: "token" });
  span.textContent = token.text;
  const p = Math.exp(token.logprob);
  if (isTinted && p < LIKELY) span.classList.add(p < UNLIKELY ? "unsure-2" : "unsure-1");
  known.set(span, token);
  return span;
}

// Listens for all tokens below `root`.
export function explainTokens(root) {
  root.addEventListener("pointerover", ({ target }) => (known.has(target) ? show(target) : hide()));
  root.addEventListener("pointerleave", hide);
  root.addEventListener("scroll", hide);
  root.addEventListener("focusout", hide);
  root.addEventListener("keydown", (event) => {
    const text = event.target.closest(".text[tabindex]");
    const step = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (!text || !step) return;
    const spans = [...text.querySelectorAll(".token")];
    if (!spans.length) return;
    event.preventDefault();
    const at = spans.findIndex((span) => span.classList.contains("chosen"));
    const next = spans[Math.min(spans.length - 1, Math.max(0, at + step))];
    next.scrollIntoView({ block: "nearest" });
    show(next);
  });
}

function show(span) {
  unmark();
  span.classList.add("chosen");
  const token = known.get(span);
  const rows = token.top.some(([name]) => name === token.name) ? token.top : [...token.top, [token.name, token.logprob]];
  const tip = byId("tip");
  tip.replaceChildren(
    element("h3", {}, `“${visible(token.name)}” ${percent(Math.exp(token.logprob))}`),
    element("table", {}, ...rows.map(([name, logprob]) => row(name, Math.exp(logprob), name === token.name))),
  );
  tip.hidden = false;
  const place = span.getBoundingClientRect();
  const size = tip.getBoundingClientRect();
  const left = Math.min(Math.max(8, place.left), document.documentElement.clientWidth - size.width - 8);
  const above = place.top - size.height - 6;
  tip.style.left = `${left}px`;
  tip.style.top = `${above > 8 ? above : place.bottom + 6}px`;
}

function row(name, p, isChosen) {
  const level = element("i");
  level.style.width = `${p * 100}%`;
  const cells = [visible(name), element("div", { class: "level" }, level), percent(p)];
  return element("tr", { class: isChosen ? "is-it" : null }, ...cells.map((cell) => element("td", {}, cell)));
}

function hide() {
  unmark();
  byId("tip").hidden = true;
}

const unmark = () => document.querySelectorAll(".token.chosen").forEach((span) => span.classList.remove("chosen"));
