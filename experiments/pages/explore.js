"use strict";
const textBox = $("text"), textCanvas = textBox.firstElementChild;
const spacer = textBox.lastElementChild;
const LINE = 26, CELL = 18, FONT = "16px ui-monospace, monospace";
const TABLE_STEPS = [0, 1, 2, 4, 8, 16, 32, 64];  // back, in the table
const DECADES = 4;  // powers of ten in the bars under the text

// --- State of the page ---

let data;  // the page's header
let text, pieces, tokens;  // the text shown, its tokens and what each adds
let chosenText, chosenCursor;  // the text to be shown once it is unpacked
let layer = 0, signalName, order = 0, unit = 0, cursor = 0;
let signal, levels, paths;  // the signal shown, and its layer's gradient paths
let ranks = [];  // the units in order
let starts;  // the first token of each line
let lineOf, columnOf, widths;  // of each token, in characters
let columns, charWidth;  // columns that fit, and the width of one in pixels
let palettes;  // colors of each level, and of a character on it, by signed
let ink, soft, border, accent, purple;  // other colors

const nameOf = (t) => visibleSymbol(data.symbols[tokens[t]]);
const scientific = (v) => v === null ? "…" : v === 0 ? "–"
  : v.toExponential(1).replace("-", "−");

function valueOf(u, at) {
  const q = levels[u * pieces.length + at];
  return signal.signed ? (q - 128) / 127 * signal.scale[u] : q / 255;
}

// --- Colors ---

function makeColors() {
  [ink, soft, border, accent, purple] =
    ["ink", "soft", "line", "accent", "open"]
      .map((name) => `rgb(${channels(name)})`);
  const [page, negative, positive, gate] =
    ["page", "negative", "positive", "open"].map(channels);
  palettes = { true: [], false: [] };
  for (let q = 0; q < 256; q++) {
    const x = Math.max(-1, (q - 128) / 127);
    palettes.true.push(shade(page, x < 0 ? negative : positive, Math.abs(x)));
    palettes.false.push(shade(page, gate, q / 255));
  }
}

// --- Layout: a line ends at a newline, or at the last blank that fits ---

function layOut() {
  const context = textCanvas.getContext("2d");
  context.font = FONT;
  charWidth = context.measureText("M").width;
  columns = Math.max(8, Math.floor((textBox.clientWidth - 8) / charWidth));
  widths = pieces.map((piece) => piece.startsWith("\n") ? 1
    : Math.min(columns, Array.from(piece).length));
  starts = [0];
  columnOf = new Uint16Array(pieces.length);
  let column = 0, blank = 0;
  pieces.forEach((piece, t) => {
    const start = starts[starts.length - 1];
    if (piece.length > 1 && piece[0] === " ") blank = t;
    if (column + widths[t] > columns && t > start) {
      const from = blank > start ? blank : t;
      const shift = from < t ? columnOf[from] : column;
      for (let k = from; k < t; k++) columnOf[k] -= shift;
      column -= shift;
      starts.push(from);
    }
    columnOf[t] = column;
    column += widths[t];
    if (piece === " ") blank = t + 1;
    if (piece[0] === "\n" && t + 1 < pieces.length) {
      starts.push(t + 1);
      column = Math.min(piece.length - 1, columns - 8);  // indentation
    }
  });
  lineOf = new Uint32Array(pieces.length);
  starts.forEach((start, line) => lineOf.fill(line, start));
  const below = starts.length * LINE + 8 - textBox.clientHeight;
  spacer.style.height = `${Math.max(0, below)}px`;
  resize(textCanvas, textBox.clientWidth, textBox.clientHeight);
}

function endOf(line) {
  return line + 1 < starts.length ? starts[line + 1] : pieces.length;
}

function tokenAt(line, column) {
  let t = starts[line];
  while (t + 1 < endOf(line) && columnOf[t + 1] <= column) t++;
  return t;
}

function resize(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  canvas.style.height = `${height}px`;
  canvas.style.width = `${width}px`;
}

function clear(canvas) {
  const context = canvas.getContext("2d"), ratio = window.devicePixelRatio || 1;
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, canvas.width, canvas.height);
  return context;
}

// --- Drawing ---

// Draws a token of the text at its column, in the color of a level.
function drawToken(context, t, y, palette, level) {
  const x = 4 + columnOf[t] * charWidth, width = widths[t] * charWidth;
  const left = Math.round(x), piece = pieces[t], { fill, ink } = palette[level];
  context.fillStyle = fill;
  context.fillRect(left, y, Math.round(x + width) - left, CELL);
  if (piece === " ") return;
  const isBreak = piece[0] === "\n";
  context.font = FONT;
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.fillStyle = ink;
  context.globalAlpha = isBreak ? 0.5 : 1;
  context.fillText(isBreak ? "↵" : piece.replace("\t", "⇥"), x + width / 2,
    y + CELL / 2 + 1, width);
  context.globalAlpha = 1;
}

function drawText() {
  const context = clear(textCanvas), top = textBox.scrollTop;
  const first = Math.max(0, Math.floor(top / LINE));
  const last = Math.min(starts.length,
    Math.ceil((top + textBox.clientHeight) / LINE));
  const row = unit * pieces.length, palette = palettes[signal.signed];
  const boxOf = (t) => [4 + columnOf[t] * charWidth,
    4 + lineOf[t] * LINE - top, widths[t] * charWidth];
  const end = last < starts.length ? starts[last] : pieces.length;
  for (let t = starts[first]; t < end; t++) {
    drawToken(context, t, 4 + lineOf[t] * LINE - top, palette, levels[row + t]);
  }
  const bars = barHeights();
  context.fillStyle = accent;
  bars.forEach((height, back) => {
    const [x, y, width] = boxOf(cursor - back);
    context.fillRect(x + 1, y + CELL + 6 - 6 * height, width - 2, 6 * height);
  });
  context.strokeStyle = accent;
  context.lineWidth = 1.5;
  const shown = (t) => t >= starts[first] && t < end;
  for (const passage of found) {
    for (let t = passage.first; t <= passage.last; t++) {
      if (!shown(t)) continue;
      const [x, y, width] = boxOf(t);
      context.strokeRect(x, y, width, CELL);
    }
  }
  context.strokeStyle = ink;
  const [from, to] = selection();
  for (let t = from; t <= to; t++) {
    if (!shown(t)) continue;
    const [x, y, width] = boxOf(t);
    context.beginPath();
    context.moveTo(x, y + CELL + 1);
    context.lineTo(x + width, y + CELL + 1);
    context.stroke();
  }
  const [x, y, width] = boxOf(cursor);
  context.lineWidth = 2;
  context.strokeRect(x - 1, y - 1, width + 2, CELL + 2);
}

// Returns the height of the bar at each step back, in [0, 1].
function barHeights() {
  const reach = Math.min(data.window, cursor + 1), norms = [];
  for (let back = 0; back < reach; back++) {
    norms.push(Math.hypot(...paths.map((p) => p.norm(cursor, back))));
  }
  const largest = Math.max(...norms);
  return norms.map((v) => v === 0 ? 0
    : Math.max(0, 1 + Math.log10(v / largest) / DECADES));
}

function drawUnits() {
  const canvas = $("units"), width = canvas.parentElement.clientWidth;
  const perRow = Math.max(1, Math.floor(width / 14));
  const height = Math.ceil(ranks.length / perRow) * 14;
  resize(canvas, width, height);
  const context = clear(canvas);
  ranks.forEach((u, k) => {
    const x = k % perRow * 14, y = Math.floor(k / perRow) * 14;
    context.fillStyle =
      palettes[signal.signed][levels[u * pieces.length + cursor]].fill;
    context.fillRect(x + 1, y + 1, 12, 12);
    context.strokeStyle = u === unit ? ink : border;
    context.lineWidth = u === unit ? 2 : 1;
    context.strokeRect(x + 1, y + 1, 12, 12);
  });
}

function drawPath() {
  const canvas = $("path"), width = canvas.parentElement.clientWidth;
  resize(canvas, width, 170);
  const context = clear(canvas), left = 44, bottom = 140, top = 8;
  const low = Math.floor(Math.min(...paths.map((p) => p.low)));
  const high = Math.ceil(Math.max(...paths.map((p) => p.high)));
  const x = (back) => width - 24 - (width - 24 - left) * back
    / (data.window - 1);
  const y = (v) => bottom - (bottom - top) * (Math.log10(v) - low)
    / (high - low);
  context.font = "12px system-ui, sans-serif";
  context.fillStyle = soft;
  context.strokeStyle = border;
  context.textAlign = "right";
  context.textBaseline = "middle";
  const every = Math.ceil((high - low) / 5);
  for (let decade = high; decade >= low; decade -= every) {
    const at = y(10 ** decade);
    context.fillText(`1e${decade}`.replace("-", "−"), left - 5, at);
    context.beginPath();
    context.moveTo(left, at);
    context.lineTo(width - 24, at);
    context.stroke();
  }
  context.textAlign = "center";
  for (let back = 0; back < data.window; back += 32) {
    context.fillText(back || "cursor", x(back) - (back ? 0 : 10), bottom + 12);
  }
  context.fillText(`${data.unit}s back`, (left + width) / 2, bottom + 25);
  paths.forEach((path, k) => {
    const color = k ? purple : accent;
    context.strokeStyle = context.fillStyle = color;
    context.lineWidth = 2;
    context.setLineDash(k ? [5, 3] : []);
    context.beginPath();
    for (let back = 0; back < data.window; back++) {
      const v = path.norm(cursor, back);
      if (v > 0) context.lineTo(x(back), y(Math.max(v, 10 ** low)));
    }
    context.stroke();
    context.setLineDash([]);
    const v = path.norm(cursor, 0) || path.norm(cursor, 1);
    if (v > 0) context.fillText(path.name, width - 14, y(v) + 6 * k);
  });
}

function showNext() {
  const actual = tokens[cursor + 1];  // undefined at the end
  const rows = text.likeliest(cursor).map(([token, p]) =>
    [token, token === actual ? text.probability(cursor) : p]);
  if (actual !== undefined && !rows.some(([token]) => token === actual)) {
    rows.push([actual, text.probability(cursor)]);
  }
  $("next").replaceChildren(...rows.map(([token, p]) => {
    const [item, name, bar, figure] =
      ["li", "b", "i", "span"].map((tag) => document.createElement(tag));
    item.className = token === actual ? "actual" : "";
    name.textContent = visibleSymbol(data.symbols[token]);
    bar.style.width = `${100 * p}%`;
    figure.textContent = `${(100 * p).toFixed(2)} %`;
    item.append(name, bar, figure);
    return item;
  }));
}

function showPath() {
  const [one, other] = paths.map((p) => p.name);
  $("reach").textContent = cursor + 1 < pieces.length
    ? `The norm of the gradient of log p(‘${nameOf(cursor + 1)}’), the `
      + `next ${data.unit} of the text, with respect to this layer's state `
      + `after each earlier ${data.unit}`
      + (paths.length > 2 ? ": of each array with the others held fixed."
        : paths.length > 1 ? `: of ${one} with ${other} held fixed, and of `
        + `${other} with ${one} held fixed.` : ".")
    : "The text ends here: move the cursor back to see a gradient.";
  const steps = TABLE_STEPS.filter((k) => k < data.window && k <= cursor);
  $("norms").replaceChildren(...steps.map((back) => {
    const row = document.createElement("tr");
    const cells = [back, nameOf(cursor - back),
      ...paths.map((path) => scientific(path.norm(cursor, back)))];
    cells.forEach((value, k) => {
      row.append(document.createElement(k ? "td" : "th"));
      row.lastChild.textContent = value;
    });
    return row;
  }));
  const head = ["steps back", "after", ...paths.map((p) => `‖d${p.name}‖`)];
  const row = document.createElement("tr");
  head.forEach((name) => {
    row.append(document.createElement("th"));
    row.lastChild.textContent = name;
  });
  document.querySelector("thead").replaceChildren(row);
}

function showStatus() {
  $("status").textContent =
    `‘${nameOf(cursor)}’, ${data.unit} ${count(cursor + 1)} of `
    + `${count(pieces.length)}. Unit ${unit} of ${signal.name} is `
    + `${round(valueOf(unit, cursor))}. `
    + (cursor + 1 < pieces.length
      ? `Next in the text: ‘${nameOf(cursor + 1)}’, with probability `
        + `${(100 * text.probability(cursor)).toFixed(2)} %.`
      : "The text ends here.");
}

function showLegend() {
  const [title, low, strip, high] = $("legend").children;
  const largest = signal.signed ? signal.scale[unit] : 1;
  title.textContent = `Unit ${unit} of ${signal.name}, ${signal.meaning}, `
    + `layer ${layer + 1}`
    + (order ? `; ${data.features[order - 1].name}: ${scoreOf(unit)}` : "");
  low.textContent = signal.signed ? round(-largest) : "0 (closed)";
  high.textContent = signal.signed ? round(largest) : "1 (open)";
  const stops = [];
  for (let q = signal.signed ? 1 : 0; q < 256; q += 8) {
    stops.push(palettes[signal.signed][q].fill);
  }
  strip.style.background = `linear-gradient(to right, ${stops})`;
}

let scheduled = false;

function draw() {
  if (scheduled) return;
  scheduled = true;
  requestAnimationFrame(() => {
    scheduled = false;
    drawText(), drawPins(), drawUnits(), drawPath();
  });
}

function show() {
  showStatus(), showNext(), showPath(), showLegend(), showPinButton();
  draw();
  const shown = text;
  text.follow(cursor, () => {
    if (text === shown) showPath(), draw();
  });
}

// --- Choices ---

function scoreOf(u) {
  const score = signal.scores[order - 1][u];
  return `${data.features[order - 1].measure} ${score.toFixed(2)}`
    .replace("-", "−");
}

function sortUnits() {
  ranks = signal.scale.map((_, u) => u);
  if (order) {
    const middle = data.features[order - 1].measure === "AUC" ? 0.5 : 0;
    const strength = signal.scores[order - 1].map((s) => Math.abs(s - middle));
    ranks.sort((a, b) => strength[b] - strength[a]);
  }
  $("unit").replaceChildren(...ranks.map((u) =>
    new Option(order ? `${u} (${scoreOf(u)})` : `${u}`, u)));
}

let numChoices = 0;

// Shows the chosen layer, signal and order, and a unit; `best` selects the best.
async function choose(best, chosenUnit = unit) {
  setBusy(true);
  try {
    await chooseNow(best, chosenUnit);
  } finally {
    setBusy(false);
  }
}

async function chooseNow(best, chosenUnit) {
  const choice = ++numChoices, shown = chosenText;
  const chosen = await shown.signalOf(layer, signalName);
  const chosenPaths = await shown.pathsOf(layer);
  const newPins = shown === text ? null : await pinsOn(shown);
  if (choice !== numChoices) return;  // a later choice replaces this one
  signal = chosen, signalName = signal.name, levels = signal.levels;
  paths = chosenPaths;
  unit = chosenUnit;
  if (newPins) {
    text?.stop();
    text = shown, pieces = text.pieces, tokens = text.tokens;
    cursor = chosenCursor, anchor = null;
    layOut();
    reveal();
  }
  makeColors();
  sortUnits();
  if (best || unit >= ranks.length) unit = ranks[0];
  $("layer").value = layer, $("signal").value = signalName;
  $("order").value = order, $("unit").value = unit;
  if (newPins) setPins(newPins.filter((pin) => pins.includes(pin.from)));
  show();
  if (newPins) find();
  else refind();
}

// Shows another text, with the cursor at a token.
function showText(shown, at) {
  chosenText = shown, chosenCursor = at;
  return choose(false);
}

let numBusy = 1;  // what is under way; at first, the page itself

function setBusy(isBusy) {
  numBusy += isBusy ? 1 : -1;
  document.querySelector("main").setAttribute("aria-busy", numBusy > 0);
}

const aboutOf = (source) => `${data.about}; ${source}`;

function chooseUnit(u) {
  unit = u;
  $("unit").value = u;
  show();
  refind();
}

function stepUnit(step) {
  const k = ranks.indexOf(unit) + step;
  if (k >= 0 && k < ranks.length) chooseUnit(ranks[k]);
}

// Selects the next or previous option of a menu, and wraps around.
function cycle(id, step) {
  const options = [...$(id).options].filter((option) => !option.disabled);
  const k = options.findIndex((option) => option.selected);
  const size = options.length;
  if (size < 2) return;
  $(id).value = options[(k + step + size) % size].value;
  $(id).dispatchEvent(new Event("change"));
}

// Scrolls the text until the cursor is in sight.
function reveal() {
  const top = lineOf[cursor] * LINE, height = textBox.clientHeight;
  if (top < textBox.scrollTop) textBox.scrollTop = top - LINE;
  if (top + 2 * LINE > textBox.scrollTop + height) {
    textBox.scrollTop = top + 2 * LINE - height;
  }
}

function moveTo(t) {
  cursor = Math.max(0, Math.min(pieces.length - 1, t));
  reveal();
  show();
}

function moveLines(step) {
  const line = lineOf[cursor];
  const target = Math.max(0, Math.min(starts.length - 1, line + step));
  if (target !== line) moveTo(tokenAt(target, columnOf[cursor]));
}

const KEYS = {
  ArrowLeft: () => moveTo(cursor - 1),
  ArrowRight: () => moveTo(cursor + 1),
  ArrowUp: () => moveLines(-1),
  ArrowDown: () => moveLines(1),
  PageUp: () => moveLines(2 - Math.floor(textBox.clientHeight / LINE)),
  PageDown: () => moveLines(Math.floor(textBox.clientHeight / LINE) - 2),
  Home: (event) => moveTo(event.ctrlKey ? 0 : starts[lineOf[cursor]]),
  End: (event) => moveTo(
    (event.ctrlKey ? pieces.length : endOf(lineOf[cursor])) - 1),
  n: () => stepUnit(1), N: () => stepUnit(-1),
  p: () => stepUnit(-1), P: () => stepUnit(1),
  s: () => cycle("signal", 1), S: () => cycle("signal", -1),
  o: () => cycle("order", 1), O: () => cycle("order", -1),
  l: () => cycle("layer", 1), L: () => cycle("layer", -1),
  f: () => step(1), F: () => step(-1),
  i: togglePin,
};
// The keys that move the cursor: with Shift they select from where it was.
const MOVING = ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "PageUp",
  "PageDown", "Home", "End"];

// Returns the token at the place of a pointer.
function tokenUnder({ clientX, clientY }) {
  const box = textCanvas.getBoundingClientRect();
  const line = Math.floor((clientY - box.top - 4 + textBox.scrollTop) / LINE);
  return tokenAt(Math.min(starts.length - 1, Math.max(0, line)),
    Math.floor((clientX - box.left - 4) / charWidth));
}

// A click moves the cursor; with Shift, or while "Select" is on, it selects from
// where the cursor was. So does a mouse that is moved with its button down.
function listenToPointer() {
  let from = null, isDragged = false;
  textBox.addEventListener("pointerdown", (event) => {
    isDragged = false;
    from = event.pointerType === "mouse" ? tokenUnder(event) : null;
  });
  textBox.addEventListener("pointermove", (event) => {
    if (from === null || !(event.buttons & 1)) return;
    const t = tokenUnder(event);
    if (t === from && !isDragged) return;
    isDragged = true;
    anchor = from;
    moveTo(t);
  });
  textBox.addEventListener("click", (event) => {
    if (isDragged) return;
    const selects = event.shiftKey || isSelecting();
    anchor = selects ? anchor ?? cursor : null;
    moveTo(tokenUnder(event));
  });
  $("select").addEventListener("click", () => {
    $("select").setAttribute("aria-pressed", !isSelecting());
    if (!isSelecting()) anchor = null;
    show();
  });
}

const isSelecting = () => $("select").getAttribute("aria-pressed") === "true";

function listen() {
  textBox.addEventListener("keydown", (event) => {
    const command = event.key.length === 1 && event.ctrlKey;
    if (command || event.altKey || event.metaKey || !KEYS[event.key]) return;
    event.preventDefault();
    if (MOVING.includes(event.key)) {
      anchor = event.shiftKey || isSelecting() ? anchor ?? cursor : null;
    }
    KEYS[event.key](event);
  });
  listenToPointer();
  textBox.addEventListener("scroll", draw);
  $("units").addEventListener("click", (event) => {
    const perRow = Math.max(1, Math.floor($("units").clientWidth / 14));
    const column = Math.floor(event.offsetX / 14);
    if (column >= perRow) return;  // right of the last square
    const u = ranks[Math.floor(event.offsetY / 14) * perRow + column];
    if (u !== undefined) chooseUnit(u);
  });
  $("layer").addEventListener("change", (event) => {
    layer = Number(event.target.value);
    choose(true);
  });
  $("signal").addEventListener("change", (event) => {
    signalName = event.target.value;
    choose(false);
  });
  $("order").addEventListener("change", (event) => {
    order = Number(event.target.value);
    choose(true);
  });
  $("unit").addEventListener("change",
    (event) => chooseUnit(Number(event.target.value)));
  $("pin").addEventListener("click", togglePin);
  $("previous").addEventListener("click", () => stepUnit(-1));
  $("following").addEventListener("click", () => stepUnit(1));
  new ResizeObserver(() => { layOut(); draw(); }).observe(textBox);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    makeColors();
    show();
  });
}

// Returns a position where the gradient path has its full length.
const startOf = ({ pieces }) => Math.min(pieces.length - 2, 2 * data.window);

async function start() {
  data = await unpackHeader();
  const pageText = await PageText.of(data);
  $("about").textContent = aboutOf(data.source);
  document.querySelectorAll(".unit").forEach((e) => {
    e.textContent = data.unit;
  });
  $("next").classList.toggle("words", data.unit === "word");
  layer = data.layers.length - 1;
  const names = data.layers[layer].signals.map((s) => s.name);
  signalName = names.includes("c") ? "c" : names[0];
  order = data.features.length ? 1 : 0;
  $("layer").append(...data.layers.map((_, k) => new Option(k + 1, k)));
  $("signal").append(...data.layers[layer].signals.map(
    (s) => new Option(`${s.name}, ${s.meaning}`, s.name)));
  $("order").append(new Option("number", 0),
    ...data.features.map((f, k) => new Option(f.name, k + 1)),
    ...data.constant.map((name) => {
      const option = new Option(`${name} (the same throughout)`, "");
      option.disabled = true;
      return option;
    }));
  chosenText = pageText, chosenCursor = startOf(pageText);
  await choose(true);
  listen();
  listenToTyping(pageText);
  setBusy(false);
  listenToFinder();
  textBox.focus({ preventScroll: true });
}

begin(start);
