"use strict";
// Finding passages in the text of the explorer: a pattern, those where the unit
// is strongest, and those where the layer is in a similar state. The text, unit
// and cursor are declared in explore.js.
const MOST = 30;  // passages listed
const APART = 12;  // the least distance of two passages in a ranking, in tokens
const BEFORE = 24, AFTER = 24;  // tokens of context shown around a passage

let anchor = null;  // the other end of the selection; null if there is none

// Returns the first and the last token of the selection, or the cursor twice.
function selection() {
  const other = anchor ?? cursor;
  return [Math.min(other, cursor), Math.max(other, cursor)];
}

// Returns the passages that match a pattern: [{first, last}], tokens. A pattern
// between slashes is a regular expression with the flag u, others are text.
// Both ignore the case of letters.
function matches(pattern) {
  if (!pattern) return [];
  const slashes = pattern.match(/^\/(.+)\/$/s);
  const source = slashes ? slashes[1]
    : pattern.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
  const text = pieces.join(""), tokenOf = [];  // of each code unit of the text
  pieces.forEach((piece, t) => {
    for (let k = 0; k < piece.length; k++) tokenOf.push(t);
  });
  return Array.from(text.matchAll(new RegExp(source, "giu")))
    .filter((match) => match[0].length)
    .map((match) => ({ first: tokenOf[match.index],
      last: tokenOf[match.index + match[0].length - 1] }));
}

// Returns the tokens of highest score, the best first: at most MOST, at least
// APART from each other, and with scores above 0.
function best(scores) {
  const byScore = scores.map((_, t) => t).sort((a, b) => scores[b] - scores[a]);
  const chosen = [];
  for (const t of byScore) {
    if (chosen.length === MOST || !(scores[t] > 0)) break;
    if (chosen.every((other) => Math.abs(other - t) >= APART)) chosen.push(t);
  }
  return chosen;
}

// Returns the passages where the chosen unit is largest in magnitude, each with
// its value.
function strongest() {
  const values = pieces.map((_, t) => valueOf(unit, t));
  return best(values.map(Math.abs)).map((t) => ({ first: t, last: t,
    note: round(values[t]) }));
}

// Returns the passages outside of the selection whose state is most similar to
// the mean state of the selection, by the cosine over the units of the signal
// shown. Each unit is divided by its largest magnitude, as for the colors; from
// gates, which are in [0, 1], 0.5 is subtracted instead.
function similar() {
  const [first, last] = selection(), n = pieces.length;
  // Signed levels are 1 to 255, a gate's 0 to 255. `mean` is a sum: a positive
  // factor leaves the cosine as it is.
  const middle = signal.signed ? 128 : 127.5;
  const mean = ranks.map((_, u) => {
    let sum = 0;
    for (let t = first; t <= last; t++) sum += levels[u * n + t] - middle;
    return sum;
  });
  const dot = new Float64Array(n), square = new Float64Array(n);
  mean.forEach((m, u) => {
    for (let t = 0; t < n; t++) {
      const v = levels[u * n + t] - middle;
      dot[t] += m * v;
      square[t] += v * v;
    }
  });
  const norm = Math.hypot(...mean);
  const cosines = pieces.map((_, t) =>
    t >= first && t <= last ? 0 : dot[t] / (norm * Math.sqrt(square[t]) || 1));
  return best(cosines).map((t) => ({ first: t, last: t,
    note: `cosine ${round(cosines[t])}` }));
}

// What the menu offers: how to find, and what to say of the passages.
const FINDERS = {
  pattern: {
    find: () => matches($("pattern").value),
    title: (n) => $("pattern").value
      ? `${count(n)} ${n === 1 ? "passage" : "passages"}` : "",
  },
  strongest: {
    find: strongest,
    title: () => `Where unit ${unit} of ${signal.name} is strongest`,
  },
  similar: {
    find: similar,
    title: () => {
      const [first, last] = selection(), number = last - first + 1;
      const place = number === 1 ? `‘${nameOf(first)}’`
        : `the ${count(number)} selected ${data.unit}s`;
      return `Where ${signal.name} of layer ${layer + 1} is most similar to `
        + `its value at ${place}`;
    },
  },
};

// Returns the element of a list that shows a passage in its context.
function passageItem({ first, last, note }) {
  const item = document.createElement("li");
  const button = item.appendChild(document.createElement("button"));
  const part = (from, to) =>
    pieces.slice(Math.max(0, from), to).map(visibleBreaks).join("");
  const middle = document.createElement("mark");
  middle.textContent = part(first, last + 1);
  button.type = "button";
  button.append(part(first - BEFORE, first), middle,
    part(last + 1, last + 1 + AFTER));
  if (note) {
    item.appendChild(document.createElement("span")).textContent = note;
  }
  button.addEventListener("click", () => {
    anchor = last > first ? first : null;
    moveTo(last);
  });
  return item;
}

const visibleBreaks = (piece) => piece.replaceAll("\n", "↵");

let found = [];  // the passages listed, or all that match a pattern

function find() {
  const finder = FINDERS[$("finder").value];
  $("pattern").parentElement.hidden = $("finder").value !== "pattern";
  try {
    found = finder.find();
  } catch (error) {
    found = [];
    $("foundtitle").textContent = `Not a regular expression: ${error.message}`;
    $("found").replaceChildren();
    draw();
    return;
  }
  const more = found.length - MOST;
  $("foundtitle").textContent = finder.title(found.length)
    + (more > 0 ? `, of which the first ${MOST} are listed` : "");
  $("found").replaceChildren(...found.slice(0, MOST).map(passageItem));
  draw();
}

// Moves to the next passage found after the cursor, or the previous one.
function step(direction) {
  const sorted = found.map((p) => p.last).sort((a, b) => a - b);
  if (!sorted.length) return;
  const target = direction > 0 ? sorted.find((t) => t > cursor) ?? sorted[0]
    : sorted.findLast((t) => t < cursor) ?? sorted.at(-1);
  anchor = null;
  moveTo(target);
}

// Finds again after another choice, such as of a unit or signal, unless the
// passages depend on the pattern alone. The button "refind" always finds.
function refind() {
  if ($("finder").value !== "pattern") find();
}

function listenToFinder() {
  $("finder").addEventListener("change", find);
  $("pattern").addEventListener("input", find);
  $("pattern").addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    step(event.shiftKey ? -1 : 1);
  });
  $("refind").addEventListener("click", find);
}
