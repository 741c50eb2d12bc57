"use strict";
// The texts that the explorer shows: the page's own, whose arrays are in the
// page, and one that is typed, which the model in the page reads. Both have
//
//   pieces, tokens     the text that each token adds; the tokens
//   signalOf(layer, name)  a signal: its header, and its levels [H, N]
//   pathsOf(layer)     for each field of the state: name, low, high, norm
//   likeliest(t)       the likeliest next tokens: [token, probability]
//   probability(t)     of the next token that the text has
//   follow(t)          null if the norms at the token t are there or on their way;
//                      else a promise of them: whether t is still the last one

const CACHED = 8;  // unpacked arrays in memory
const LONGEST = 2000;  // tokens of a typed text
const MOST_BYTES = 192 * 2 ** 20;  // of its states and gates
const LISTED = 10;  // likeliest tokens
const SLICE = 12;  // ms of a frame in which the model computes

const nextFrame = () => new Promise(requestAnimationFrame);

class PageText {
  static async of(data) {
    const text = new PageText();
    const { next } = data;
    text.data = data, text.pieces = data.pieces, text.cache = new Map();
    text.tokens = new Uint32Array(await unpack("blob" + data.tokens));
    text.count = next.count;
    text.top = new Uint32Array(await unpack("blob" + next.tokens));
    text.shares = new Uint16Array(await unpack("blob" + next.probabilities));
    text.actual = new Float32Array(await unpack("blob" + next.actual));
    return text;
  }

  async bytesOf(blob) {
    const { cache } = this;
    const buffer = cache.get(blob) || await unpack("blob" + blob);
    cache.delete(blob);
    cache.set(blob, buffer);  // as the most recently used
    if (cache.size > CACHED) cache.delete(cache.keys().next().value);
    return new Uint8Array(buffer);
  }

  async signalOf(layer, name) {
    const header = headerOf(this.data, layer, name);
    return { ...header, levels: await this.bytesOf(header.blob) };
  }

  pathsOf(layer) {
    const { window } = this.data;
    return Promise.all(this.data.layers[layer].paths.map(
      async ({ name, low, high, blob }) => {
        const bytes = await this.bytesOf(blob);
        const norm = (at, back) => {
          const q = bytes[at * window + back];
          return q === 0 ? 0 : 10 ** (low + (q - 1) / 254 * (high - low));
        };
        return { name, low, high, norm };
      }));
  }

  likeliest(at) {
    return Array.from({ length: this.count }, (_, k) => k + at * this.count)
      .map((k) => [this.top[k], this.shares[k] / 65535]);
  }

  probability(at) {
    return this.actual[at];
  }

  follow() {
    return null;
  }
}

class TypedText {
  // items: of the text, { token, piece }, not empty.
  constructor(data, model, items) {
    const H = model.hiddenSize, names = model.cell.gates;
    Object.assign(this, { data, model });
    this.pieces = items.map(({ piece }) => piece);
    this.tokens = items.map(({ token }) => token);
    this.gatesSize = names.length * H;
    this.states = new Float64Array(items.length * model.stateSize);
    this.gates = new Float64Array(
      items.length * model.layers.length * this.gatesSize);
    this.top = [];  // of each position, [token, probability]
    this.actual = [];
    this.path = null;  // the gradients of the token last asked for
  }

  // Returns how many tokens a typed text of the model may have.
  static room(model) {
    const H = model.hiddenSize, gates = model.cell.gates.length;
    const numbers = model.stateSize + model.layers.length * gates * H;
    return Math.min(LONGEST, Math.floor(MOST_BYTES / 8 / numbers));
  }

  // Runs the model, some steps in each frame, while `isCurrent()`. Returns
  // whether the text was read.
  async read(isCurrent) {
    const { model, states, tokens } = this, size = model.stateSize;
    const state = model.zeroState(), y = new Float64Array(model.bias.length);
    const p = new Float64Array(y.length);
    const layers = model.layers.map((_, k) => k);
    let start = performance.now();
    for (let t = 0; t < tokens.length; t++) {
      const gates = this.gatesSize
        ? layers.map((layer) => this.gatesAt(t, layer)) : null;
      model.step(state, tokens[t], gates);
      states.set(state.all, t * size);
      model.logits(state, y);
      softmax(y, 1, p);
      this.top.push(largestOf(p, LISTED).map((token) => [token, p[token]]));
      if (t + 1 < tokens.length) this.actual.push(p[tokens[t + 1]]);
      if (performance.now() - start < SLICE) continue;
      await nextFrame();
      if (!isCurrent()) return false;
      start = performance.now();
    }
    return true;
  }

  // Returns the state after the token t, views; the zero state before the first.
  stateAt(t) {
    const { model } = this, size = model.stateSize;
    if (t < 0) return model.zeroState();
    return model.viewsOf(this.states.subarray(t * size, (t + 1) * size));
  }

  gatesAt(t, layer) {
    const at = (t * this.model.layers.length + layer) * this.gatesSize;
    return this.gates.subarray(at, at + this.gatesSize);
  }

  async signalOf(layer, name) {
    const header = headerOf(this.data, layer, name), { model } = this;
    const H = model.hiddenSize, N = this.tokens.length;
    const gate = model.cell.gates.indexOf(name);
    const isState = model.cell.state.includes(name);
    const levels = new Uint8Array(H * N), scale = new Array(H).fill(1);
    const values = this.tokens.map((_, t) => isState
      ? this.stateAt(t).layers[layer][name]
      : this.gatesAt(t, layer).subarray(gate * H, (gate + 1) * H));
    for (let u = 0; u < H; u++) {
      if (header.signed) {
        scale[u] = Math.max(...values.map((v) => Math.abs(v[u])));
      }
      for (let t = 0; t < N; t++) {
        levels[u * N + t] = header.signed
          ? 128 + Math.round(127 * values[t][u] / (scale[u] || 1))
          : Math.round(255 * values[t][u]);
      }
    }
    return { ...header, scale, levels };
  }

  async pathsOf(layer) {
    return this.model.cell.state.map((name) => {
      const norms = () => this.path?.norms[layer][name] || [];
      const logs = () => [...norms()].filter((v) => v > 0).map(Math.log10);
      return {
        name,
        get high() { return logs().length ? Math.max(...logs()) : 0; },
        get low() {
          return Math.max(Math.min(...logs(), this.high - 1), this.high - 12);
        },
        norm: (at, back) => at === this.path?.at ? norms()[back] : 0,
      };
    });
  }

  likeliest(at) {
    return this.top[at];
  }

  probability(at) {
    return this.actual[at];
  }

  follow(at) {
    if (this.path?.at === at || at + 1 === this.tokens.length) return null;
    this.path = new GradientPath(this.model, this.data.model.cell, this, at,
      this.tokens[at + 1], this.data.window);
    return this.finish(this.path);
  }

  async finish(path) {
    let start = performance.now();
    while (path.advance()) {
      if (performance.now() - start < SLICE) continue;
      await nextFrame();
      if (this.path !== path) return false;
      start = performance.now();
    }
    return true;
  }
}

// Returns what the page's header says of a signal; of the first if there is none
// of that name.
function headerOf(data, layer, name) {
  const { signals } = data.layers[layer];
  return signals.find((signal) => signal.name === name) || signals[0];
}
