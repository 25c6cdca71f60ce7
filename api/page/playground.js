// The playground: ask, watch it stream, stop it, and find it again after a reload.
// The conversation is kept in this tab's sessionStorage; what was still running is resumed by its id.

import { cancel, follow, newId } from "./answer.js";
import { byId, element } from "./element.js";
import { buildParameters, priority, sampling, systemMessage, wantedLogprobs } from "./parameters.js";
import { explainTokens } from "./tokens.js";
import { textOf, TurnView } from "./turn.js";

const STORE = "pdq.conversation";
const ROUTES = { chat: "v1/chat/completions", completion: "v1/completions" };
const NAMES = {
  chat: { user: "You", assistant: "Model" },
  completion: { user: "Prompt", assistant: "Completion" },
};
const IDEAS = {
  chat: ["What is the capital of France?", "Explain prefill and decode in three sentences."],
  completion: ["What is AI?", "The three primary colours are"],
};
const GRACE_MS = 1500; // after a stop the stream's own end is waited for
const SAVE_EVERY_MS = 1000;

let turns = [];
let mode = "chat";
let running = null; // {turn, controller}
let savedAt = 0;

export function buildPlayground() {
  buildParameters();
  explainTokens(byId("talk"));
  const kept = JSON.parse(sessionStorage.getItem(STORE) ?? "null");
  if (kept) ({ turns, mode } = kept);
  for (const radio of document.querySelectorAll("input[name=mode]")) {
    radio.checked = radio.value === mode;
    radio.addEventListener("change", () => begin(radio.value));
  }
  byId("clear").addEventListener("click", () => begin(mode));
  byId("ask").addEventListener("submit", (event) => (event.preventDefault(), send()));
  byId("stop").addEventListener("click", stop);
  byId("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("ask").requestSubmit();
  });
  document.addEventListener("keydown", (event) => event.key === "Escape" && stop());
  addEventListener("pagehide", save);
  redraw();
  const last = turns.at(-1);
  if (last?.pending) {
    last.tokens.length = last.kept;
    Object.assign(last, { resumed: true, first_ms: undefined });
    run(last, null);
  }
}

async function begin(newMode) {
  await stop();
  running = null;
  [turns, mode] = [[], newMode];
  save();
  redraw();
  byId("prompt").focus();
}

function send() {
  const field = byId("prompt");
  const text = field.value.trim();
  if (!text || running) return;
  const question = { role: "user", text };
  const asked = attempt(() => bodyOf([...turns, question]));
  if (!asked) return;
  turns.push(question);
  field.value = "";
  const turn = { role: "assistant", tokens: [], kept: 0 };
  turns.push(turn);
  redraw();
  start(turn, asked);
}

// More of the last answer, from where it ended.
function goOn(turn) {
  if (running || turn !== turns.at(-1)) return;
  const asked = attempt(() => bodyOf(turns, true));
  if (!asked) return;
  Object.assign(turn, { kept: turn.tokens.length, first_ms: undefined, ended_ms: undefined, usage: undefined, resumed: false });
  start(turn, asked);
}

function start(turn, body) {
  Object.assign(turn, { requestId: newId(), route: ROUTES[mode], priority: priority(), pending: true });
  Object.assign(turn, { finish: undefined, stopped: false, fault: undefined, broken: false });
  run(turn, body);
}

function attempt(make) {
  say("");
  try {
    return make();
  } catch (error) {
    say(error.message, true);
    return null;
  }
}

function bodyOf(asked, isContinued = false) {
  const shared = { ...sampling(), ...wantedLogprobs(mode), stream: true, stream_options: { include_usage: true } };
  if (mode === "completion") {
    const [question, answer] = asked.slice(isContinued ? -2 : -1);
    return { prompt: question.text + (answer ? textOf(answer) : ""), ...shared };
  }
  const spoken = asked.filter((turn) => turn.role === "user" || turn.tokens.length);
  const messages = spoken.map((turn) => ({ role: turn.role, content: textOf(turn) }));
  if (systemMessage()) messages.unshift({ role: "system", content: systemMessage() });
  const more = isContinued ? { continue_final_message: true, add_generation_prompt: false } : {};
  return { messages, ...shared, ...more };
}

async function run(turn, body) {
  const controller = new AbortController();
  running = { turn, controller };
  save();
  const view = views.get(turn);
  view.redraw();
  showRunning(true);
  try {
    await follow(turn, body, (_, tokens) => onChange(view, tokens), controller.signal);
  } catch (error) {
    if (error.name !== "AbortError") turn.fault = told(error, turn);
  }
  turn.pending = turn.broken = false;
  turn.ended_ms = Date.now();
  view.note();
  scrollToEnd();
  if (running?.turn !== turn) return; // another conversation was begun meanwhile
  running = null;
  save();
  showRunning(false);
  byId("spoken").textContent = turn.fault ?? textOf(turn);
}

function told(error, turn) {
  if (error.status === 404 && turn.resumed) return "The answer was not kept for that long; ask again.";
  if (error.retryAfterS) return `${error.message}. Try again in ${error.retryAfterS} s.`;
  return error.message === "Failed to fetch" ? "The server cannot be reached." : error.message;
}

function onChange(view, tokens) {
  const isBelow = isAtEnd();
  view.add(tokens);
  if (isBelow) scrollToEnd();
  if (performance.now() - savedAt > SAVE_EVERY_MS) save();
}

async function stop() {
  if (!running) return;
  const { turn, controller } = running;
  turn.stopped = true;
  byId("stop").disabled = true;
  const giveUp = setTimeout(() => controller.abort(), GRACE_MS);
  controller.signal.addEventListener("abort", () => clearTimeout(giveUp));
  await cancel(turn.requestId).catch(() => controller.abort()); // it was not created yet, or has ended
}

// -- what is seen ----------------------------------------------------------------------------------------------------

const views = new WeakMap();

function redraw() {
  const nodes = turns.map((turn) => {
    const view = new TurnView(turn, NAMES[mode], goOn);
    views.set(turn, view);
    return view.node;
  });
  byId("talk").replaceChildren(...(nodes.length ? nodes : [blank()]));
  byId("prompt").placeholder = mode === "chat" ? "Ask something" : "Text to go on from";
  byId("clear").textContent = mode === "chat" ? "New conversation" : "Clear";
  showRunning(Boolean(running));
  scrollToEnd();
}

function blank() {
  const [title, hint] = mode === "chat"
    ? ["Talk to the model", "Each answer streams token by token. Point at a token to see how likely it was, and what else was."]
    : ["Let the model go on", "It continues your text as it is, without a chat template."];
  const ideas = IDEAS[mode].map((idea) => element("button", { type: "button", onclick: () => use(idea) }, idea));
  return element("div", { class: "blank" }, element("strong", {}, title), hint, element("div", { class: "ideas" }, ...ideas));
}

function use(idea) {
  byId("prompt").value = idea;
  byId("prompt").focus();
}

function showRunning(is) {
  byId("send").disabled = is;
  byId("stop").disabled = !is;
  byId("talk").setAttribute("aria-busy", String(is));
}

function say(text, isFault = false) {
  const note = byId("ask-note");
  note.plain ??= [...note.childNodes];
  note.classList.toggle("fault", isFault);
  note.replaceChildren(...(text ? [text] : note.plain));
}

const isAtEnd = () => byId("talk").scrollHeight - byId("talk").scrollTop - byId("talk").clientHeight < 40;
const scrollToEnd = () => byId("talk").scrollTo(0, byId("talk").scrollHeight);

function save() {
  savedAt = performance.now();
  try {
    sessionStorage.setItem(STORE, JSON.stringify({ turns, mode }));
  } catch { // the tab's room is used up: the words without their probabilities
    const bare = turns.map((turn) => (turn.tokens ? { ...turn, tokens: turn.tokens.map(({ text }) => ({ text })) } : turn));
    sessionStorage.setItem(STORE, JSON.stringify({ turns: bare, mode }));
  }
}
