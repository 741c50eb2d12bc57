"use strict";
// The first half of writer.html: the model writes, and a unit colors the text.

const SPEEDS = [1, 2, 5, 10, 20, 50, 150, 500, Infinity];  // tokens a second
const LIST_EVERY = 80;  // ms between two lists of the next token, at least

class Writing {
  // tokens: the tokenizer, of tokens.js; `track.tokens` are those written.
  constructor(data, model, tokens) {
    Object.assign(this, { data, model, tokens });
    this.track = new Track(model, data.start);
    this.box = $("text");
    this.spans = [];  // of the tokens that are kept
    // Probabilities of the next token: the model's own, and those at the chosen
    // temperature and top-p, with which it is drawn.
    this.own = new Float64Array(data.symbols.length);
    this.drawn = new Float64Array(data.symbols.length);
    this.run = null;  // an object that stands for the loop that writes, if any
    this.pending = null;  // the next token, once it is decided
  }

  get running() {
    return this.run !== null;
  }

  // Reads the form: { temperature, topP, speed, seed }.
  get settings() {
    const [temperature, topP, speed, seed] = ["temperature", "topP", "speed",
      "seed"].map((id) => Number($(id).value));
    return { temperature, topP, speed: SPEEDS[speed], seed };
  }

  restart() {
    this.track.clear();
    this.spans = [];
    this.newLine("");
    this.box.replaceChildren(this.line);
    this.random = makeRandom(Math.floor(this.settings.seed) || 0);
    this.spell = this.tokens.spell();
    const prompt = this.tokens.encode($("prompt").value);
    this.given = prompt.map((item) => item.token);
    this.cursor = null;
    this.uniform = this.random();
    const bad = prompt.find(({ token }) => token < 0
      || this.tokens.unknown.includes(token));
    $("prompt").ariaInvalid = bad ? "true" : "false";
    if (bad) {
      this.given = [];
      const piece = $("prompt").value.slice(bad.from, bad.to);
      this.refuse(`The model does not know ${quoted(piece)} of the prompt.`);
      return false;
    }
    this.decide();
    this.show();
    return true;
  }

  refuse(message) {
    this.pause();
    this.pending = null;
    this.show();
    $("status").textContent = message;
    $("next").replaceChildren();
  }

  // Decides the next token: of the prompt, or drawn. The number `uniform` is
  // renewed only once a drawn token is written, so that after a change of the
  // settings the same number decides.
  decide() {
    const { temperature, topP } = this.settings;
    softmax(this.track.y, temperature, this.drawn, this.tokens.unknown);
    keepTopP(this.drawn, topP);
    this.pending = this.given.length ? this.given[0]
      : drawFrom(this.drawn, this.uniform);
  }

  // Writes the pending token, and decides the next one.
  advance() {
    const token = this.pending, given = this.given.length > 0;
    if (given) this.given.shift();
    else this.uniform = this.random();
    this.track.push(token);
    this.append(this.spell(token), given);
    // A full track forgets its oldest tokens; their elements go as well.
    for (let k = this.track.drop(); k > 0; k--) {
      const span = this.spans.shift(), line = span.parentElement;
      span.remove();
      if (!line.querySelector("span")) line.remove();
    }
    this.decide();
  }

  // Adds the text of a token. Each line is an element of its own, so that the
  // browser only lays out the last line anew.
  append(text, given) {
    const isBreak = text.startsWith("\n"), span = spanOf(isBreak ? "\n" : text);
    span.classList.toggle("given", given);
    this.line.append(span);
    this.spans.push(span);
    this.units.color(span, this.track.length - 1);
    if (!isBreak) return;
    this.newLine(text.slice(1));
    this.box.append(this.line);
  }

  newLine(indentation) {
    this.line = document.createElement("div");
    this.line.append(indentation);
  }

  async write() {
    if (this.running || this.pending === null) return;
    const run = this.run = {};
    this.moveTo(null);
    this.box.classList.add("running");
    $("play").textContent = "Pause";
    $("status").textContent = "";
    let due = 0, before = performance.now(), counted = 0, since = before;
    let slice = SLICE;
    for (;;) {
      const now = await nextFrame();
      if (this.run !== run) return;
      const start = performance.now(), { speed } = this.settings;
      const passed = (now - before) / 1000;  // seconds; may be 0
      // The model computes for as long as the browser took to draw the last
      // frame, within limits: writing and drawing share the time.
      slice = Math.max(SLICE, Math.min(LONGEST_SLICE, now - before - slice));
      due = speed === Infinity ? speed
        : Math.min(due + passed * speed, Math.max(1, speed));
      before = now;
      while ((due >= 1 || this.given.length)
        && performance.now() - start < slice) {
        if (!this.given.length) due--;
        this.advance();
        counted++;
      }
      this.follow();
      this.show(true);
      if (now - since > 500) {
        const rate = counted / (now - since) * 1000;
        $("rate").textContent = `${count(Math.round(rate))} a second`;
        counted = 0, since = now;
      }
    }
  }

  pause() {
    this.run = null;
    this.box.classList.remove("running");
    $("play").textContent = "Write";
    if (this.pending !== null) this.show();
  }

  // Scrolls to the end, unless somebody reads further up.
  follow() {
    const below = this.box.scrollHeight - this.box.scrollTop
      - this.box.clientHeight;
    if (below < 200) this.box.scrollTop = this.box.scrollHeight;
  }

  // Shows what the model expects after the token at the cursor, or after the
  // last token; if `seldom`, at most once in LIST_EVERY. After a prompt that was
  // refused, there is no text: it shows the units at the start.
  show(seldom = false) {
    if (this.pending === null) return this.units.showAll(-1);
    const now = performance.now();
    if (seldom && now - (this.shownAt || 0) < LIST_EVERY) return;
    this.shownAt = now;
    const { track, data } = this, t = this.cursor ?? track.length - 1;
    const end = t === track.length - 1;
    const actual = end ? this.pending : track.tokens[t + 1 - track.dropped];
    const y = this.y || (this.y = new Float64Array(data.symbols.length));
    if (end) y.set(track.y);
    else track.logitsAfter(t, y);
    softmax(y, 1, this.own);
    const { temperature, topP } = this.settings;
    const drawn = end ? this.drawn : (this.scratch
      || (this.scratch = new Float64Array(y.length)));
    if (!end) {
      softmax(y, temperature, drawn, this.tokens.unknown);
      keepTopP(drawn, topP);
    }
    showProbabilities($("next"), data.symbols, this.own, drawn, actual);
    this.units.showAll(t);
    if (!this.running) this.describe(t, actual);
  }

  describe(t, actual) {
    const { track, data } = this;
    if (t < track.dropped) {
      $("status").textContent = "Nothing is written yet.";
      return;
    }
    const symbol = data.symbols[track.tokens[t - track.dropped]];
    $("status").textContent = `${quoted(symbol)}, ${data.unit} `
      + `${count(t + 1)} of ${count(track.length)}. ${this.units.describe(t)} `
      + `Next: ${quoted(data.symbols[actual])}, which the model gives `
      + `${percent(this.own[actual])}.`;
  }

  spanAt(t) {
    return this.spans[t - this.track.dropped];
  }

  // Sets the cursor on a token, or on the end of the text: null.
  moveTo(t) {
    if (this.cursor !== null) {
      this.spanAt(this.cursor)?.classList.remove("cursor");
    }
    this.cursor = null;
    if (t === null || !this.track.tokens.length) return;
    this.pause();
    const { dropped, length } = this.track;
    this.cursor = Math.max(dropped, Math.min(length - 1, t));
    const span = this.spanAt(this.cursor);
    span.classList.add("cursor");
    span.scrollIntoView({ block: "nearest" });
    this.show();
  }

  // Moves the cursor to the nearest token of the line above or below.
  moveLine(step) {
    const t = this.cursor ?? this.track.length - 1, from = this.spanAt(t);
    if (!from) return;
    let best = t, top = null;
    for (let k = t + step, span; (span = this.spanAt(k)); k += step) {
      if (span.offsetTop === from.offsetTop) continue;
      top ??= span.offsetTop;
      if (span.offsetTop !== top) break;
      const off = (k) => Math.abs(this.spanAt(k).offsetLeft - from.offsetLeft);
      if (best === t || off(k) < off(best)) best = k;
    }
    this.moveTo(best);
  }

  showSettings() {
    const { temperature, topP, speed } = this.settings;
    $("temperatureShown").textContent = temperature.toFixed(2);
    $("topPShown").textContent = topP.toFixed(2);
    $("speedShown").textContent = speed === Infinity ? "all it can" : speed;
    if (this.pending === null) return;
    this.decide();
    if (!this.running) this.show();
  }
}
