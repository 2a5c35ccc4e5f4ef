// One metric of several runs over steps: curves, the values under the cursor, and a table of them.

const LEFT = 56, RIGHT = 20, TOP = 8, BOTTOM = 24;
const ROWS = 20;  // of the table

const SVG = "http://www.w3.org/2000/svg";

export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function draw(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** As people read it: four digits. */
export function number(value) {
  if (value === null || value === undefined) return "–";
  if (Number.isInteger(value) && Math.abs(value) < 1e6) return String(value);
  const size = Math.abs(value);
  return size >= 1e-3 && size < 1e6 ? String(Number(value.toPrecision(4))) : value.toExponential(2);
}

/** The moving average whose weights sum to one from the first value on; what isn't finite is left out of it. */
export function smooth(values, weight) {
  let sum = 0, total = 0;
  return values.map((value) => {
    if (value === null) return null;
    sum = weight * sum + (1 - weight) * value;
    total = weight * total + (1 - weight);
    return sum / total;
  });
}

/** Round numbers from low to high, about `count` of them. */
function ticks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  const found = [];
  for (let index = Math.ceil(low / step); index * step <= high + step * 1e-9; index++) found.push(index * step);
  return found;
}

/** Likewise, for a logarithmic axis: powers of ten, or what lies between them. */
function logTicks(low, high) {
  const decades = ticks(Math.log10(low), Math.log10(high), 5).filter(Number.isInteger).map((power) => 10 ** power);
  return decades.length > 1 ? decades : ticks(low, high, 5);
}

/** The place of the last of the sorted steps that isn't behind `step`; the first if all are. */
function placeOf(steps, step) {
  let low = 0, high = steps.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (steps[middle] <= step) low = middle + 1; else high = middle;
  }
  return Math.max(low - 1, 0);
}

/** A card with one metric. `show(series, options)` draws; series: {run, kind, colour, steps, values}. */
export class Chart {
  constructor(metric) {
    this.series = [];
    this.step = null;  // where the cursor is
    this.svg = draw("svg", {tabindex: "0", role: "img"});
    this.legend = make("ul", {class: "legend"});
    this.at = make("p", {class: "at"});
    this.spoken = make("p", {class: "spoken", "aria-live": "polite"});  // what the legend shows while keys are used
    this.table = make("table");
    this.details = make("details", {}, make("summary", {}, `Values of ${metric} as a table`),
      make("div", {class: "scroll", tabindex: "0", role: "region", "aria-label": `Values of ${metric}`}, this.table));
    this.element = make("section", {class: "card chart", "aria-label": metric},
      make("h2", {}, metric), this.svg, this.at, this.spoken, this.legend, this.details);
    this.metric = metric;
    this.svg.addEventListener("pointermove", (event) => this.point(this.stepAt(event.offsetX)));
    this.svg.addEventListener("pointerleave", () => this.point(null));
    this.svg.addEventListener("blur", () => this.point(null));
    this.svg.addEventListener("keydown", (event) => this.key(event));
    this.details.addEventListener("toggle", () => this.fillTable());
    new ResizeObserver(() => this.redraw()).observe(this.svg);
  }

  show(series, options) {
    this.options = options;
    this.series = series.map((one) => ({
      ...one, shown: one.kind === "train" && options.smoothing > 0 ? smooth(one.values, options.smoothing) : one.values,
    }));
    this.ends = new Map();  // of runs, whatever their last line is of
    for (const {run, steps} of this.series) this.ends.set(run, Math.max(this.ends.get(run) ?? 0, steps.at(-1)));
    this.steps = [...new Set(this.series.flatMap((one) => one.steps))].sort((a, b) => a - b);
    this.redraw();
    this.fillTable();
  }

  stepAt(x) {
    if (!this.steps?.length) return null;
    const [low, high] = this.range;
    const step = low + (x - LEFT) / (this.width - LEFT - RIGHT) * (high - low);
    const place = placeOf(this.steps, step);
    const next = this.steps[place + 1];
    return next !== undefined && next - step < step - this.steps[place] ? next : this.steps[place];
  }

  key(event) {
    if (!this.steps?.length) return;
    const last = this.steps.length - 1, far = Math.max(1, Math.round(last / 20));
    const from = this.step === null ? last : placeOf(this.steps, this.step);
    const place = {
      ArrowLeft: from - 1, ArrowRight: from + 1, PageDown: from - far, PageUp: from + far, Home: 0, End: last,
    }[event.key];
    if (event.key === "Escape") this.point(null);
    if (place === undefined) return;
    event.preventDefault();
    this.point(this.steps[Math.min(last, Math.max(0, place))]);
    this.spoken.textContent = [this.at.textContent, ...this.series.map(
      (one, index) => `${one.run}, ${one.kind}: ${written(this.under[index])}`)].join("; ");
  }

  point(step) {
    this.step = step;
    this.drawCursor();
  }

  redraw() {
    this.width = this.svg.clientWidth;
    this.height = this.svg.clientHeight;
    if (!this.width || !this.options) return;
    const {log} = this.options;
    const usable = (value) => value !== null && (!log || value > 0);
    let low = Infinity, high = -Infinity;
    for (const one of this.series) {
      for (const value of one.shown) if (usable(value)) { low = Math.min(low, value); high = Math.max(high, value); }
    }
    const empty = low > high;
    if (empty) [low, high] = log ? [0.1, 1] : [0, 1];
    const scaled = log ? Math.log10 : (value) => value;
    let [bottom, top] = [scaled(low), scaled(high)];
    const margin = (top - bottom) * 0.05 || Math.abs(top) * 0.05 || 1;
    [bottom, top] = [bottom - margin, top + margin];
    this.range = this.steps.length ? [this.steps[0], Math.max(this.steps.at(-1), this.steps[0] + 1)] : [0, 1];
    this.x = (step) => LEFT + (step - this.range[0]) / (this.range[1] - this.range[0]) * (this.width - LEFT - RIGHT);
    this.y = (value) => usable(value)
      ? TOP + (1 - (scaled(value) - bottom) / (top - bottom)) * (this.height - TOP - BOTTOM) : null;
    this.marks = draw("g");
    const curves = this.series.flatMap((one) => [
      ...one.shown === one.values ? [] : [this.curve(one, one.values, "raw")], this.curve(one, one.shown, one.kind)]);
    // What is beyond the frame (raw values behind smoothed ones) must not cover the labels.
    const frame = draw("svg", {x: LEFT, y: 0, width: Math.max(1, this.width - LEFT - RIGHT), height: this.height - BOTTOM + 2,
      viewBox: `${LEFT} 0 ${Math.max(1, this.width - LEFT - RIGHT)} ${this.height - BOTTOM + 2}`}, ...curves);
    this.svg.replaceChildren(...this.axes(bottom, top, log), frame, this.marks);
    if (empty) {
      const words = this.series.length ? (log ? "no values above 0" : "no finite values") : "nothing yet";
      this.svg.append(draw("text", {x: this.width / 2, y: this.height / 2, "text-anchor": "middle"}, words));
    }
    this.svg.setAttribute("aria-label", this.summary());
    this.drawCursor();
  }

  axes(bottom, top, log) {
    const parts = [];
    for (const value of log ? logTicks(10 ** bottom, 10 ** top) : ticks(bottom, top, 5)) {
      const y = this.y(value);
      parts.push(draw("line", {class: "grid", x1: LEFT, x2: this.width - RIGHT, y1: y, y2: y}),
        draw("text", {x: LEFT - 6, y: y + 4, "text-anchor": "end"}, number(Number(value.toPrecision(6)))));
    }
    for (const step of ticks(...this.range, Math.max(3, this.width / 110)).filter(Number.isInteger)) {
      parts.push(draw("text", {x: this.x(step), y: this.height - 6, "text-anchor": "middle"}, number(step)));
    }
    return parts;
  }

  /** At most four points for a column of pixels: its first, lowest, highest and last. */
  curve(one, values, kind) {
    let path = "", pen = false, column = null, first, least, most, last;
    const points = [];
    const flush = () => {
      if (column === null) return;
      for (const place of [...new Set([first, least, most, last])].sort((a, b) => a - b)) points.push(place);
      column = null;
    };
    for (let place = 0; place < values.length; place++) {
      if (this.y(values[place]) === null) { flush(); points.push(null); continue; }
      const now = Math.round(this.x(one.steps[place]));
      if (now !== column) { flush(); column = now; first = least = most = place; }
      if (values[place] < values[least]) least = place;
      if (values[place] > values[most]) most = place;
      last = place;
    }
    flush();
    const dots = [];
    for (const [index, place] of points.entries()) {
      if (place === null) { pen = false; continue; }
      const [x, y] = [this.x(one.steps[place]), this.y(values[place])];
      const alone = !pen && (points[index + 1] ?? null) === null;
      if (alone || kind === "eval") dots.push(draw("circle", {class: "dot", cx: x, cy: y, r: kind === "eval" ? 2.5 : 1.5}));
      path += `${pen ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`;
      pen = true;
    }
    return draw("g", {class: one.colour, "data-run": one.run, "data-kind": kind},
      draw("path", {class: `curve ${kind}`, d: path}), ...dots.length < 200 ? dots : []);
  }

  drawCursor() {
    const {step} = this;
    this.under = this.series.map((one) => {
      if (step === null) return {step: one.steps.at(-1), value: one.shown.at(-1)};
      const place = placeOf(one.steps, step);
      return one.steps[place] > step || this.ends.get(one.run) < step ? null
        : {step: one.steps[place], value: one.shown[place]};
    });
    this.at.textContent = step === null ? "Latest values" : `At step ${step}`;
    this.legend.replaceChildren(...this.series.map((one, index) => make("li", {class: one.colour},
      draw("svg", {viewBox: "0 0 26 8", "aria-hidden": "true"}, draw("line", {class: `curve ${one.kind}`, x1: 0, x2: 26, y1: 4, y2: 4})),
      make("span", {class: "name"}, `${one.run}, ${one.kind}${lost(one)}`),
      make("span", {class: "value"}, written(this.under[index])))));
    if (!this.marks) return;
    this.marks.replaceChildren();
    if (step === null) return;
    this.marks.append(draw("line", {class: "cursor", x1: this.x(step), x2: this.x(step), y1: TOP, y2: this.height - BOTTOM}));
    this.series.forEach((one, index) => {
      const under = this.under[index];
      const y = under && this.y(under.value);
      if (y === null) return;
      this.marks.append(draw("g", {class: one.colour}, draw("circle", {class: "dot", cx: this.x(under.step), cy: y, r: 4})));
    });
  }

  summary() {
    const parts = this.series.map((one) => {
      const finite = one.shown.filter((value) => value !== null);
      if (!finite.length) return `${one.run}, ${one.kind}: no finite value`;
      const [least, most] = finite.reduce(([a, b], value) => [Math.min(a, value), Math.max(b, value)], [Infinity, -Infinity]);
      return `${one.run}, ${one.kind}: ${number(finite.at(-1))} at step ${one.steps.at(-1)}, between ${number(least)} and ${number(most)}`;
    });
    return `${this.metric} over steps. ${parts.join(". ") || "Nothing yet"}. Arrow keys move along the curve.`;
  }

  fillTable() {
    if (!this.details.open || !this.steps) return;
    const stride = Math.max(1, (this.steps.length - 1) / (ROWS - 1));
    const chosen = [];
    for (let place = 0; place < this.steps.length - 0.5; place += stride) chosen.push(this.steps[Math.round(place)]);
    const head = make("tr", {}, make("th", {scope: "col"}, "step"),
      ...this.series.map((one) => make("th", {scope: "col"}, `${one.run}, ${one.kind}`)));
    const rows = chosen.map((step) => make("tr", {}, make("th", {scope: "row"}, String(step)), ...this.series.map((one) => {
      const place = placeOf(one.steps, step);
      const there = one.steps.length && one.steps[place] <= step;
      return make("td", {}, !there ? "–" : one.shown[place] === null ? "not finite" : number(one.shown[place]));
    })));
    this.table.replaceChildren(make("thead", {}, head), make("tbody", {}, ...rows));
  }
}

function written(under) {
  if (under === null) return "–";
  return under.value === null ? "not finite" : number(under.value);
}

function lost(one) {
  const count = one.values.filter((value) => value === null).length;
  return count ? ` (${count} not finite)` : "";
}
