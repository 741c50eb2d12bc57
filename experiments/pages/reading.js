"use strict";
// The second half of writer.html: a text that somebody types is scored, and
// continued.

const LONGEST_TEXT = 5000;  // characters
const STRONGEST = 8;  // nats of the strongest color
const SURPRISING = Math.log(100);  // nats of a probability of 1 %
// The most suggestions; and of a model of characters, the most tokens of each,
// and the least probability of the first token of each after the first one.
const SUGGESTIONS = 3, LONGEST_SUGGESTION = 24;
const LEAST = 0.02;
const CANDIDATES = 50;  // likeliest words, from which suggestions are taken
// Accents and vowel signs belong to a word, the marks after an emoji do not.
const IN_WORD = /(?![\uFE00-\uFE0F])[\p{L}\p{Mn}\p{Mc}\p{N}'’-]/u;
const WORD_AT_END = new RegExp(`(?:${IN_WORD.source})*$`, "u");

class Reading {
  constructor(data, model, tokens) {
    Object.assign(this, { data, model, tokens });
    this.track = new Track(model, data.start);
    this.items = [];  // of the text: { token, from, to }
    this.known = [];  // those of them that the model knows, as in the track
    this.scratch = model.zeroState();
    this.y = new Float64Array(data.symbols.length);
    this.p = new Float64Array(data.symbols.length);
    this.suggestions = [];
    this.makeColors();
    const own = $("own");
    own.maxLength = Math.min(LONGEST_TEXT, this.track.room - 1);
    own.value = data.excerpt;
    own.addEventListener("input", () => this.read());
    own.addEventListener("keydown", (event) => {
      const modified = event.shiftKey || event.ctrlKey || event.altKey
        || event.metaKey;
      if (event.key !== "ArrowRight" || modified || !this.atEnd) return;
      if (event.isComposing) return;  // the key moves within the composition
      if (this.suggestions.length) this.take(this.suggestions[0]);
    });
    document.addEventListener("selectionchange", () => {
      if (document.activeElement === own) this.showCaret();
    });
  }

  makeColors() {
    this.colors = shades("accent");
  }

  get atEnd() {
    const { selectionStart, selectionEnd, value } = $("own");
    return selectionStart === value.length && selectionEnd === value.length;
  }

  // Reads the text from where it has changed, some of it in each frame.
  async read() {
    // Stands for this call: a later one replaces it, and this one gives up.
    const reading = this.reading = {}, text = $("own").value;
    this.text = text;
    this.suggest([]);
    const items = this.tokens.encode(text);
    let same = 0;
    while (same < Math.min(items.length, this.items.length)
      && items[same].token === this.items[same].token
      && items[same].to === this.items[same].to) same++;
    this.items = items;
    this.known = items.filter((item) => item.token >= 0);
    const before = items.slice(0, same).filter(({ token }) => token >= 0);
    this.track.truncate(before.length);
    let start = performance.now();
    while (this.track.length < this.known.length) {
      this.track.push(this.known[this.track.length].token);
      if (performance.now() - start < SLICE) continue;
      await nextFrame();
      if (this.reading !== reading) return;
      start = performance.now();
    }
    this.showMarked();
    this.showScore();
    this.showCaret();
    await this.findSuggestions(reading);
  }

  // Shows the text, each token with the color of its −log p.
  showMarked() {
    if (this.track.length < this.known.length) return;  // not read yet
    const pieces = [];
    let end = 0, n = 0;
    for (const { token, from, to } of this.items) {
      if (from > end) pieces.push(this.text.slice(end, from));
      const span = spanOf(this.text.slice(from, to));
      if (token < 0) span.classList.add("unknown");
      else this.mark(span, this.track.nats[n++], token);
      pieces.push(span);
      end = to;
    }
    pieces.push(this.text.slice(end));
    this.ghost = document.createElement("span");
    this.ghost.className = "ghost";
    this.ghost.textContent = this.suggestions[0] || "";
    // The line may break before the suggestion: the text box, which lacks it,
    // then breaks the lines at the same places. The zero-width space \u200b makes
    // room for the line after a line break at the end.
    $("marked").replaceChildren(...pieces, document.createElement("wbr"),
      this.ghost, "\u200b");
  }

  mark(span, nats, token) {
    color(span, this.colors[shadeOf(nats / STRONGEST)]);
    span.classList.toggle("surprising", nats > SURPRISING);
    if (this.tokens.unknown.includes(token)) span.classList.add("unknown");
  }

  showScore() {
    const { nats } = this.track, { unit, symbols } = this.data;
    const unknown = this.items.length - this.known.length;
    const total = nats.reduce((sum, v) => sum + v, 0);
    let text = "No text yet.";
    if (nats.length) {
      const mean = total / nats.length;
      text = `${count(nats.length)} ${unit}${nats.length > 1 ? "s" : ""}, `
        + `${mean.toFixed(3)} nats each `
        + `(${(mean / Math.LN2).toFixed(3)} bits); `
        + `a guess among all ${count(symbols.length)} would cost `
        + `${Math.log(symbols.length).toFixed(2)}.`;
    }
    if (unknown) {
      text += ` ${count(unknown)} outside the vocabulary, outlined, not read.`;
    }
    $("score").textContent = text;
    const most = largestOf(nats, 3).filter((n) => nats[n] > SURPRISING);
    $("mostTitle").hidden = !most.length;
    $("most").replaceChildren(...most.map((n) => this.button(
      `${this.contextOf(n)}  ${nats[n].toFixed(1)} nats`,
      () => this.setCaret(this.known[n].from))));
  }

  button(text, click) {
    const button = document.createElement("button");
    button.type = "button", button.textContent = text;
    button.addEventListener("click", click);
    return button;
  }

  // Returns a token in brackets, in the word that it belongs to.
  contextOf(n) {
    const { from, to } = this.known[n];
    const { text } = this, token = visibleSymbol(text.slice(from, to));
    // Half of a surrogate pair at an end is left out.
    const [before] = /[^\s\p{Cs}]* ?$/u.exec(
      text.slice(Math.max(0, from - 16), from));
    const [after] = /^[^\s\p{Cs}]*/u.exec(text.slice(to, to + 12));
    return `${before}[${token}]${after}`;
  }

  setCaret(at) {
    $("own").focus();
    $("own").setSelectionRange(at, at);
    this.showCaret();
  }

  // Shows what the model expects at the caret, and what stands there.
  showCaret() {
    const at = $("own").selectionEnd, { data, track } = this;
    const n = this.known.filter((item) => item.to <= at).length;
    // Not read yet: the tokens before the caret, or the one that stands there.
    if (Math.min(n + 1, this.known.length) > track.length) return;
    const actual = this.known[n]?.token;
    track.logitsAfter(n - 1, this.y);
    softmax(this.y, 1, this.p);
    const before = n ? `After ${quoted(data.symbols[track.tokens[n - 1]])}`
      : "At the start";
    $("caret").textContent = actual === undefined
      ? `${before}, the model expects:`
      : `${before} stands ${quoted(data.symbols[actual])}: `
        + `${percent(this.p[actual])}, ${track.nats[n].toFixed(2)} nats.`;
    showProbabilities($("expected"), data.symbols, this.p, this.p, actual);
  }

  // Finds the likeliest beginnings of what follows, each to the end of a word.
  async findSuggestions(reading) {
    // Waits for a pause in the typing, in ms.
    await new Promise((done) => setTimeout(done, 120));
    if (this.reading !== reading || !this.known.length) return;
    const found = this.data.unit === "word" ? this.completeWord()
      : await this.continueWord(reading);
    if (this.reading === reading) this.suggest(found);
  }

  async continueWord(reading) {
    const { track, model, scratch, y, p } = this, found = [];
    softmax(track.y, 1, p);
    // Chosen before the first frame: showing the caret writes into p too.
    const firsts = largestOf(p, SUGGESTIONS)
      .filter((token, k) => k === 0 || p[token] >= LEAST);
    for (const first of firsts) {
      scratch.all.set(track.state.all);
      let text = "", token = first;
      for (let k = 0; k < LONGEST_SUGGESTION; k++) {
        const symbol = this.data.symbols[token];
        const inWord = IN_WORD.test(symbol);
        if (/[\p{L}\p{N}]/u.test(text) && !inWord) break;
        text += symbol;
        model.step(scratch, token);
        model.logits(scratch, y);
        [token] = largestOf(y, 1);
      }
      found.push(text);
      await nextFrame();
      if (this.reading !== reading) break;
    }
    return found;
  }

  // Completes the last word of the text, or adds one.
  completeWord() {
    const { known, text, track, tokens } = this, last = known.at(-1);
    const typed = text.slice(last.from, last.to);
    const partial = last.to === text.length && /[\p{L}\p{N}]/u.test(typed);
    track.logitsAfter(track.length - (partial ? 2 : 1), this.y);
    softmax(this.y, 1, this.p, tokens.unknown);
    // The piece of a token, without the space by which its symbol may begin.
    const pieceOf = (token) => this.data.symbols[token].replace(/^ /, "");
    const fits = (piece) => piece.startsWith(typed) && piece !== typed;
    const p = partial
      ? this.p.map((v, token) => fits(pieceOf(token)) ? v : 0) : this.p;
    // The last pieces of the text decide as which token the next one is read.
    const end = text.slice((known.at(-3) ?? known[0]).from);
    const length = tokens.encode(end).length + (partial ? 0 : 1);
    // Returns what makes the text end with a token; undefined if nothing does,
    // as for a comma after a space.
    const added = (token) => {
      const piece = pieceOf(token).slice(partial ? typed.length : 0);
      // With an indentation, it reads as this token only once a word follows.
      if (piece.startsWith("\n")) return piece;
      return [piece, " " + piece].find((more) => {
        const items = tokens.encode(end + more);
        return items.length === length && items.at(-1).token === token;
      });
    };
    return largestOf(p, CANDIDATES).filter((token) => p[token]).map(added)
      .filter((more) => more !== undefined).slice(0, SUGGESTIONS);
  }

  suggest(found) {
    this.suggestions = found;
    if (this.ghost) this.ghost.textContent = found[0] || "";
    const word = WORD_AT_END.exec(this.text)[0];
    $("chips").replaceChildren(...found.map((text) => this.button(
      visibleSymbol(word + text).replace(/^␣/, ""), () => this.take(text))));
  }

  take(text) {
    const own = $("own");  // whose maxLength does not bind a script
    if (own.value.length + text.length > own.maxLength) return;
    own.value += text;
    this.setCaret($("own").value.length);
    this.read();
  }
}
