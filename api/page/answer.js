// One answer on its way: begun by a POST, or come back to by its id; a broken connection is taken up again after the
// last event that was seen. Knows the wire forms of both routes; knows no DOM.

import { ask, askJson, Refused } from "./server.js";
import { events } from "./events.js";

const PATIENCE_MS = 12_000; // the server keeps a request for 15 s without a reader, by default
const RETRY_MS = 400;

export const newId = () => [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");

// A stop: the workers end within a step, and the stream says so.
export const cancel = (id) => ask(`requests/${encodeURIComponent(id)}`, { method: "DELETE" });

// Fill `turn` until it ends, telling `onChange(turn, newTokens)` each time. `body`: what to POST to `turn.route`; null: it
// runs already. Throws Refused where there is nothing to be had, AbortError when `signal` is.
export async function follow(turn, body, onChange, signal) {
  let lastId = -1;
  let heard = performance.now();
  let opened = body;
  for (;;) {
    try {
      const response = await (opened ? post(turn, opened, signal) : resume(turn, lastId, signal));
      opened = null;
      if (response.status === 204) return await settle(turn, onChange);
      turn.requestId = response.headers.get("X-Request-Id") ?? turn.requestId;
      for await (const { id, data } of events(response)) {
        if (id !== "") lastId = Number(id);
        heard = performance.now();
        if (data === "[DONE]") return;
        read(turn, JSON.parse(data), onChange);
        if (turn.fault) return;
      }
    } catch (error) {
      if (error.name === "AbortError" || error instanceof Refused) throw error;
      opened = null; // whether it was created shows when it is asked for
    }
    if (performance.now() - heard > PATIENCE_MS) throw new Error("the connection broke and the server did not come back");
    turn.broken = true;
    onChange(turn, []);
    await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
  }
}

function post(turn, body, signal) {
  turn.asked_ms = Date.now();
  const headers = { "Content-Type": "application/json", "X-SSE-Ids": "true", "X-Request-Id": turn.requestId };
  if (turn.priority) headers["X-Priority"] = turn.priority;
  return ask(turn.route, { method: "POST", headers, body: JSON.stringify(body), signal });
}

function resume(turn, lastId, signal) {
  const path = `requests/${encodeURIComponent(turn.requestId)}/stream`;
  return ask(path, { headers: { "Last-Event-ID": String(lastId) }, signal });
}

// There was nothing left to send: how it ended is asked for.
async function settle(turn, onChange) {
  const view = await askJson(`requests/${encodeURIComponent(turn.requestId)}`);
  turn.finish ??= view.choices[0].finish_reason;
  onChange(turn, []);
}

function read(turn, chunk, onChange) {
  turn.broken = false;
  if (chunk.error) {
    turn.fault = chunk.error.message;
    return onChange(turn, []);
  }
  if (chunk.usage) turn.usage = chunk.usage;
  const tokens = chunk.choices.flatMap((choice) => tokensOf(choice));
  turn.finish = chunk.choices[0]?.finish_reason ?? turn.finish;
  if (tokens.length) turn.first_ms ??= Date.now();
  turn.tokens.push(...tokens);
  onChange(turn, tokens);
}

// {text, name, logprob, top: [[name, logprob], ...]}; logprob and top only where they were asked for.
function tokensOf({ delta, text = delta?.content, logprobs }) {
  if (logprobs?.content?.length) {
    const [row] = logprobs.content;
    return [{ text, name: row.token, logprob: row.logprob, top: row.top_logprobs.map((one) => [one.token, one.logprob]) }];
  }
  if (logprobs?.tokens?.length) {
    const top = Object.entries(logprobs.top_logprobs?.[0] ?? {}).sort((a, b) => b[1] - a[1]);
    return [{ text, name: logprobs.tokens[0], logprob: logprobs.token_logprobs[0], top }];
  }
  return text ? [{ text }] : [];
}
