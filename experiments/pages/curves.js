"use strict";
// The curves of the report: their scale, axes, lines and labels.
const NS = "http://www.w3.org/2000/svg";
const COLORS = 8, DASHES = ["", "7 4", "2 3"];
// Height and margins of the chart, in pixels.
const HEIGHT = 340, LEFT = 60, RIGHT = 12, TOP = 26, BOTTOM = 40;
const NAME_FONT = "600 13px system-ui, sans-serif";  // svg .name of report.html
// The lines are named at their ends if there are at most LABELLED runs and the
// chart is at least NARROW pixels wide.
const LABELLED = 8, NARROW = 520;
const LABEL_LENGTH = 22;  // characters
const DIGIT_WIDTH = 7, LABEL_HEIGHT = 15;  // pixels
const LOG_TICKS = 14;  // about the most numbers on a logarithmic axis

const color = (k) => `var(--run${k % COLORS})`;
const dash = (k) => DASHES[Math.floor(k / COLORS) % DASHES.length];

function shape(tag, attributes, text = "") {
  const element = document.createElementNS(NS, tag);
  for (const [name, v] of Object.entries(attributes)) {
    element.setAttribute(name, v);
  }
  element.textContent = text;
  return element;
}

// Returns the round numbers in an interval: multiples of a step that is a fifth to
// a half of its length.
function ticks(low, high) {
  const rough = (high - low || 1) / 5, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((f) => f * power >= rough);
  const values = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n++) {
    values.push(Number((n * step).toPrecision(12)));
  }
  return values;
}

// Returns 1, 2 and 5 times the powers of ten in an interval; if it reaches into
// four decades or more, the powers alone, or every nth power if there are more
// than LOG_TICKS. If fewer than two are inside, the ticks are linear.
function logTicks(low, high) {
  const first = Math.floor(Math.log10(low)), last = Math.ceil(Math.log10(high));
  const factors = last - first > 3 ? [1] : [1, 2, 5], values = [];
  const every = Math.max(1, Math.ceil((last - first) / LOG_TICKS));
  for (let n = Math.ceil(first / every) * every; n <= last; n += every) {
    values.push(...factors.map((f) => Number((f * 10 ** n).toPrecision(12))));
  }
  const inside = values.filter(
    (v) => v >= low * (1 - 1e-9) && v <= high * (1 + 1e-9));
  return inside.length > 1 ? inside : ticks(low, high);
}

// Returns the exponential moving average of values, without bias at the start:
// each later value multiplies the weight of a value by `smoothing`.
function smoothed(values, smoothing) {
  let sum = 0, weight = 0;
  return values.map((v) => {
    sum = smoothing * sum + v;
    weight = smoothing * weight + 1;
    return sum / weight;
  });
}

// Returns the scale of curves {xs, ys}, or null if no point is to be shown.
// Points with x below `from` times the last x are left out.
// `logarithmic` is { x, y }: whether each axis is logarithmic, and leaves out what
// is not positive. `width`, and the margin `right`, are in pixels.
function makeScale(curves, from, logarithmic, width, right) {
  const ends = curves.flatMap(({ xs }) => xs.slice(-1));
  const high = Math.max(...ends);
  const positive = curves.flatMap(({ xs }) => xs.filter((x) => x > 0));
  const least = logarithmic.x ? positive.reduce((a, b) => Math.min(a, b), high) : 0;
  const low = Math.max(from * high, least);
  const isShown = (x, y) => x >= low && (x > 0 || !logarithmic.x)
    && (y > 0 || !logarithmic.y);
  let bottom = Infinity, top = -Infinity;
  for (const { xs, ys } of curves) {
    xs.forEach((x, i) => {
      if (!isShown(x, ys[i])) return;
      bottom = Math.min(bottom, ys[i]);
      top = Math.max(top, ys[i]);
    });
  }
  if (!Number.isFinite(bottom)) return null;
  const ofX = logarithmic.x ? Math.log : (v) => v;
  const ofY = logarithmic.y ? Math.log : (v) => v;
  // Smoothing may round equal values differently: a range that small counts as 0.
  const range = ofY(top) - ofY(bottom), size = Math.abs(ofY(top));
  const margin = 0.04 * (range > 1e-10 * size ? range : size || 1);
  const length = ofX(high) - ofX(low) || 1, pixels = width - LEFT - right;
  const lowest = ofY(bottom) - margin, height = ofY(top) + margin - lowest;
  return {
    high, width, right, isShown,
    ticks: (logarithmic.x ? logTicks : ticks)(low, high),
    yTicks: logarithmic.y
      ? logTicks(Math.exp(lowest), Math.exp(lowest + height))
      : ticks(lowest, lowest + height),
    x: (v) => LEFT + pixels * (ofX(v) - ofX(low)) / length,
    y: (v) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - (ofY(v) - lowest) / height),
    xAt(pixel) {
      const v = ofX(low) + (pixel - LEFT) * length / pixels;
      return logarithmic.x ? Math.exp(v) : v;
    },
  };
}

// Returns the text of a number on an axis, rounded to three digits or more, and to
// as many as tell it from a number `step` away; below 10⁻³ as 2e−4.
function tickText(v, step = 1) {
  const size = Math.abs(v), last = Math.floor(Math.log10(step) + 1e-9);
  if (v !== 0 && size < 1e-3) {
    const needed = Math.floor(Math.log10(size)) - last + 1;
    const digits = Math.min(15, Math.max(3, needed));
    return Number(v.toPrecision(digits)).toExponential().replace("e-", "e−");
  }
  const digits = Math.min(20, Math.max(size < 0.01 ? 5 : 4, -last));
  return v.toLocaleString("en", { maximumFractionDigits: digits });
}

// Returns the text of a number beside the vertical axis, where there is room for
// few digits: from a million on as 2e6.
function narrowText(v, step) {
  return Math.abs(v) < 1e6 ? tickText(v, step)
    : v.toExponential().replace("e+", "e");
}

// Returns the least distance above 0 of two neighbouring ticks, at most 1.
const leastStep = (values) =>
  Math.min(1, ...values.slice(1).map((v, i) => v - values[i]).filter((d) => d > 0));

// Returns the axes of a chart: horizontal grid lines, ticks, numbers and titles.
function drawAxes(scale, xTitle, yTitle) {
  const end = scale.width - scale.right, parts = [];
  const steps = [scale.ticks, scale.yTicks].map(leastStep);
  for (const v of scale.yTicks) {
    parts.push(shape("line", { class: "grid", x1: LEFT, x2: end,
      y1: scale.y(v), y2: scale.y(v) }));
    const text = narrowText(v, steps[1]), room = LEFT - 6;
    const squeezed = DIGIT_WIDTH * text.length <= room ? {}
      : { textLength: room, lengthAdjust: "spacingAndGlyphs" };
    parts.push(shape("text", { x: room, y: scale.y(v) + 4,
      "text-anchor": "end", ...squeezed }, text));
  }
  let free = -Infinity;  // where the next number may begin
  for (const v of scale.ticks) {
    const text = tickText(v, steps[0]);
    const x = scale.x(v), half = DIGIT_WIDTH * text.length / 2;
    if (x - half < free) continue;
    free = x + half + DIGIT_WIDTH;
    parts.push(shape("line", { class: "grid", x1: x, x2: x,
      y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM + 4 }));
    parts.push(shape("text", { x, y: HEIGHT - BOTTOM + 17,
      "text-anchor": x > scale.width - 24 ? "end" : "middle" }, text));
  }
  parts.push(shape("text", { x: (LEFT + end) / 2, y: HEIGHT - 6,
    "text-anchor": "middle" }, xTitle));
  parts.push(shape("text", { x: 0, y: 14 }, yTitle));
  return parts;
}

// Returns the line of a curve {k, kind, xs, ys} of run k, with a dot at each
// point if its kind is validation, or if there is only one.
function drawCurve({ k, kind, xs, ys }, scale) {
  const shown = xs.map((x, i) => [x, ys[i]]).filter(([x, y]) => scale.isShown(x, y));
  const points = shown.map(([x, y]) => `${scale.x(x)},${scale.y(y)}`);
  const line = shape("polyline", { class: `curve ${kind}`, "data-run": k,
    points: points.join(" "), style: `stroke: ${color(k)}`,
    "stroke-dasharray": dash(k) });
  if (kind !== "validation" && shown.length > 1) return [line];
  return [line, ...shown.map(([x, y]) => shape("circle", { cx: scale.x(x),
    cy: scale.y(y), r: 3, style: `fill: ${color(k)}` }))];
}

const shortened = (name) => name.length <= LABEL_LENGTH ? name
  : name.slice(0, LABEL_LENGTH - 1).replace(/\p{Cs}$/u, "") + "…";

// Returns the margin for the names at the ends of lines, or RIGHT without them.
function labelMargin(names, width) {
  if (names.length > LABELLED || width < NARROW) return RIGHT;
  const pen = document.createElement("canvas").getContext("2d");
  pen.font = NAME_FONT;
  const widths = names.map((name) => pen.measureText(shortened(name)).width);
  return RIGHT + 8 + Math.max(0, ...widths);
}

// Returns the names of runs at the ends of their lines [{k, name, x, y}], moved
// apart where they would overlap.
function drawLabels(ends) {
  const sorted = [...ends].sort((a, b) => a.y - b.y);
  const lowest = HEIGHT - BOTTOM - LABEL_HEIGHT * (sorted.length - 1);
  let next = TOP;
  return sorted.map(({ k, name, x, y }, i) => {
    const place = Math.max(next, Math.min(y, lowest + i * LABEL_HEIGHT));
    next = place + LABEL_HEIGHT;
    return shape("text", { class: "name", x: x + 8, y: place + 4,
      style: `fill: ${color(k)}` }, shortened(name));
  });
}
