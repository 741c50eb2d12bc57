"use strict";
// What the explorer and the page that writes show: the likeliest tokens, a
// square for each unit, colors.

const SHADES = 64;  // steps from the page's color to the strongest
const SQUARE = 14;  // pixels of a unit in the picture of all
const LISTED = 8;  // likeliest tokens
const SLICE = 12;  // ms of a frame in which the model computes, at least
const LONGEST_SLICE = 30;

const percent = (p) =>
  `${(100 * p).toFixed(p < 0.0095 ? 2 : p < 0.0995 ? 1 : 0)} %`;
const quoted = (symbol) => `‘${visibleSymbol(symbol)}’`;

// Returns colors from the page's to another one: [{ fill, ink }].
function shades(name) {
  const [from, to] = ["page", name].map(channels);
  return Array.from({ length: SHADES + 1 },
    (_, k) => shade(from, to, k / SHADES));
}

// Returns the index in `shades` of the color at a share of the way, in [0, 1].
const shadeOf = (share) => Math.round(SHADES * Math.max(0, Math.min(1, share)));

function color(span, { fill, ink }) {
  span.style.background = fill;
  span.style.color = ink;
}

// Returns the element of a token, which goes into an element of class text.
function spanOf(text) {
  const span = document.createElement("span");
  span.textContent = text;
  if (text.startsWith("\n")) span.className = "break";
  return span;
}

// Fills a list: rows has the symbol, the class, the figure, the probability of
// being drawn and the model's own probability of each token.
function fillList(list, rows) {
  while (list.children.length > rows.length) list.lastChild.remove();
  while (list.children.length < rows.length) {
    const item = document.createElement("li");
    item.append(...["b", "i", "span"].map(
      (tag) => document.createElement(tag)));
    list.append(item);
  }
  rows.forEach(([symbol, kind, text, drawn, own], k) => {
    const item = list.children[k], [name, bar, figure] = item.children;
    item.className = kind;
    name.textContent = visibleSymbol(symbol);
    bar.style.setProperty("--drawn", drawn);
    bar.style.setProperty("--own", own);
    figure.textContent = text;
  });
}

// Fills a list with the likeliest tokens, and the actual one if it is none of
// them. own has the model's probability of each token, and drawn that at the
// chosen temperature and top-p.
function showProbabilities(list, symbols, own, drawn, actual) {
  const tokens = largestOf(own, LISTED);
  if (actual !== undefined && actual >= 0 && !tokens.includes(actual)) {
    tokens.push(actual);
  }
  fillList(list, tokens.map((token) => {
    const p = drawn[token];
    const kind = token === actual ? "actual" : p ? "" : "left-out";
    return [symbols[token], kind, p ? percent(p) : "–", p, own[token]];
  }));
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

// Draws a square of each color, with a thicker edge around the chosen one.
function drawSquares(canvas, fills, chosen, ink, border) {
  const width = canvas.parentElement.clientWidth;
  const perRow = Math.max(1, Math.floor(width / SQUARE));
  resize(canvas, width, Math.ceil(fills.length / perRow) * SQUARE);
  const context = clear(canvas);
  fills.forEach((fill, k) => {
    const x = k % perRow * SQUARE, y = Math.floor(k / perRow) * SQUARE;
    context.fillStyle = fill;
    context.fillRect(x + 1, y + 1, SQUARE - 2, SQUARE - 2);
    context.strokeStyle = k === chosen ? ink : border;
    context.lineWidth = k === chosen ? 2 : 1;
    context.strokeRect(x + 1, y + 1, SQUARE - 2, SQUARE - 2);
  });
}

// Returns the number of the square under a pointer; −1 right of the last one.
function squareAt({ target, offsetX, offsetY }) {
  const perRow = Math.max(1, Math.floor(target.clientWidth / SQUARE));
  const column = Math.floor(offsetX / SQUARE);
  return column < perRow ? Math.floor(offsetY / SQUARE) * perRow + column : -1;
}
