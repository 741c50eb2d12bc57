"use strict";
// The colors of the explorer, and where each token of its text stands: variables
// that explore.js declares.

// --- Colors ---

function makeColors() {
  [ink, soft, border, accent, purple] =
    ["ink", "soft", "line", "accent", "open"]
      .map((name) => `rgb(${channels(name)})`);
  const [page, negative, positive, gate] =
    ["page", "negative", "positive", "open"].map(channels);
  palettes = { true: [], false: [] };  // signed values, and those of gates
  for (let q = 0; q < 256; q++) {
    const x = Math.max(-1, (q - 128) / 127);
    palettes.true.push(shade(page, x < 0 ? negative : positive, Math.abs(x)));
    palettes.false.push(shade(page, gate, q / 255));
  }
}

// --- Layout: a line ends at a newline, or at the last blank that fits. Without
// a blank, it ends before the token that does not fit. ---

function layOut() {
  const context = textCanvas.getContext("2d");
  context.font = FONT;
  charWidth = context.measureText("M").width;
  columns = Math.max(8, Math.floor((textBox.clientWidth - 8) / charWidth));
  widths = pieces.map((piece) => piece.startsWith("\n") ? 1
    : Math.min(columns, Array.from(piece).length));
  starts = [0];
  columnOf = new Uint16Array(pieces.length);
  let column = 0, blank = 0;  // blank: the token before which a line may end
  pieces.forEach((piece, t) => {
    if (piece.length > 1 && piece[0] === " ") blank = t;
    // Breaks twice where the token does not fit even after the blank.
    while (column + widths[t] > columns && t > starts.at(-1)) {
      const from = blank > starts.at(-1) ? blank : t;
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
      // A newline token of a word model also has the blanks that follow. Fewer
      // are shown where they would leave no room for the next word.
      column = Math.min(piece.length - 1, columns - Math.max(8, widths[t + 1]));
    }
  });
  lineOf = new Uint32Array(pieces.length);
  starts.forEach((start, line) => lineOf.fill(line, start));
  // The canvas stays in view while the box is scrolled over all lines.
  const below = starts.length * LINE + 8 - textBox.clientHeight;
  spacer.style.height = `${Math.max(0, below)}px`;
}

function endOf(line) {
  return line + 1 < starts.length ? starts[line + 1] : pieces.length;
}

function tokenAt(line, column) {
  let t = starts[line];
  while (t + 1 < endOf(line) && columnOf[t + 1] <= column) t++;
  return t;
}
