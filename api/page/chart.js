// A line chart of the last minutes. Gaps are gaps: nothing was measured there.

import { drawn, element } from "./element.js";
import { clock } from "./units.js";

const HEIGHT = 152;
const TOP = 8;
const BOTTOM = 18;
const SPAN_MS = 300_000;
const GAP_MS = 5000;

export class Chart {
  // `lines`: [name, field of the curves] each; `format`: a value with its unit; `hint`: what to say when there is none.
  constructor(root, lines, format, hint = "") {
    Object.assign(this, { root, lines, format, hint, at: null });
    this.key = element("p", { class: "key" });
    this.svg = drawn("svg", { role: "img" });
    this.note = element("p", { class: "hint" }, hint);
    root.append(this.key, this.svg, this.note);
    this.svg.addEventListener("pointermove", (event) => this.point(event.offsetX));
    this.svg.addEventListener("pointerleave", () => this.point(null));
  }

  draw(curves, now_ms) {
    this.curves = curves;
    this.now_ms = now_ms;
    const width = this.root.clientWidth;
    if (!width) return;
    const values = this.lines.flatMap(([, field]) => curves[field]).filter((value) => value != null);
    const most = ceiling(Math.max(0, ...values));
    const floor = HEIGHT - BOTTOM;
    const x = (ms) => ((ms - now_ms + SPAN_MS) / SPAN_MS) * width;
    const y = (value) => floor - (value / most) * (floor - TOP);
    this.x = x;
    this.svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    const grid = [0, 0.5, 1].flatMap((share) => [
      drawn("line", { class: "grid", x1: 0, x2: width, y1: y(share * most), y2: y(share * most) }),
      share > 0 && values.length ? drawn("text", { x: 0, y: y(share * most) + 12 }, this.format(share * most)) : null,
    ]);
    const ticks = [[0, "5 min ago", "start"], [width, "now", "end"]].map(([left, text, anchor]) => drawn("text", { x: left, y: HEIGHT - 4, "text-anchor": anchor }, text));
    const lines = this.lines.map(([, field], number) => drawn("path", { class: `line-${number + 1}`, d: path(curves.at_ms, curves[field], x, y) }));
    this.cursor = drawn("line", { class: "cursor", y1: TOP, y2: floor, visibility: "hidden" });
    this.svg.replaceChildren(...grid.filter(Boolean), ...ticks, ...lines.reverse(), this.cursor);
    this.note.hidden = !this.hint || values.length > 0;
    this.tell();
  }

  point(left) {
    if (!this.curves?.at_ms.length) return;
    this.at = left == null ? null : left;
    this.tell();
  }

  // The values at the pointer, or the last ones.
  tell() {
    const { at_ms } = this.curves;
    const nearest = this.at == null ? -1 : at_ms.reduce((best, ms, index) => (Math.abs(this.x(ms) - this.at) < Math.abs(this.x(at_ms[best]) - this.at) ? index : best), 0);
    this.cursor.setAttribute("visibility", nearest < 0 ? "hidden" : "visible");
    if (nearest >= 0) ["x1", "x2"].forEach((name) => this.cursor.setAttribute(name, this.x(at_ms[nearest])));
    const shown = this.lines.map(([name, field], number) => {
      const value = nearest < 0 ? this.curves[field].findLast((one) => one != null) : this.curves[field][nearest];
      return element("span", {}, element("i", { class: `line-${number + 1}` }), `${name} ${value == null ? "–" : this.format(value)}`);
    });
    if (nearest >= 0) shown.push(element("span", {}, `at ${clock(at_ms[nearest])}`));
    this.key.replaceChildren(...shown);
    this.svg.setAttribute("aria-label", this.key.textContent);
  }
}

function path(times, values, x, y) {
  let d = "";
  let before = -Infinity;
  values.forEach((value, index) => {
    if (value == null) return;
    const isNext = times[index] - before < GAP_MS;
    d += `${isNext ? "L" : "M"}${x(times[index]).toFixed(1)} ${y(value).toFixed(1)}`;
    if (!isNext) d += "h0.01"; // a point alone is seen too
    before = times[index];
  });
  return d;
}

// The next of 1, 2, 5 x 10^n, and 2 at least, so that its half is a whole number too.
function ceiling(value) {
  if (value <= 2) return 2;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value);
}
