"use strict";
// The forward pass of a language model, in the letters of lstm_jax/cells:
//
//   e  = W_e[x]               of the token x; times √E if the readout is tied
//   h' = cell(h, …, input)    layer by layer; the input of the lowest is e
//   y  = h' W + b             of the top layer: the logits of the next token
//
// E is the size of e. A prime marks a value after the step. All sums are in
// double precision.

const LANES = 8;  // outputs that a product sums at a time
const TABLE_ROWS = 1024;  // most tokens whose product with W_x is kept

// A matrix in 8 bits, by its outputs: W[k, r] = levels[r, k] scales[r].
class Matrix {
  constructor(levels, scales) {
    this.rows = scales.length;
    this.columns = levels.length / scales.length;
    this.scales = new Float64Array(scales);
    // For products: outputs in groups of 8, as [⌈rows / 8⌉, columns, 8].
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

  // Writes x W into y: all outputs, or those with first ≤ r < end.
  multiply(x, y, first = 0, end = this.rows) {
    const { weights, columns, scales, sums } = this;
    const start = first - first % LANES;
    for (let r = start, k = start * columns; r < end; r += LANES) {
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
    for (let r = first; r < end; r++) y[r] = sums[r] * scales[r];
  }

  // Writes W g into x: for g = ∂ℓ/∂(x W) of some ℓ, that is ∂ℓ/∂x.
  multiplyTransposed(g, x) {
    const { weights, columns, scales, rows, sums } = this;
    for (let r = 0; r < sums.length; r++) {
      sums[r] = r < rows ? g[r] * scales[r] : 0;
    }
    for (let column = 0; column < columns; column++) x[column] = 0;
    for (let r = 0, k = 0; r < sums.length; r += LANES) {
      const g0 = sums[r], g1 = sums[r + 1], g2 = sums[r + 2], g3 = sums[r + 3];
      const g4 = sums[r + 4], g5 = sums[r + 5], g6 = sums[r + 6];
      const g7 = sums[r + 7];
      for (let column = 0; column < columns; column++, k += LANES) {
        x[column] += weights[k] * g0 + weights[k + 1] * g1
          + weights[k + 2] * g2 + weights[k + 3] * g3 + weights[k + 4] * g4
          + weights[k + 5] * g5 + weights[k + 6] * g6 + weights[k + 7] * g7;
      }
    }
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

  // Unpacks the weights of a page's header. Each is a blob's number, or for a
  // matrix the numbers of its levels and scales.
  static async unpack({ cell, embedding, layers, readout, bias }) {
    const arrayOf = async (packed) => {
      if (typeof packed === "number") {
        return new Float32Array(await unpack(`blob${packed}`));
      }
      const [levels, scales] = await Promise.all(
        [packed.levels, packed.scales].map((blob) => unpack(`blob${blob}`)));
      return new Matrix(new Int8Array(levels), new Float32Array(scales));
    };
    const arrays = (packed) => Promise.all(Object.entries(packed).map(
      async ([name, value]) => [name, await arrayOf(value)]));
    return new Model({
      cell,
      embedding: await arrayOf(embedding),
      layers: await Promise.all(
        layers.map(async (layer) => Object.fromEntries(await arrays(layer)))),
      readout: readout === null ? null : await arrayOf(readout),
      bias: await arrayOf(bias),
    });
  }

  // Returns the zero state: all numbers, and views of them, layer by layer.
  zeroState() {
    return this.viewsOf(new Float64Array(this.stateSize));
  }

  viewsOf(all) {
    const H = this.hiddenSize;
    let at = 0;
    const layers = this.layers.map(() => Object.fromEntries(
      this.cell.state.map((name) => [name, all.subarray(at, at += H)])));
    return { all, layers };
  }

  // Reads a token: writes the state after it over the state, and the gates of
  // layer k into gates[k], if that argument is given.
  step(state, token, gates) {
    this.layers.forEach((p, k) => {
      const ax = k === 0 ? this.projectToken(token)
        : this.project(p, state.layers[k - 1].h, this.ax);
      this.cell.recur(p, ax, this.u, state.layers[k]);
      if (gates) gates[k].set(this.u);
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
