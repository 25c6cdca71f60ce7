// What failed, and what was done about it, the newest first.

import { byId, element } from "./element.js";
import { clock, shortWorker } from "./units.js";

const STATES = { gone: "bad", redis_away: "bad", failed: "bad", pull_failed: "bad", refused: "bad", joined: "good", continued: "good", reclaimed: "good", redis_back: "good", left: "good" };
const SHOWN = 40;

let drawnUpTo = null;

export function drawIncidents({ incidents }) {
  const newest = incidents.map((one) => one.number).join();
  if (newest === drawnUpTo) return;
  drawnUpTo = newest;
  const rows = incidents.slice(0, SHOWN).map((one) =>
    element("li", { class: `state-${STATES[one.kind] ?? "warn"}`, "data-kind": one.kind },
      element("time", { datetime: new Date(one.at_ms).toISOString() }, clock(one.at_ms)),
      element("span", { class: `state ${STATES[one.kind] ?? "warn"}` }, element("i", { class: "dot" }), element("span", { class: "mono", title: one.subject }, shortWorker(one.subject))),
      element("span", {}, one.detail, one.request_id ? element("span", { class: "mono quiet" }, ` ${one.request_id.slice(0, 12)}`) : null)));
  byId("incidents").replaceChildren(...(rows.length ? rows : [element("li", { class: "empty" }, "Nothing has failed since this API process started.")]));
}
