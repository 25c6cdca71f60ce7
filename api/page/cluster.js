// The cluster, asked for every second while somebody looks at it. Knows when to ask and what to say when there is no
// answer; the parts draw.

import { Chart } from "./chart.js";
import { drawCluster } from "./drawing.js";
import { byId, element } from "./element.js";
import { drawFigures } from "./figures.js";
import { drawIncidents } from "./incidents.js";
import { drawRequests } from "./requests.js";
import { askJson, key, onKey } from "./server.js";
import { grouped, milliseconds, rate } from "./units.js";

const EVERY_MS = 1000;

let isShown = false;
let isAsking = false;
let isRefused = false;
let last = null;
let charts = [];

export function buildCluster() {
  const percentiles = (name) => [["p50", `${name}_p50_ms`], ["p95", `${name}_p95_ms`]];
  charts = [
    new Chart(byId("ttft"), percentiles("ttft"), milliseconds, "No request in the last minutes"),
    new Chart(byId("itl"), percentiles("itl"), milliseconds, "No tokens in the last minutes"),
    new Chart(byId("rate"), [["output", "tokens_per_s"]], (value) => `${rate(value)} tokens/s`),
    new Chart(byId("load"), [["running", "num_running"], ["waiting", "num_waiting"]], grouped),
  ];
  onKey(() => ((isRefused = false), look()));
  document.addEventListener("visibilitychange", look);
  addEventListener("resize", () => last && isShown && draw(last));
}

export function showCluster(is) {
  isShown = is;
  if (is && last) draw(last); // what was drawn while hidden had no width
  look();
}

async function look() {
  if (isAsking) return;
  isAsking = true;
  while (isShown && !document.hidden && !isRefused) {
    try {
      last = await askJson("cluster");
      say("");
      draw(last);
    } catch (error) {
      isRefused = Boolean(error.isAboutKey);
      say(isRefused ? aboutKey(error) : error.status ? error.message : "The server cannot be reached. This is what was last seen.");
      byId("cluster").classList.add(last ? "stale" : "unseen");
    }
    await new Promise((resolve) => setTimeout(resolve, EVERY_MS));
  }
  isAsking = false;
}

function aboutKey(error) {
  if (!key()) return "The cluster is shown to API keys of scope monitor or admin. Type one in above.";
  return error.status === 403
    ? "Your API key is good for asking the model. The cluster needs one of scope monitor or admin."
    : "Your API key is not known to the server, or no longer valid.";
}

function draw(body) {
  byId("cluster").classList.remove("stale", "unseen");
  drawFigures(body);
  drawCluster(body);
  for (const chart of charts) chart.draw(body.curves, body.now_ms);
  drawRequests(body);
  drawIncidents(body);
  byId("source").replaceChildren(
    "Latencies, requests and incidents as API process ", element("code", {}, body.api_id),
    " has seen them since its start; percentiles over 10 s, interpolated within a histogram’s buckets.");
}

function say(text) {
  const notice = byId("cluster-notice");
  notice.hidden = !text;
  if (notice.textContent !== text) notice.textContent = text;
}
