"use strict";
// The gradient of ℓ = log p(target), where the target is the token after a text,
// with respect to the states before it, as experiments/analysis/gradient_flow.py
// computes it. dv is ∂ℓ/∂v, the other letters are those of cells.js, and σ(a) has
// the derivative σ(a) (1 − σ(a)), tanh a the derivative 1 − tanh² a.

// d holds dN, the gradient with respect to N(u) of `normalise`, and receives du:
//   du = (dN − mean dN − N(u) mean(dN N(u))) / √(var u + ε)
// n is N(u), and scale what `normalise` has returned, 1 / √(var u + ε).
function normaliseBackward(n, scale, d) {
  let mean = 0, slope = 0;
  for (let k = 0; k < n.length; k++) {
    mean += d[k] / n.length;
    slope += d[k] * n[k] / n.length;
  }
  for (let k = 0; k < n.length; k++) d[k] = (d[k] - mean - n[k] * slope) * scale;
}

// The gates of unit k of an LSTM. dc holds dc' and receives dc; dO is do, which
// is a keyword; da receives the gradient of each pre-activation:
//   dc = dc' f,  daᵢ = dc' g i (1 − i),  da_f = dc' c f (1 − f),
//   da_g = dc' i (1 − g²),  daₒ = do o (1 − o)
function gatesBackward(gates, c, k, dO, dc, da) {
  const H = c.length;
  const i = gates[k], f = gates[H + k], g = gates[2 * H + k];
  const o = gates[3 * H + k];
  da[k] = dc[k] * g * i * (1 - i);
  da[H + k] = dc[k] * c[k] * f * (1 - f);
  da[2 * H + k] = dc[k] * i * (1 - g * g);
  da[3 * H + k] = dO * o * (1 - o);
  dc[k] *= f;
}

// The plain RNN: da = dh' dφ/da. `derivative` computes dφ/da from h' = φ(a).
function plainRnnBackward(derivative) {
  return {
    recur(p, gates, before, after, { h: dh }, dax, du) {
      for (let k = 0; k < dh.length; k++) {
        dax[k] = du[k] = dh[k] * derivative(after.h[k]);
        dh[k] = 0;
      }
    },
  };
}

// The backward pass of a step. `recur` takes the parameters p, the step's gates,
// the states before and after it, and d, the gradient with respect to the state
// after it. dax receives the gradient of the input's part, du that of h W_h, and
// d that of the state before the step. d lacks the part of dh that goes through
// h W_h; `advance` adds it. `project` takes ax = x W_x before it is normalised;
// dax holds the gradient of the input's part and receives that of x W_x.
const BACKWARD = {
  rnn: plainRnnBackward((y) => 1 - y * y),
  relu_rnn: plainRnnBackward((y) => Number(y > 0)),
  gru: {
    // daₙ = dh' (1 − z) (1 − n²),  da_z = dh' (h − n) z (1 − z),
    // daᵣ = daₙ s r (1 − r) with s = uₙ + bₙ,  duₙ = daₙ r,  dh = dh' z
    recur(p, gates, { h }, after, { h: dh }, dax, du) {
      const H = h.length;
      p.w_h.multiply(h, du);  // u, until du is known
      for (let k = 0; k < H; k++) {
        const r = gates[k], z = gates[H + k], n = gates[2 * H + k];
        const s = du[2 * H + k] + p.b_n[k];
        const dn = dh[k] * (1 - z) * (1 - n * n);
        dax[k] = du[k] = dn * s * r * (1 - r);
        dax[H + k] = du[H + k] = dh[k] * (h[k] - n) * z * (1 - z);
        dax[2 * H + k] = dn;
        du[2 * H + k] = dn * r;
        dh[k] *= z;
      }
    },
  },
  gru_reset_before: {
    // daₙ = dh' (1 − z) (1 − n²),  da_z = dh' (h − n) z (1 − z),  dm = daₙ Wₙᵀ,
    // daᵣ = dm h r (1 − r),  dh = dh' z + dm r
    recur(p, gates, { h }, after, { h: dh }, dax, du) {
      const H = h.length, dm = new Float64Array(H);
      for (let k = 0; k < H; k++) {
        const z = gates[H + k], n = gates[2 * H + k];
        dax[H + k] = dh[k] * (h[k] - n) * z * (1 - z);
        dax[2 * H + k] = dh[k] * (1 - z) * (1 - n * n);
      }
      du.fill(0, 0, 2 * H);
      du.set(dax.subarray(2 * H), 2 * H);
      p.w_h.multiplyTransposed(du, dm);
      for (let k = 0; k < H; k++) {
        const r = gates[k];
        dax[k] = dm[k] * h[k] * r * (1 - r);
        dh[k] = dh[k] * gates[H + k] + dm[k] * r;
      }
      du.set(dax);
      du.fill(0, 2 * H);  // the part through m Wₙ is in dm
    },
  },
  lstm: {
    // do = dh' tanh c',  dc' += dh' o (1 − tanh² c')
    recur(p, gates, { c }, after, { h: dh, c: dc }, dax, du) {
      const H = c.length;
      for (let k = 0; k < H; k++) {
        const t = Math.tanh(after.c[k]);
        dc[k] += dh[k] * gates[3 * H + k] * (1 - t * t);
        gatesBackward(gates, c, k, dh[k] * t, dc, dax);
        dh[k] = 0;
      }
      du.set(dax);
    },
  },
  coupled_lstm: {
    // dc' += dh' o (1 − tanh² c'),  da_f = dc' (c − g) f (1 − f),
    // da_g = dc' (1 − f) (1 − g²),  daₒ = dh' tanh c' o (1 − o),  dc = dc' f
    recur(p, gates, { c }, after, { h: dh, c: dc }, dax, du) {
      const H = c.length;
      for (let k = 0; k < H; k++) {
        const t = Math.tanh(after.c[k]);
        const f = gates[k], g = gates[H + k], o = gates[2 * H + k];
        dc[k] += dh[k] * o * (1 - t * t);
        dax[k] = dc[k] * (c[k] - g) * f * (1 - f);
        dax[H + k] = dc[k] * (1 - f) * (1 - g * g);
        dax[2 * H + k] = dh[k] * t * o * (1 - o);
        dc[k] *= f;
        dh[k] = 0;
      }
      du.set(dax);
    },
  },
  peephole_lstm: {
    // as the LSTM, with dc' += daₒ wₒ  and  dc += daᵢ wᵢ + da_f w_f
    recur(p, gates, { c }, after, { h: dh, c: dc }, dax, du) {
      const H = c.length, { w_c: w } = p;
      for (let k = 0; k < H; k++) {
        const t = Math.tanh(after.c[k]), o = gates[3 * H + k];
        const da = dh[k] * t * o * (1 - o);
        dc[k] += dh[k] * o * (1 - t * t) + da * w[2 * H + k];
        gatesBackward(gates, c, k, dh[k] * t, dc, dax);
        dc[k] += dax[k] * w[k] + dax[H + k] * w[H + k];
        dh[k] = 0;
      }
      du.set(dax);
    },
  },
  layernorm_lstm: {
    // do = dh' t with t = tanh(γ_c N(c') + b_c),  dN(c') = dh' o (1 − t²) γ_c,
    // added to dc' through N; then da, as of the LSTM, and du from dN(u) = γₕ da
    recur(p, gates, { h, c }, after, { h: dh, c: dc }, dax, du) {
      const H = c.length, { gain_h, gain_c, b_c } = p;
      const y = Float64Array.from(after.c), dy = new Float64Array(H);
      const dO = new Float64Array(H);
      const scale = normalise(y);
      for (let k = 0; k < H; k++) {
        const t = Math.tanh(gain_c[k] * y[k] + b_c[k]);
        dO[k] = dh[k] * t;
        dy[k] = dh[k] * gates[3 * H + k] * (1 - t * t) * gain_c[k];
      }
      normaliseBackward(y, scale, dy);
      for (let k = 0; k < H; k++) {
        dc[k] += dy[k];
        gatesBackward(gates, c, k, dO[k], dc, dax);
        dh[k] = 0;
      }
      for (let k = 0; k < du.length; k++) du[k] = dax[k] * gain_h[k];
      const u = new Float64Array(du.length);
      p.w_h.multiply(h, u);
      normaliseBackward(u, normalise(u), du);
    },
    project(p, ax, dax) {
      for (let k = 0; k < dax.length; k++) dax[k] *= p.gain_x[k];
      normaliseBackward(ax, normalise(ax), dax);
    },
  },
};

const norm = (values) => Math.sqrt(values.reduce((sum, v) => sum + v * v, 0));

// The norms of ∂ℓ/∂s for the states s of each layer after the token `at` of a
// text and after those before it, one step further back with each `advance`.
class GradientPath {
  // text: has `stateAt` and `gatesAt` of a token; target: the token after `at`;
  // window: steps back, at most, the one at the cursor included.
  constructor(model, cell, text, at, target, window) {
    const K = model.u.length;
    Object.assign(this, { model, text, at });
    this.backward = BACKWARD[cell];
    this.steps = Math.min(window, at + 1);
    this.back = 0;
    this.state = model.zeroState();  // ∂ℓ/∂s, layer by layer
    this.norms = this.state.layers.map((fields) => Object.fromEntries(
      Object.keys(fields).map((name) => [name, new Float64Array(window)])));
    this.dax = new Float64Array(K), this.du = new Float64Array(K);
    this.ax = new Float64Array(K);
    this.dh = new Float64Array(model.hiddenSize);
    // ∂ℓ/∂y = (1 of the target, 0 of others) − softmax(y), and y = h' W + b.
    const y = new Float64Array(model.bias.length);
    const p = new Float64Array(y.length);
    model.logits(text.stateAt(at), y);
    softmax(y, 1, p);
    for (let token = 0; token < p.length; token++) {
      y[token] = Number(token === target) - p[token];
    }
    model.readout.multiplyTransposed(y, this.state.layers.at(-1).h);
  }

  // Computes one step back. Returns whether there are more.
  advance() {
    if (this.back === this.steps) return false;
    const { model, text, dax, du, dh, state } = this, t = this.at - this.back;
    const before = text.stateAt(t - 1).layers, after = text.stateAt(t).layers;
    for (let k = model.layers.length - 1; k >= 0; k--) {
      const p = model.layers[k], d = state.layers[k];
      for (const [name, values] of Object.entries(d)) {
        this.norms[k][name][this.back] = norm(values);
      }
      this.backward.recur(p, text.gatesAt(t, k), before[k], after[k], d, dax, du);
      p.w_h.multiplyTransposed(du, dh);
      dh.forEach((v, unit) => { d.h[unit] += v; });
      if (k === 0) continue;
      if (this.backward.project) {  // it needs x W_x, which was not kept
        p.w_x.multiply(after[k - 1].h, this.ax);
        this.backward.project(p, this.ax, dax);
      }
      p.w_x.multiplyTransposed(dax, dh);
      dh.forEach((v, unit) => { state.layers[k - 1].h[unit] += v; });
    }
    this.back++;
    return this.back < this.steps;
  }
}
