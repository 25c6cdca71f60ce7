// The five numbers at the top. Latencies are the last ones measured, for as long as the curves remember.

import { byId, element } from "./element.js";
import { grouped, milliseconds, none, rate } from "./units.js";

export function drawFigures({ curves, workers, queues, num_followed }) {
  const latest = (name) => curves[name].findLast((value) => value != null);
  const waiting = queues.reduce((sum, queue) => sum + queue.num_jobs, 0);
  const running = workers.reduce((sum, worker) => sum + worker.num_running, 0);
  const figures = [
    ["Time to first token", ...split(milliseconds(latest("ttft_p50_ms"))), "p50"],
    ["Inter-token latency", ...split(milliseconds(latest("itl_p50_ms"))), "p50"],
    ["Output", rate(curves.tokens_per_s.at(-1) ?? 0), "tokens/s"],
    ["Running", grouped(running), running === 1 ? "sequence" : "sequences"],
    ["Waiting", grouped(waiting), waiting === 1 ? "job" : "jobs"],
    ["Streams here", grouped(num_followed), num_followed === 1 ? "stream" : "streams"],
  ];
  const nodes = figures.map(([name, value, ...units]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, value, element("small", {}, units.join(" ").trim()))));
  byId("figures").replaceChildren(...nodes);
}

const split = (text) => (text === none ? [none, ""] : text.split(" "));
