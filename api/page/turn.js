// One turn of the conversation on the page: who speaks, the tokens, and below them how it went.

import { element } from "./element.js";
import { isTinted } from "./parameters.js";
import { tokenSpan } from "./tokens.js";
import { counted, milliseconds, rate } from "./units.js";

const ENDS = { stop: "", length: "reached its limit of tokens", abort: "stopped", error: "failed" };

export const textOf = (turn) => turn.text ?? turn.tokens.map((token) => token.text).join("");

// `onContinue`: called when the reader wants more of an answer that did not end by itself.
export class TurnView {
  constructor(turn, names, onContinue) {
    this.turn = turn;
    this.onContinue = onContinue;
    const isAnswer = turn.role === "assistant";
    this.text = element("div", { class: "text", tabindex: isAnswer ? 0 : null, "aria-label": isAnswer ? "Answer, arrow keys go through its tokens" : null, role: isAnswer ? "group" : null });
    this.foot = element("p", { class: "foot quiet" });
    this.node = element("article", { class: `turn ${turn.role}` }, element("p", { class: "who" }, names[turn.role]), this.text, isAnswer && this.foot);
    if (isAnswer) this.redraw();
    else this.text.textContent = turn.text;
  }

  redraw() {
    const tint = isTinted();
    this.text.replaceChildren(...this.turn.tokens.map((token) => tokenSpan(token, tint)));
    this.note();
  }

  add(tokens) {
    const tint = isTinted();
    this.text.append(...tokens.map((token) => tokenSpan(token, tint)));
    this.note();
  }

  note() {
    const { turn } = this;
    this.node.classList.toggle("streaming", Boolean(turn.pending));
    const parts = turn.fault ? [element("span", { class: "fault" }, turn.fault)] : this.facts();
    if (!turn.pending && turn.tokens.length && turn.finish !== "stop") {
      parts.push(element("button", { type: "button", onclick: () => this.onContinue(turn) }, "Continue"));
    }
    this.foot.replaceChildren(...parts);
  }

  facts() {
    const { turn } = this;
    if (turn.broken) return [element("span", {}, "The connection broke; taking the stream up again…")];
    if (turn.pending && !turn.first_ms) return [element("span", {}, turn.resumed ? "Coming back to the stream…" : "Waiting for the first token…")];
    const number = turn.tokens.length - turn.kept;
    const took_ms = (turn.ended_ms ?? Date.now()) - turn.first_ms;
    const parts = [counted(number, "token")];
    if (turn.first_ms && !turn.resumed) {
      parts.push(`first after ${milliseconds(turn.first_ms - turn.asked_ms)}`);
      if (number > 1 && took_ms > 0) parts.push(`${rate(((number - 1) / took_ms) * 1000)} tokens/s`);
    }
    if (turn.resumed) parts.push("resumed");
    if (turn.usage) parts.push(counted(turn.usage.prompt_tokens, "prompt token"));
    if (turn.stopped) parts.push("stopped");
    else if (ENDS[turn.finish]) parts.push(ENDS[turn.finish]);
    return parts.map((part) => element("span", {}, part));
  }
}
