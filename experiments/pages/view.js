"use strict";
// What both halves of writer.html show: probabilities, colors, tokens.

const SHADES = 64;  // steps from the page's color to the strongest
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

// Fills a list with the likeliest tokens, and the actual one if it is none of
// them. own has the model's probability of each token, and drawn that at the
// chosen temperature and top-p.
function showProbabilities(list, symbols, own, drawn, actual) {
  const tokens = largestOf(own, LISTED);
  if (actual !== undefined && actual >= 0 && !tokens.includes(actual)) {
    tokens.push(actual);
  }
  while (list.children.length > tokens.length) list.lastChild.remove();
  while (list.children.length < tokens.length) {
    const item = document.createElement("li");
    item.append(...["b", "i", "span"].map(
      (tag) => document.createElement(tag)));
    list.append(item);
  }
  tokens.forEach((token, k) => {
    const item = list.children[k], [name, bar, figure] = item.children;
    const p = drawn[token];
    item.className = token === actual ? "actual" : p ? "" : "left-out";
    name.textContent = visibleSymbol(symbols[token]);
    bar.style.setProperty("--drawn", p);
    bar.style.setProperty("--own", own[token]);
    figure.textContent = p ? percent(p) : "–";
  });
}
