// The README's drawing, alive: API, queues and workers, and what moves between them.

import { byId, element } from "./element.js";
import { bytes, counted, grouped, rate, seconds, shortWorker } from "./units.js";

const MAX_SQUARES = 40;
const GONE_SHOWN_MS = 20_000;
const RECENT_MS = 2500;

let parts = null; // nodes that stay, so that nothing jumps and no animation begins anew
let pulledBytes = null;

export function drawCluster(body) {
  parts ??= build();
  const { workers, queues, incidents, timelines, curves, now_ms } = body;
  parts.api.replaceChildren(title("API process", body.api_id), element("p", { class: "quiet" }, counted(body.num_followed, "stream"), " followed here"));
  const isNew = timelines.some((one) => one.created_ms > now_ms - RECENT_MS);
  const tokens = curves.tokens_per_s.at(-1) ?? 0;
  move(parts.created, isNew, "prefill jobs");
  move(parts.events, tokens > 0, `token events, ${rate(tokens)} tokens/s`);
  const depth = (name) => sum(queues.filter((one) => one.queue === name).map((one) => one.num_jobs));
  for (const [name, node] of Object.entries(parts.queues)) drawQueue(node, name, queues.filter((one) => one.queue === name));
  const prompts = element("p", { class: "quiet" }, "Local queue, prompts that decode workers prefill themselves: ", String(depth("local")));
  parts.queues.decode.append(prompts);
  const isHandedOn = timelines.some((one) => one.bars.some((bar) => bar.phase === "offer" && bar.began_ms > now_ms - RECENT_MS));
  move(parts.jobs, isHandedOn, "decode jobs");
  const pulled = sum(workers.flatMap((worker) => Object.values(worker.transfers)).map((one) => one.num_bytes));
  const grown = pulledBytes == null ? 0 : pulled - pulledBytes;
  pulledBytes = pulled;
  move(parts.kv, grown > 0, grown > 0 ? `KV ${bytes(grown)}` : "KV blocks");
  const isBusy = (role) => workers.some((worker) => worker.role === role && worker.num_running);
  move(parts.takenPrefill, depth("prefill") > 0 || isBusy("prefill"), "take");
  move(parts.takenDecode, depth("decode") + depth("local") > 0 || isHandedOn, "take");
  const gone = incidents.filter((one) => one.kind === "gone" && one.at_ms > now_ms - GONE_SHOWN_MS);
  for (const role of ["prefill", "decode"]) {
    const live = workers.filter((worker) => worker.role === role).map(workerCard);
    const lost = gone.filter((one) => one.subject.startsWith(role)).map(goneCard);
    const empty = element("p", { class: "node empty" }, `No ${role} worker`);
    parts[role].replaceChildren(...(live.length + lost.length ? [...live, ...lost] : [empty]));
  }
}

function build() {
  const node = (name) => element("div", { class: `node ${name}` });
  const flow = (arrow, name = "") => element("div", { class: `flow ${name}`, "data-arrow": arrow });
  const made = {
    api: node("api-node"), created: flow("↓", "at-1"), queues: { prefill: node("at-2"), decode: node("at-6") },
    takenPrefill: flow("↓", "at-3"), prefill: element("div", { class: "workers at-4" }), jobs: flow("→", "across at-5"),
    takenDecode: flow("↓", "at-7"), kv: flow("→", "across at-7"), decode: element("div", { class: "workers at-8" }),
    events: flow("↑", "at-9"),
  };
  byId("drawing").append(
    made.api, made.created, element("div"), made.events,
    made.queues.prefill, made.jobs, made.queues.decode,
    made.takenPrefill, element("div"), made.takenDecode,
    made.prefill, made.kv, made.decode,
  );
  return made;
}

function drawQueue(node, name, classes) {
  const number = sum(classes.map((one) => one.num_jobs));
  const oldest = Math.max(0, ...classes.map((one) => one.oldest_s));
  const squares = classes.flatMap((one) => Array(Math.min(one.num_jobs, MAX_SQUARES)).fill(one.priority)).slice(0, MAX_SQUARES);
  node.replaceChildren(
    title(name === "prefill" ? "Prefill queue" : "Decode queue", "Redis"),
    element("p", { class: "depth" }, element("b", {}, grouped(number)), element("span", { class: "quiet" }, number === 1 ? "job waits" : "jobs wait", number ? `, the oldest for ${seconds(oldest)}` : "")),
    element("div", { class: "jobs", "aria-hidden": "true" }, ...squares.map((priority) => element("i", { class: priority }))),
  );
}

function workerCard(worker) {
  const used = worker.num_blocks ? 1 - worker.free_blocks / worker.num_blocks : 0;
  const rows = [row("running", worker.num_running / (worker.max_running || Math.max(8, worker.num_running)), worker.max_running ? `${worker.num_running} of ${worker.max_running}` : String(worker.num_running))];
  rows.push(row("KV", used, `${(used * 100).toFixed(0)} % of ${grouped(worker.capacity_tokens)} tokens`));
  const facts = [`up ${seconds(worker.up_s)}`, worker.host];
  if (worker.role === "prefill" && worker.tokens_per_s) facts.unshift(`${rate(worker.tokens_per_s)} tokens/s at work`);
  for (const [kind, one] of Object.entries(worker.transfers)) facts.unshift(`${counted(one.pulls, "pull")} by ${kind.replaceAll("_", " ")}, ${bytes(one.num_bytes)}`);
  if (worker.num_gpus) facts.push(counted(worker.num_gpus, "GPU"));
  const state = worker.state === "ready" ? "good" : "warn";
  return element("article", { class: `node worker ${worker.role}` },
    title(shortWorker(worker.worker_id), worker.state, state),
    worker.state === "loading" ? element("p", { class: "detail" }, worker.detail || "loading") : element("dl", {}, ...rows.flat()),
    element("p", { class: "detail" }, facts.join(" · ")));
}

const goneCard = (incident) => element("article", { class: "node worker dead" }, title(shortWorker(incident.subject), "gone", "bad"), element("p", { class: "detail" }, "No heartbeat any more; others take over its jobs."));

function row(name, share, words) {
  const level = element("i");
  level.style.width = `${Math.min(1, share) * 100}%`;
  return [element("dt", {}, name), element("dd", {}, element("div", { class: "level" }, level)), element("dd", { class: "num" }, words)];
}

function title(name, more, state) {
  const side = state ? element("span", { class: `state ${state}` }, element("i", { class: "dot" }), more) : element("span", { class: "quiet name" }, more);
  return element("h3", {}, element("span", { class: "name" }, name), side);
}

function move(node, is, words) {
  node.classList.toggle("moving", is);
  if (node.textContent !== words) node.textContent = words;
}

const sum = (numbers) => numbers.reduce((total, one) => total + one, 0);
