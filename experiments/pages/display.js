"use strict";
// What the explorer shows at the cursor: the text, all units, the probabilities
// of the next token, the gradient's path. The state (unit, cursor, levels …) is
// declared in explore.js, `found` in find.js.
const TABLE_STEPS = [0, 1, 2, 4, 8, 16, 32, 64];  // back, in the table
const DECADES = 4;  // powers of ten that the bars under the text span
const PATH_DASHES = [[], [5, 3], [2, 3], [9, 3, 2, 3]];  // of four arrays
const NAME_HEIGHT = 12;  // pixels

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
  // Zoom may change the ratio of pixels and leave the box as it was.
  resize(textCanvas, textBox.clientWidth, textBox.clientHeight);
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
  const fillOf = (u) =>
    palettes[signal.signed][levels[u * pieces.length + cursor]].fill;
  drawSquares($("units"), ranks.map(fillOf), ranks.indexOf(unit), ink, border);
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
  const ends = paths.map((path, k) => {
    const color = [accent, purple, ink, soft][k % 4];
    context.strokeStyle = color;
    context.lineWidth = 2;
    context.setLineDash(PATH_DASHES[k % 4]);
    context.beginPath();
    for (let back = 0; back < data.window; back++) {
      const v = path.norm(cursor, back);
      if (v > 0) context.lineTo(x(back), y(Math.max(v, 10 ** low)));
    }
    context.stroke();
    context.setLineDash([]);
    // At the cursor itself only h has a gradient: c acts a step later.
    const v = path.norm(cursor, 0) || path.norm(cursor, 1);
    return { color, name: path.name, at: y(v) };  // at ∞ if v is 0
  });
  let free = 0;  // where the next name may be
  ends.sort((one, other) => one.at - other.at);
  for (const { color, name, at } of ends.filter((end) => end.at < Infinity)) {
    free = Math.max(free, at);
    context.fillStyle = color;
    context.fillText(name, width - 14, free);
    free += NAME_HEIGHT;
  }
}

function showNext() {
  const actual = tokens[cursor + 1];  // undefined at the end
  const rows = text.likeliest(cursor).map(([token, p]) =>
    [token, token === actual ? text.probability(cursor) : p]);
  if (actual !== undefined && !rows.some(([token]) => token === actual)) {
    rows.push([actual, text.probability(cursor)]);
  }
  fillList($("next"), rows.map(([token, p]) => [data.symbols[token],
    token === actual ? "actual" : "", `${(100 * p).toFixed(2)} %`, p, p]));
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
