// A bar per request: where its time went, from its arrival to its end.

import { byId, element } from "./element.js";
import { clock, counted, grouped, milliseconds, shortWorker } from "./units.js";

const KINDS = {
  "queue prefill": ["queue", "in the prefill queue"], "queue local": ["queue", "in the local queue"],
  "queue decode": ["queue", "in the decode queue"], prefill: ["prefill-bar", "prefill"], offer: ["transfer", "KV offered"],
  kv_pull: ["transfer", "KV pulled"], decode: ["decode-bar", "decode"], reclaimed: ["reclaimed", "taken over from a lost worker"], open: ["open", "at work, or waiting"], lost: ["lost", "work that nobody finished, and the wait for another worker"],
};
const LEGEND = [["queue", "queue"], ["prefill-bar", "prefill"], ["transfer", "KV transfer"], ["decode-bar", "decode"], ["lost", "lost with its worker"], ["reclaimed", "taken over"]];
const FEW = 12;
const RUNS_ON_MS = 60_000; // without news for longer, it is another API process's and its end was not seen

let isAll = false;

export function drawRequests({ timelines, now_ms }) {
  if (!byId("legend").children.length) {
    byId("legend").append(...LEGEND.map(([kind, name]) => element("li", {}, element("i", { class: kind }), name)));
  }
  const shown = isAll ? timelines : timelines.slice(0, FEW);
  const rows = shown.map((one) => row(one, now_ms));
  if (timelines.length > FEW) rows.push(element("button", { class: "more", type: "button", onclick: toggle }, isAll ? "Show fewer" : `Show all ${timelines.length}`));
  const hadFocus = byId("requests").contains(document.activeElement);
  byId("requests").replaceChildren(...(rows.length ? rows : [element("p", { class: "empty" }, "No request yet. Send one from the playground and watch it here.")]));
  if (hadFocus) byId("requests").querySelector("button")?.focus();

  function toggle() {
    isAll = !isAll;
    drawRequests({ timelines, now_ms });
  }
}

function row(one, now_ms) {
  const ends = one.bars.map((bar) => bar.began_ms + bar.took_ms);
  const began = one.created_ms || Math.min(...one.bars.map((bar) => bar.began_ms));
  const lastHeard = Math.max(began, one.first_token_ms, ...ends);
  const isRunning = !one.ended_ms && now_ms - lastHeard < RUNS_ON_MS && one.created_ms > 0;
  const ended = one.ended_ms || (isRunning ? Math.max(now_ms, lastHeard) : lastHeard);
  const took = Math.max(1, ended - began, ...ends.map((end) => end - began));
  const place = (from, length) => [`${(Math.max(0, from - began) / took) * 100}%`, `${(length / took) * 100}%`];
  const bars = [...one.bars, ...lost(one.bars), ...(isRunning ? [open(lastHeard, now_ms)] : [])].map((bar) => {
    const [kind, words] = KINDS[bar.phase] ?? ["queue", bar.phase];
    const facts = [words, bar.took_ms && milliseconds(bar.took_ms), bar.worker_id && shortWorker(bar.worker_id)];
    const node = element("i", { class: kind, title: facts.filter(Boolean).join(" · ") });
    [node.style.left, node.style.width] = place(bar.began_ms, bar.took_ms);
    return node;
  });
  if (one.first_token_ms) {
    const first = element("i", { class: "first", title: `first token after ${milliseconds(one.first_token_ms - began)}` });
    [first.style.left] = place(one.first_token_ms, 0);
    bars.push(first);
  }
  const facts = [
    one.first_token_ms ? element("span", {}, "TTFT ", element("b", {}, milliseconds(one.first_token_ms - one.created_ms))) : null,
    element("span", {}, isRunning ? "running " : "took ", element("b", {}, milliseconds(took))),
    one.ended_ms ? element("span", {}, `${grouped(one.prompt_tokens)} → ${counted(one.output_tokens, "token")}`) : null,
    one.ended_ms ? element("span", {}, one.finish_reason) : null,
  ];
  return element("div", { class: "request" },
    element("span", { class: "mono name", title: `${one.request_id}, ${clock(began)}` }, one.request_id.slice(0, 12)),
    element("div", { class: "strip", role: "img", "aria-label": spoken(one) }, ...bars),
    element("span", { class: "facts" }, ...facts));
}

// A worker that dies reports no phase: what lies before a take-over is what it did, and that nobody had noticed yet.
function lost(bars) {
  return bars.filter((bar) => bar.phase === "reclaimed").map(({ began_ms }) => {
    const before = bars.map((bar) => bar.began_ms + bar.took_ms).filter((end) => end < began_ms);
    const from = Math.max(...before);
    return { phase: "lost", began_ms: from, took_ms: before.length ? began_ms - from : 0, worker_id: "" };
  });
}

const open = (from, now_ms) => ({ phase: "open", began_ms: from, took_ms: Math.max(0, now_ms - from), worker_id: "" });

const spoken = (one) => one.bars.map((bar) => `${(KINDS[bar.phase] ?? ["", bar.phase])[1]} ${milliseconds(bar.took_ms)}`).join(", ") || "no phase has ended yet";
