"use strict";
// The explorer: its state, and what is chosen by menus, keys and the pointer.
// layout.js places the tokens of the text, display.js draws and shows them,
// find.js finds passages and has the selection's anchor, pins.js pins units.
const textBox = $("text"), textCanvas = textBox.firstElementChild;
const spacer = textBox.lastElementChild;
// Pixels of a line and of a token's box; the text has a margin of 4 all around.
const LINE = 26, CELL = 18, FONT = "16px ui-monospace, monospace";

// --- State of the page ---

let data;  // the page's header
let text, pieces, tokens;  // text shown; string of each token; numbers
let chosenText, chosenCursor;  // the text to be shown once it is unpacked
// What is chosen. order: 0 for the units' numbers, k for features[k − 1].
let layer = 0, signalName, order = 0, unit = 0, cursor = 0;
let signal, levels;  // the signal shown; its levels, flat [H, N]
let paths;  // of the gradient in the layer
let ranks = [];  // the units in order
let starts;  // the first token of each line
let lineOf, columnOf, widths;  // of each token; the last two in characters
let columns, charWidth;  // columns that fit, and the width of one in pixels
let palettes;  // for signed true and false: each level's fill and ink
let ink, soft, border, accent, purple;  // other colors

const nameOf = (t) => visibleSymbol(data.symbols[tokens[t]]);
const scientific = (v) => v === null ? "…" : v === 0 ? "–"
  : v.toExponential(1).replace("-", "−");

// Returns the value of a signal's unit that is stored as the level q.
const valueOfLevel = ({ signed, scale }, u, q) =>
  signed ? (q - 128) / 127 * scale[u] : q / 255;

const valueOf = (u, at) =>
  valueOfLevel(signal, u, levels[u * pieces.length + at]);

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

// Shows the chosen layer, signal and order, and the unit chosenUnit; or the
// best unit, if `best` is true or the layer has no chosenUnit.
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
  // A pin that was removed while its values were unpacked stays removed.
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

let numBusy = 1;  // tasks under way; at first one, the loading of the page

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
// where the cursor was. A mouse that is dragged selects from where it began.
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
  // In the capture phase, before the listener above: a drag that begins outside
  // of the text must not continue an earlier one.
  document.addEventListener("pointerdown", () => { from = null; }, true);
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
    const u = ranks[squareAt(event)];
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

// Returns a position where the gradient path has its full length, if the text
// is long enough.
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
