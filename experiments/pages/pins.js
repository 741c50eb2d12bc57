"use strict";
// The pinned units of the explorer. For each, the line of the cursor is shown
// again, in the colors of the unit's values.
const MOST_PINS = 8;

// {layer, signal, unit, levels: of each token, from: the pin that it copies}
let pins = [];

const isPinned = (p) => p.layer === layer && p.signal.name === signalName
  && p.unit === unit;

// Pins the unit that the text shows, or removes its pin. Does nothing while
// the values of another signal are being unpacked.
function togglePin() {
  if (document.querySelector("main").getAttribute("aria-busy") === "true") {
    return;
  }
  if (pins.some(isPinned)) return setPins(pins.filter((p) => !isPinned(p)));
  if (pins.length === MOST_PINS) return;
  const n = pieces.length;
  setPins([...pins, { layer, signal, unit,
    levels: levels.slice(unit * n, (unit + 1) * n) }]);
}

// Returns the pins with their values on another text.
function pinsOn(shown) {
  const n = shown.pieces.length;
  return Promise.all(pins.map(async (pin) => {
    const signal = await shown.signalOf(pin.layer, pin.signal.name);
    return { ...pin, signal, from: pin,
      levels: signal.levels.slice(pin.unit * n, (pin.unit + 1) * n) };
  }));
}

function setPins(chosen) {
  pins = chosen;
  $("pins").replaceChildren(...pins.map(pinItem));
  showPinButton();
  draw();
}

function showPinButton() {
  const pinned = pins.some(isPinned);
  $("pin").textContent = pinned ? "Unpin" : "Pin";
  $("pin").setAttribute("aria-label", `${$("pin").textContent} this unit`);
  $("pin").disabled = !pinned && pins.length === MOST_PINS;
  $("pin").title = $("pin").disabled ? `There are ${MOST_PINS} already` : "";
}

// Returns the element of a pin: its name, which shows the unit in the text, a
// button to remove it, and the line.
function pinItem(pin) {
  const item = document.createElement("li");
  const [name, remove] = ["button", "button"].map((tag) =>
    item.appendChild(document.createElement(tag)));
  name.type = remove.type = "button";
  name.textContent = `unit ${pin.unit} of ${pin.signal.name}, `
    + `layer ${pin.layer + 1}`;
  name.addEventListener("click", () => {
    layer = pin.layer, signalName = pin.signal.name;
    choose(false, pin.unit);
    textBox.focus({ preventScroll: true });
  });
  remove.textContent = "×";
  remove.setAttribute("aria-label", `Unpin ${name.textContent}`);
  remove.addEventListener("click", () => {
    setPins(pins.filter((other) => other !== pin));
    (document.querySelector("#pins button") ?? $("pin")).focus();
  });
  item.appendChild(document.createElement("span"));
  const canvas = item.appendChild(document.createElement("canvas"));
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `The line, by ${name.textContent}`);
  canvas.addEventListener("click", (event) => {
    anchor = null;
    moveTo(tokenAt(lineOf[cursor],
      Math.floor((event.offsetX - 4) / charWidth)));
    textBox.focus({ preventScroll: true });
  });
  return item;
}

function drawPins() {
  const line = lineOf[cursor], width = textBox.clientWidth;
  pins.forEach(({ levels, signal, unit }, k) => {
    const item = $("pins").children[k], canvas = item.lastElementChild;
    item.querySelector("span").textContent =
      round(valueOfLevel(signal, unit, levels[cursor]));
    resize(canvas, width, CELL + 4);
    const context = clear(canvas);
    for (let t = starts[line]; t < endOf(line); t++) {
      drawToken(context, t, 2, palettes[signal.signed], levels[t]);
    }
    context.strokeStyle = ink;
    context.lineWidth = 2;
    context.strokeRect(3 + columnOf[cursor] * charWidth, 1,
      widths[cursor] * charWidth + 2, CELL + 2);
  });
}
