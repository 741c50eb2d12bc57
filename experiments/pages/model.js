"use strict";
// The forward pass of a language model, in the letters of lstm_jax/cells:
//
//   e  = E[x]                 of the token x; times √E if the readout is tied
//   h' = cell(h, …, input)    layer by layer; the input of the lowest is e
//   y  = h' W + b             of the top layer: the logits of the next token
//
// A prime marks a value after the step. All sums are in double precision.

const sigmoid = (a) => 1 / (1 + Math.exp(-a));
const LANES = 8;  // outputs that a product sums at a time
const TABLE_ROWS = 1024;  // tokens whose product with W_x is kept

// A matrix in 8 bits, by its outputs: W[k, r] = levels[r, k] scales[r].
class Matrix {
  constructor(levels, scales) {
    this.rows = scales.length;
    this.columns = levels.length / scales.length;
    this.scales = new Float64Array(scales);
    // For products: lane after lane of 8 outputs, as [rows / 8, columns, 8].
    this.weights = new Float32Array(
      Math.ceil(this.rows / LANES) * this.columns * LANES);
    for (let r = 0; r < this.rows; r++) {
      const start = Math.floor(r / LANES) * this.columns * LANES + r % LANES;
      for (let k = 0; k < this.columns; k++) {
        this.weights[start + k * LANES] = levels[r * this.columns + k];
      }
    }
    this.sums = new Float64Array(Math.ceil(this.rows / LANES) * LANES);
  }

  // Writes x W into y.
  multiply(x, y) {
    const { weights, columns, scales, rows, sums } = this;
    for (let r = 0, k = 0; r < sums.length; r += LANES) {
      let s0 = 0, s1 = 0, s2 = 0, s3 = 0, s4 = 0, s5 = 0, s6 = 0, s7 = 0;
      for (let column = 0; column < columns; column++, k += LANES) {
        const v = x[column];
        s0 += weights[k] * v;
        s1 += weights[k + 1] * v;
        s2 += weights[k + 2] * v;
        s3 += weights[k + 3] * v;
        s4 += weights[k + 4] * v;
        s5 += weights[k + 5] * v;
        s6 += weights[k + 6] * v;
        s7 += weights[k + 7] * v;
      }
      sums[r] = s0, sums[r + 1] = s1, sums[r + 2] = s2, sums[r + 3] = s3;
      sums[r + 4] = s4, sums[r + 5] = s5, sums[r + 6] = s6, sums[r + 7] = s7;
    }
    for (let r = 0; r < rows; r++) y[r] = sums[r] * scales[r];
  }

  // Writes the weights of one output, times a factor, into y.
  row(r, factor, y) {
    const start = Math.floor(r / LANES) * this.columns * LANES + r % LANES;
    const scale = this.scales[r] * factor;
    for (let k = 0; k < this.columns; k++) {
      y[k] = this.weights[start + k * LANES] * scale;
    }
  }
}

// N(u) = (u − mean u) / √(var u + ε), in place.
function normalise(u, epsilon = 1e-5) {
  let mean = 0, variance = 0;
  for (const v of u) mean += v / u.length;
  for (const v of u) variance += (v - mean) ** 2 / u.length;
  const scale = 1 / Math.sqrt(variance + epsilon);
  for (let k = 0; k < u.length; k++) u[k] = (u[k] - mean) * scale;
}

// A cell writes the state after a step over the state before it. Its functions
// take the parameters p, the input's part ax of the pre-activations, the
// state's part u (an array to write into), and the state.
const CELLS = {
  rnn: {
    state: ["h"],
    // h' = tanh(x W_x + h W_h + b)
    recur(p, ax, u, { h }) {
      p.w_h.multiply(h, u);
      for (let k = 0; k < h.length; k++) {
        h[k] = Math.tanh(ax[k] + u[k] + p.b[k]);
      }
    },
  },
  gru: {
    state: ["h"],
    // r = σ(xᵣ + uᵣ), z = σ(x_z + u_z), n = tanh(xₙ + r (uₙ + bₙ))
    // h' = (1 − z) n + z h, with [x] = x W_x + b and [u] = h W_h
    recur(p, ax, u, { h }) {
      const H = h.length, { b, b_n } = p;
      p.w_h.multiply(h, u);
      for (let k = 0; k < H; k++) {
        const r = sigmoid(ax[k] + b[k] + u[k]);
        const z = sigmoid(ax[H + k] + b[H + k] + u[H + k]);
        const s = u[2 * H + k] + b_n[k];
        const n = Math.tanh(ax[2 * H + k] + b[2 * H + k] + r * s);
        h[k] = (1 - z) * n + z * h[k];
      }
    },
  },
  lstm: {
    state: ["h", "c"],
    // a = x W_x + h W_h + b;  i, f, o = σ(aᵢ), σ(a_f), σ(aₒ);  g = tanh(a_g)
    // c' = f c + i g,  h' = o tanh c'
    recur(p, ax, u, { h, c }) {
      const H = h.length, { b } = p;
      p.w_h.multiply(h, u);
      for (let k = 0; k < H; k++) {
        const i = sigmoid(ax[k] + u[k] + b[k]);
        const f = sigmoid(ax[H + k] + u[H + k] + b[H + k]);
        const g = Math.tanh(ax[2 * H + k] + u[2 * H + k] + b[2 * H + k]);
        const o = sigmoid(ax[3 * H + k] + u[3 * H + k] + b[3 * H + k]);
        c[k] = f * c[k] + i * g;
        h[k] = o * Math.tanh(c[k]);
      }
    },
  },
  layernorm_lstm: {
    state: ["h", "c"],
    // γₓ N(x W_x)
    project(p, ax) {
      normalise(ax);
      for (let k = 0; k < ax.length; k++) ax[k] *= p.gain_x[k];
    },
    // a = γₓ N(x W_x) + γₕ N(h W_h) + b, the gates and c' as for the LSTM
    // h' = o tanh(γ_c N(c') + b_c)
    recur(p, ax, u, { h, c }) {
      const H = h.length, { b, gain_h, gain_c, b_c } = p;
      p.w_h.multiply(h, u);
      normalise(u);
      const a = (k) => ax[k] + gain_h[k] * u[k] + b[k];
      for (let k = 0; k < H; k++) {
        const i = sigmoid(a(k)), f = sigmoid(a(H + k));
        const g = Math.tanh(a(2 * H + k));
        c[k] = f * c[k] + i * g;
        h[k] = sigmoid(a(3 * H + k));  // o, until c' is known as a whole
      }
      const y = Float64Array.from(c);
      normalise(y);
      for (let k = 0; k < H; k++) h[k] *= Math.tanh(gain_c[k] * y[k] + b_c[k]);
    },
  },
};

class Model {
  // config: { cell, embedding, layers, readout, bias }, with a Matrix or an
  // array in each place; without a readout, it is tied to the embedding.
  constructor({ cell, embedding, layers, readout, bias }) {
    this.cell = CELLS[cell];
    this.embedding = embedding;
    this.layers = layers;
    this.readout = readout || embedding;
    this.scale = readout ? 1 : Math.sqrt(embedding.columns);
    this.bias = bias;
    const { columns: H, rows: K } = layers[0].w_h;
    this.e = new Float64Array(embedding.columns);
    this.ax = new Float64Array(K), this.u = new Float64Array(K);
    this.table = new Map();  // the input's part of the lowest layer, by token
    this.stateSize = layers.length * this.cell.state.length * H;
    this.hiddenSize = H;
  }

  // Returns the zero state: all numbers, and views of them, layer by layer.
  zeroState() {
    const all = new Float64Array(this.stateSize), H = this.hiddenSize;
    let at = 0;
    const layers = this.layers.map(() => Object.fromEntries(
      this.cell.state.map((name) => [name, all.subarray(at, at += H)])));
    return { all, layers };
  }

  // Reads a token: writes the state after it over the state.
  step(state, token) {
    this.layers.forEach((p, k) => {
      const ax = k === 0 ? this.projectToken(token)
        : this.project(p, state.layers[k - 1].h, this.ax);
      this.cell.recur(p, ax, this.u, state.layers[k]);
    });
  }

  // Writes the logits of the next token into y.
  logits(state, y) {
    this.readout.multiply(state.layers[state.layers.length - 1].h, y);
    for (let token = 0; token < y.length; token++) y[token] += this.bias[token];
  }

  project(p, x, ax) {
    p.w_x.multiply(x, ax);
    if (this.cell.project) this.cell.project(p, ax);
    return ax;
  }

  projectToken(token) {
    const kept = this.table.get(token);
    if (kept) return kept;
    this.embedding.row(token, this.scale, this.e);
    const room = this.table.size < TABLE_ROWS;
    const ax = room ? new Float64Array(this.ax.length) : this.ax;
    this.project(this.layers[0], this.e, ax);
    if (room) this.table.set(token, ax);
    return ax;
  }
}
