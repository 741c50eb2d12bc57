"use strict";
// The units that writer.html shows: one that colors the text, and all at once.

class Units {
  constructor(data, model, writing) {
    Object.assign(this, { data, model, writing });
    this.layer = data.layers.length - 1;
    this.signalName = data.layers[this.layer].at(-1).name;
    this.unit = 0;
    data.follows.forEach((unit, k) => $("follows").append(new Option(
      `${unit.feature}: ${unit.signal} ${unit.unit}, layer ${unit.layer + 1} `
      + `(${unit.measure} ${unit.score.toFixed(2).replace("-", "−")})`, k)));
    $("follows").append(new Option("another one", ""));
    $("layer").append(...data.layers.map((_, k) => new Option(k + 1, k)));
    $("signal").append(...data.layers[0].map(
      (s) => new Option(`${s.name}, ${s.meaning}`, s.name)));
    this.listen();
    this.makeColors();
    if (data.follows.length) this.chooseFollowing(0);
    else this.choose();
  }

  get signal() {
    return this.data.layers[this.layer].find((s) => s.name === this.signalName);
  }

  // Returns where the first unit of the signal is in a state of the model.
  get offset() {
    const { cell, hiddenSize } = this.model, names = cell.state;
    const field = names.indexOf(this.signalName);
    return (this.layer * names.length + field) * hiddenSize;
  }

  makeColors() {
    this.below = shades("negative"), this.above = shades("positive");
    [this.ink, this.line] = ["ink", "line"].map(
      (name) => `rgb(${channels(name)})`);
  }

  // Returns the color of a unit's value, by its share of the unit's largest
  // magnitude.
  colorOf(value, unit) {
    const share = value / (this.signal.scale[unit] || 1);
    return (share < 0 ? this.below : this.above)[shadeOf(Math.abs(share))];
  }

  valueAt(t) {
    return this.writing.track.stateAt(t)[this.offset + this.unit];
  }

  color(span, t) {
    color(span, this.colorOf(this.valueAt(t), this.unit));
  }

  colorAll() {
    const { track, spans } = this.writing;
    spans.forEach((span, k) => this.color(span, track.dropped + k));
  }

  describe(t) {
    return `Unit ${this.unit} of ${this.signalName} is `
      + `${round(this.valueAt(t))}.`;
  }

  // Draws all units of the layer's signal after the token t, or, if t is −1,
  // after the start token.
  showAll(t) {
    const { track } = this.writing;
    const state = t < track.dropped ? track.startState : track.stateAt(t);
    const fills = this.signal.scale.map(
      (_, u) => this.colorOf(state[this.offset + u], u).fill);
    drawSquares($("units"), fills, this.unit, this.ink, this.line);
  }

  // Shows the chosen unit, in the menus, the legend and the text.
  choose() {
    const { signal, data } = this, units = signal.scale.length;
    this.unit = Math.min(this.unit, units - 1);
    if ($("unit").options.length !== units) {
      $("unit").replaceChildren(
        ...signal.scale.map((_, u) => new Option(u, u)));
    }
    $("layer").value = this.layer, $("signal").value = this.signalName;
    $("unit").value = this.unit;
    const follows = data.follows.findIndex((f) => f.layer === this.layer
      && f.signal === this.signalName && f.unit === this.unit);
    $("follows").value = follows < 0 ? "" : follows;
    const largest = signal.scale[this.unit];
    $("unitTitle").textContent = `Unit ${this.unit} of ${signal.name}, `
      + `${signal.meaning}, layer ${this.layer + 1}`;
    $("low").textContent = round(-largest);
    $("high").textContent = round(largest);
    const stops = [...[...this.below].reverse(), ...this.above]
      .filter((_, k) => k % 8 === 0).map(({ fill }) => fill);
    $("strip").style.background = `linear-gradient(to right, ${stops})`;
    this.colorAll();
  }

  // Chooses the unit that follows a feature best: entry k of data.follows. (The
  // button "following" is another thing: the next unit.)
  chooseFollowing(k) {
    const { layer, signal, unit } = this.data.follows[k];
    this.layer = layer, this.signalName = signal, this.unit = unit;
    this.choose();
  }

  change() {
    this.choose();
    this.writing.show();
  }

  step(by) {
    const unit = this.unit + by;
    if (unit < 0 || unit >= this.signal.scale.length) return;
    this.unit = unit;
    this.change();
  }

  // Selects the next option of a menu, and wraps around.
  cycle(id) {
    const menu = $(id);
    menu.selectedIndex = (menu.selectedIndex + 1) % menu.options.length;
    menu.dispatchEvent(new Event("change"));
  }

  listen() {
    const menus = {
      follows: (value) => value === "" || this.chooseFollowing(Number(value)),
      layer: (value) => { this.layer = Number(value); },
      signal: (value) => { this.signalName = value; },
      unit: (value) => { this.unit = Number(value); },
    };
    for (const [id, choose] of Object.entries(menus)) {
      $(id).addEventListener("change", (event) => {
        choose(event.target.value);
        this.change();
      });
    }
    $("previous").addEventListener("click", () => this.step(-1));
    $("following").addEventListener("click", () => this.step(1));
    $("units").addEventListener("click", (event) => {
      const unit = squareAt(event);
      if (unit >= 0 && unit < this.signal.scale.length) {
        this.step(unit - this.unit);
      }
    });
  }
}
