"use strict";
// The report: the chart and its controls, and the samples. curves.js draws the
// parts of the chart, and tables.js makes tables; head.html has what all share.
const AXES = ["training steps", "epochs", "seconds"];
// What a chart may show: its curves, each a name in the data and a kind of line.
// Training lines are thin and can be smoothed, the others are thick.
const QUANTITIES = {
  "loss": { train_loss: "training", val_loss: "validation" },
  "learning rate": { lr: "schedule" },
  "gradient norm": { grad_norm: "training" },
};
const HEADINGS = { train_loss: "training loss", val_loss: "validation loss",
  lr: "learning rate", grad_norm: "gradient norm" };

let data, axis = AXES[0], quantity = "loss";
let scale = null;  // of the chart; null if it is empty
let positions = [], cursor = 0;  // x of all points shown, sorted; index of the cursor

const fixed = (v) => v === undefined || v === null ? "–"
  : v !== 0 && Math.abs(v) < 0.01 ? v.toExponential(2) : v.toFixed(4);

// --- The curves ---

// Returns x of each point of a curve; [] where it is not known.
function xsOf(run, curve) {
  if (axis === "training steps") return curve.step;
  if (axis === "seconds") return curve.seconds;
  return run.epoch_ends === null ? []
    : curve.step.map((step) => epochsAt(run.epoch_ends, step));
}

// Returns how many epochs have passed after a training step, with fractions.
function epochsAt(ends, step) {
  const k = ends.findIndex((end) => step <= end), start = ends[k - 1] ?? 0;
  return k < 0 ? ends.length : k + (step - start) / (ends[k] - start);
}

const isShown = (k) => !data.runs[k].hidden;

// Returns the curves of the quantity: those of all runs that are not hidden.
function curves() {
  const smoothing = Number($("smoothing").value);
  return data.runs.flatMap((run, k) => !isShown(k) ? []
    : Object.entries(QUANTITIES[quantity]).map(([name, kind]) => {
      const curve = run.curves[name], xs = xsOf(run, curve);
      const ys = curve.value.slice(0, xs.length);
      return { k, kind, xs, ys: kind === "training" ? smoothed(ys, smoothing) : ys };
    }));
}

function draw() {
  const all = curves(), width = $("chart").clientWidth;
  const names = data.runs.filter((_, k) => isShown(k)).map((run) => run.name);
  const right = labelMargin(names, width);
  const logarithmic = $("scale").value, both = logarithmic === "both";
  scale = makeScale(all, Number($("range").value), {
    x: both || logarithmic === "horizontal",
    y: both || logarithmic === "vertical",
  }, width, right);
  if (!scale) {
    $("chart").replaceChildren();
    $("status").textContent = !names.length ? "All runs are hidden."
      : axis === "epochs" && data.runs.every(
        (run, k) => !isShown(k) || run.epoch_ends === null)
        ? "The number of training steps per epoch is not known."
        : all.some(({ xs }) => xs.length) ? "No value is positive, and a "
          + "logarithmic axis shows only positive values."
        : quantity === "loss" ? "The runs shown have no losses yet."
          : `The runs shown have no ${quantity} in their records.`;
    positions = [];
    showValues();
    return;
  }
  const svg = shape("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img",
    "aria-label": `${quantity} over ${axis}` });
  const unit = quantity === "loss" ? `loss, nats per ${data.unit}` : quantity;
  svg.append(...drawAxes(scale, axis, unit));
  // One by one: no call takes as many arguments as there may be evaluations.
  for (const c of all) for (const part of drawCurve(c, scale)) svg.append(part);
  if (right > RIGHT) {
    const ends = new Map();  // of each run: the end of its last curve shown
    for (const { k, xs, ys } of all) {
      const i = xs.findLastIndex((x, i) => scale.isShown(x, ys[i]));
      if (i >= 0) ends.set(k, { x: scale.x(xs[i]), y: scale.y(ys[i]) });
    }
    svg.append(...drawLabels([...ends].map(
      ([k, end]) => ({ k, name: data.runs[k].name, ...end }))));
  }
  svg.append(shape("line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM }));
  $("chart").replaceChildren(svg);
  const shown = all.flatMap(
    ({ xs, ys }) => xs.filter((x, i) => scale.isShown(x, ys[i])));
  // The cursor keeps its place, but one at the end stays at the end.
  const place = cursor < positions.length - 1 ? positions[cursor] : Infinity;
  positions = [...new Set(shown)].sort((a, b) => a - b);
  moveTo(lastIndex(positions, place));
}

function moveTo(index) {
  if (!positions.length) return;
  cursor = Math.max(0, Math.min(positions.length - 1, index));
  const line = $("chart").querySelector(".cursor"), x = scale.x(positions[cursor]);
  line.setAttribute("x1", x);
  line.setAttribute("x2", x);
  showValues();
}

// Returns the index of the last of sorted values that is at most v, or −1.
function lastIndex(values, v) {
  let low = 0, high = values.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (values[middle] <= v) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

// Shows the last values of each run up to the cursor, without smoothing, in a
// table that is also the legend.
function showValues() {
  const x = positions[cursor], names = Object.keys(QUANTITIES[quantity]);
  const headings = ["run", ...names.map((name) => HEADINGS[name])];
  if (quantity === "loss") headings.push("evaluated at step");
  if (positions.length) {
    $("status").textContent = `At ${axis.slice(0, -1)} ${tickText(x)}:`;
  }
  $("losshead").replaceChildren(headRow(headings));
  $("legend").replaceChildren(...data.runs.map((run, k) => {
    const points = names.map((name) => {
      const curve = run.curves[name];
      const index = positions.length && isShown(k)
        ? lastIndex(xsOf(run, curve), x) : -1;
      return { value: curve.value[index], step: curve.step[index] };
    });
    const cells = points.map(({ value }) => fixed(value));
    if (quantity === "loss") {
      const { step } = points[1];  // of the validation loss
      cells.push(step === undefined ? "–" : count(step));
    }
    const row = bodyRow(["", ...cells], headings);
    row.firstChild.append(legendEntry(run, k));
    return row;
  }));
}

// Returns a run's name with its colour and the box that shows or hides it.
function legendEntry(run, k) {
  const label = make("label", ""), box = make("input", "", { type: "checkbox" });
  box.checked = isShown(k);
  box.addEventListener("change", () => {
    run.hidden = !box.checked;
    draw();
    $("legend").rows[k].querySelector("input").focus();
  });
  const swatch = shape("svg", { class: "swatch", width: 26, height: 10,
    "aria-hidden": true });
  swatch.append(shape("line", { x1: 0, x2: 26, y1: 5, y2: 5,
    style: `stroke: ${color(k)}; stroke-width: 3`, "stroke-dasharray": dash(k) }));
  label.append(box, swatch, run.name);
  return label;
}

// Returns the curves of all runs, hidden ones too, as CSV: a row for each step.
function csv() {
  const names = Object.keys(HEADINGS);
  const quoted = (text) => `"${text.replaceAll('"', '""')}"`;
  const rows = data.runs.flatMap((run) => {
    const bySteps = new Map();
    for (const name of names) {
      const { step, value, seconds } = run.curves[name];
      step.forEach((s, i) => {
        const row = bySteps.get(s) ?? bySteps.set(s, { seconds: seconds[i] }).get(s);
        row[name] = value[i];
      });
    }
    return [...bySteps].sort(([a], [b]) => a - b).map(([step, row]) => [
      quoted(run.name), step, row.seconds, ...names.map((name) => row[name] ?? "")]);
  });
  return [["run", "step", "seconds", ...names], ...rows]
    .map((row) => row.join(",") + "\n").join("");
}

function saveCsv() {
  const url = URL.createObjectURL(new Blob([csv()], { type: "text/csv" }));
  const link = make("a", "", { href: url, download: "runs.csv" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);  // some browsers read late
}

// --- The samples ---

let sampleSteps = [];  // training steps that have samples; Infinity is the end

function showSamples() {
  const step = sampleSteps[Number($("evaluation").value)];
  const name = step === Infinity ? "at the end, from the best weights"
    : step ? `after training step ${count(step)}` : "before training";
  $("evaluationname").textContent = name[0].toUpperCase() + name.slice(1);
  $("evaluation").setAttribute("aria-valuetext", name);
  $("samples").replaceChildren(...data.runs.map((run) => {
    const box = make("article", "");
    const earlier = run.samples.filter((s) => (s.step ?? Infinity) <= step);
    const sample = earlier[earlier.length - 1];
    box.append(make("h3", run.name));
    if (!sample) {
      box.append(make("p", "No sample yet.", { class: "soft" }));
      return box;
    }
    box.append(make("p", sample.title, { class: "soft" }),
      make("pre", sample.text, { tabindex: 0, role: "region",
        "aria-label": `Sample of ${run.name}` }));
    return box;
  }));
}

function listen() {
  const chart = $("chart");
  const readOff = (event) => {
    if (!positions.length) return;
    const x = scale.xAt(event.clientX - chart.getBoundingClientRect().left);
    const before = Math.max(0, lastIndex(positions, x));
    const after = Math.min(positions.length - 1, before + 1);
    moveTo(x - positions[before] < positions[after] - x ? before : after);
  };
  chart.addEventListener("pointerdown", readOff);  // a tap does not move
  chart.addEventListener("pointermove", readOff);
  chart.addEventListener("keydown", (event) => {
    const index = { ArrowLeft: cursor - 1, ArrowRight: cursor + 1,
      PageUp: cursor - 10, PageDown: cursor + 10, Home: 0,
      End: positions.length - 1 }[event.key];
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (index === undefined) return;
    event.preventDefault();
    moveTo(index);
  });
  $("quantity").addEventListener("change", (event) => {
    quantity = event.target.value;
    draw();
  });
  $("axis").addEventListener("change", (event) => {
    axis = event.target.value;
    positions = [];  // in other units: the cursor goes to the end
    draw();
  });
  for (const id of ["scale", "range"]) $(id).addEventListener("change", draw);
  $("smoothing").addEventListener("input", () => {
    showSmoothing();
    draw();
  });
  $("csv").addEventListener("click", saveCsv);
  $("evaluation").addEventListener("input", showSamples);
  let width = chart.clientWidth;
  new ResizeObserver(() => {
    if (chart.clientWidth === width) return;
    width = chart.clientWidth;
    draw();
  }).observe(chart);
}

function showSmoothing() {
  const smoothing = Number($("smoothing").value);
  const name = smoothing ? `over ${count(1 / (1 - smoothing))} points` : "none";
  $("smoothingname").textContent = `Smoothing: ${name}`;
  $("smoothing").setAttribute("aria-valuetext", name);
}

async function start() {
  data = await unpackHeader();
  $("quantity").append(...Object.keys(QUANTITIES).map((q) => new Option(q)));
  $("axis").append(...AXES.map((name) => new Option(name)));
  const unknown = data.runs.filter((run) => run.epoch_ends === null);
  $("missing").textContent = unknown.length ? "Not shown over epochs, because "
    + "the corpus is missing or has changed, or the run is too large: "
    + unknown.map((run) => run.name).join(", ") : "";
  $("unit").textContent = data.unit === "token"
    ? "Losses are in nats per token. Some runs have characters as tokens and "
      + "some have words: their losses cannot be compared."
    : `Losses are in nats per ${data.unit}.`;
  fillTable("results", data.results);
  if (data.differences.rows.length) fillTable("differences", data.differences);
  $("nodifferences").textContent = data.runs.length < 2 ? "There is one run."
    : data.differences.rows.length ? ""
      : "The runs have the same versions and device, and the same flags, apart "
        + "from those that say where and how a run executes, as --devices does.";
  const steps = data.runs.flatMap(
    (run) => run.samples.map((s) => s.step ?? Infinity));
  sampleSteps = [...new Set(steps)].sort((a, b) => a - b);
  $("evaluation").max = Math.max(0, sampleSteps.length - 1);
  $("evaluation").value = $("evaluation").max;
  if (!sampleSteps.length) $("evaluation").parentElement.hidden = true;
  showSmoothing();
  draw();
  showSamples();
  listen();
  document.querySelector("main").ariaBusy = "false";
}

begin(start);
