"use strict";
// Starts both halves of writer.html: in the first the model writes, in the
// second it scores a text.

let data, model, writing, reading;

async function start() {
  data = await unpackHeader();
  $("about").textContent = data.about;
  $("cost").textContent = data.cost;
  // data.unit is what a token is, "character" or "word"; not a unit of a layer.
  for (const e of document.querySelectorAll(".unit")) e.textContent = data.unit;
  for (const id of ["next", "expected"]) {
    $(id).classList.toggle("words", data.unit === "word");
  }
  const first = data.symbols[data.start];
  $("prompt").placeholder = "Empty: it starts after "
    + (first === "\n" ? "a line break" : quoted(first));
  // speed is an index of SPEEDS in writing.js.
  const values = { temperature: 0.8, topP: 1, speed: 4, seed: 1 };
  for (const [id, value] of Object.entries(values)) $(id).value = value;
  await nextFrame();
  model = await Model.unpack(data.model);
  const tokens = data.words ? new WordTokens(data.symbols, data.words)
    : new CharTokens(data.symbols);
  writing = new Writing(data, model, tokens);
  writing.units = new Units(data, model, writing);
  listenToControls(writing);
  writing.showSettings();
  reading = new Reading(data, model, tokens);
  writing.restart();
  const whole = reading.read();  // a promise: the whole text is read
  new ResizeObserver(() => writing.show()).observe($("units").parentElement);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    writing.units.makeColors();
    writing.units.change();
    reading.makeColors();
    reading.showMarked();
  });
  await whole;
  document.querySelector("main").setAttribute("aria-busy", "false");
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  if (!still) writing.write();
}

begin(start);
