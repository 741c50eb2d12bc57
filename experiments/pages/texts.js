"use strict";
// The texts that the explorer shows: the page's own, whose arrays are in the
// page, and one that is typed, which the model in the page reads. Both have
//
//   pieces, tokens     the text that each token adds; the tokens
//   signalOf(layer, name)  a signal: its header, and its levels [H, N]
//   pathsOf(layer)     for each field of the state: its name, and the norm of the
//                      gradient at a token and steps back, null where it is not
//                      computed yet; low and high, log₁₀ of the axis's ends
//   likeliest(t)       the likeliest next tokens: [[token, probability]]
//   probability(t)     of the next token that the text has
//   follow(t, show)    starts to compute the norms at the token t, if they are not
//                      there; calls `show` when there are more of them
//   stop()             gives up the norms that `follow` computes

const CACHED = 8;  // unpacked arrays in memory
const LONGEST = 2000;  // tokens of a typed text
const MOST_BYTES = 96 * 2 ** 20;  // of the states and gates of a typed text

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

  follow() {}

  stop() {}
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
    this.nats = [];  // −log p of each token but the first
    this.signals = new Map();  // those asked for, by layer and name
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
      this.top.push(largestOf(p, this.data.next.count).map(
        (token) => [token, p[token]]));
      if (t + 1 < tokens.length) {
        this.nats.push(logSumExp(y) - y[tokens[t + 1]]);
      }
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
    const key = `${layer} ${name}`;
    if (!this.signals.has(key)) {
      this.signals.set(key, this.quantize(headerOf(this.data, layer, name), layer));
    }
    return this.signals.get(key);
  }

  // Returns a signal as the page's text has it. A unit keeps the scale of its
  // colors, except where it is larger in this text.
  quantize(header, layer) {
    const { name, signed } = header, { model } = this;
    const H = model.hiddenSize, N = this.tokens.length;
    const gate = model.cell.gates.indexOf(name) * H;
    const isState = model.cell.state.includes(name);
    const values = this.tokens.map((_, t) => isState
      ? this.stateAt(t).layers[layer][name]
      : this.gatesAt(t, layer).subarray(gate, gate + H));
    const levels = new Uint8Array(H * N), scale = [...header.scale];
    for (let u = 0; u < H; u++) {
      if (signed) {
        for (const v of values) scale[u] = Math.max(scale[u], Math.abs(v[u]));
      }
      for (let t = 0; t < N; t++) {
        levels[u * N + t] = signed
          ? 128 + Math.round(127 * values[t][u] / (scale[u] || 1))
          : Math.round(255 * values[t][u]);
      }
    }
    return { ...header, scale, levels };
  }

  // The axis is that of the page's text, extended if norms here are larger.
  async pathsOf(layer) {
    return this.data.layers[layer].paths.map(({ name, low, high }) => {
      const norms = () => this.path.norms[layer][name];
      const largest = () => this.path ? Math.max(...norms()) : 0;
      return {
        name,
        low,
        get high() {
          return Math.max(high, Math.log10(largest()));
        },
        norm: (at, back) => {
          const { path } = this;
          if (at + 1 === this.tokens.length) return 0;
          if (path?.at !== at) return null;
          return back < path.back || path.back === path.steps ? norms()[back]
            : null;
        },
      };
    });
  }

  likeliest(at) {
    return this.top[at];
  }

  probability(at) {
    return Math.exp(-this.nats[at]);
  }

  follow(at, show) {
    if (this.path?.at === at) return;
    this.stop();
    if (at + 1 === this.tokens.length) return;
    this.path = new GradientPath(this.model, this.data.model.cell, this, at,
      this.tokens[at + 1], this.data.window);
    this.finish(this.path, show);
  }

  stop() {
    this.path = null;
  }

  // Computes the gradients, some steps in each frame, until others are asked for.
  async finish(path, show) {
    let isMore = true;
    while (isMore) {
      const start = performance.now();
      do isMore = path.advance();
      while (isMore && performance.now() - start < SLICE);
      await nextFrame();
      if (this.path !== path) return;
      show();
    }
  }
}

// Returns what the page's header says of a signal; of the first if there is none
// of that name.
function headerOf(data, layer, name) {
  const { signals } = data.layers[layer];
  return signals.find((signal) => signal.name === name) || signals[0];
}
