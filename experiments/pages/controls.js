"use strict";
// What the buttons, the form and the keys of the first half of writer.html do.
// units.js has the buttons and menus of the units.

function listenToControls(writing) {
  const toggle = () => writing.running ? writing.pause() : writing.write();
  const again = () => {
    if (writing.restart()) writing.write();
  };
  const move = (step) => writing.moveTo(
    (writing.cursor ?? writing.track.length - 1) + step);
  const keys = {
    " ": toggle, r: again, ArrowLeft: () => move(-1),
    ArrowRight: () => move(1), ArrowUp: () => writing.moveLine(-1),
    ArrowDown: () => writing.moveLine(1), Home: () => writing.moveTo(0),
    End: () => writing.moveTo(writing.track.length - 1),
    n: () => writing.units.step(1), p: () => writing.units.step(-1),
    s: () => writing.units.cycle("signal"),
    l: () => writing.units.cycle("layer"),
  };
  writing.box.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (!keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  });
  writing.box.addEventListener("click", (event) => {
    // The first span is of the oldest token that the track has not dropped.
    const k = writing.spans.indexOf(event.target);
    if (k >= 0) writing.moveTo(writing.track.dropped + k);
  });
  $("play").addEventListener("click", toggle);
  $("again").addEventListener("click", again);
  $("newSeed").addEventListener("click", () => {
    $("seed").value = Math.floor(Math.random() * 10000);
    again();
  });
  // A text that is paused stays so: a click on "Write" also ends this change.
  for (const id of ["prompt", "seed"]) {
    $(id).addEventListener("change", () => writing.restart());
  }
  for (const id of ["temperature", "topP", "speed"]) {
    $(id).addEventListener("input", () => writing.showSettings());
  }
  $("settings").addEventListener("submit", (event) => event.preventDefault());
}
