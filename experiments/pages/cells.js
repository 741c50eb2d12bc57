"use strict";
// The forward pass of one step of each cell that a page can run, in the letters
// of lstm_jax/cells: a prime marks a value after the step.

const sigmoid = (a) => 1 / (1 + Math.exp(-a));

// N(u) = (u − mean u) / √(var u + ε), in place. Returns 1 / √(var u + ε).
function normalise(u, epsilon = 1e-5) {
  let mean = 0, variance = 0;
  for (const v of u) mean += v / u.length;
  for (const v of u) variance += (v - mean) ** 2 / u.length;
  const scale = 1 / Math.sqrt(variance + epsilon);
  for (let k = 0; k < u.length; k++) u[k] = (u[k] - mean) * scale;
  return scale;
}

// The plain RNN, h' = φ(x W_x + h W_h + b).
function plainRnn(activation) {
  return {
    state: ["h"],
    gates: [],
    recur(p, ax, u, { h }) {
      p.w_h.multiply(h, u);
      for (let k = 0; k < h.length; k++) {
        h[k] = activation(ax[k] + u[k] + p.b[k]);
      }
    },
  };
}

// A cell's `recur` writes the state after a step over the state before it. It
// takes the parameters p, the input's part ax of the pre-activations, an array
// u as large, and the state. u receives the state's part of the
// pre-activations, and then, in its place, the gates. `project`, where a cell
// has it, turns x W_x into ax, in place; without it, ax is x W_x.
const CELLS = {
  rnn: plainRnn(Math.tanh),
  relu_rnn: plainRnn((a) => Math.max(0, a)),
  gru: {
    state: ["h"],
    gates: ["r", "z", "n"],
    // r = σ(xᵣ + uᵣ), z = σ(x_z + u_z), n = tanh(xₙ + r (uₙ + bₙ))
    // h' = (1 − z) n + z h
    // with [xᵣ, x_z, xₙ] = x W_x + b and [uᵣ, u_z, uₙ] = h W_h
    recur(p, ax, u, { h }) {
      const H = h.length, { b, b_n } = p;
      p.w_h.multiply(h, u);
      for (let k = 0; k < H; k++) {
        const r = sigmoid(ax[k] + b[k] + u[k]);
        const z = sigmoid(ax[H + k] + b[H + k] + u[H + k]);
        const s = u[2 * H + k] + b_n[k];
        const n = Math.tanh(ax[2 * H + k] + b[2 * H + k] + r * s);
        h[k] = (1 - z) * n + z * h[k];
        u[k] = r, u[H + k] = z, u[2 * H + k] = n;
      }
    },
  },
  gru_reset_before: {
    state: ["h"],
    gates: ["r", "z", "n"],
    // r and z as for the GRU, m = r h, n = tanh(xₙ + m Wₙ)
    // h' = (1 − z) n + z h, with [uᵣ, u_z] = h W_rz and W_h = [W_rz, Wₙ]
    recur(p, ax, u, { h }) {
      const H = h.length, { b } = p, m = new Float64Array(H);
      p.w_h.multiply(h, u, 0, 2 * H);  // u[0] to u[2H − 1], by W_rz
      for (let k = 0; k < H; k++) {
        const r = sigmoid(ax[k] + b[k] + u[k]);
        m[k] = r * h[k];
        u[k] = r, u[H + k] = sigmoid(ax[H + k] + b[H + k] + u[H + k]);
      }
      p.w_h.multiply(m, u, 2 * H);  // the other H, by Wₙ
      for (let k = 0; k < H; k++) {
        const z = u[H + k];
        const n = Math.tanh(ax[2 * H + k] + b[2 * H + k] + u[2 * H + k]);
        h[k] = (1 - z) * n + z * h[k];
        u[2 * H + k] = n;
      }
    },
  },
  lstm: {
    state: ["h", "c"],
    gates: ["i", "f", "g", "o"],
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
        u[k] = i, u[H + k] = f, u[2 * H + k] = g, u[3 * H + k] = o;
      }
    },
  },
  coupled_lstm: {
    state: ["h", "c"],
    gates: ["f", "g", "o"],
    // a = x W_x + h W_h + b;  f, o = σ(a_f), σ(aₒ);  g = tanh(a_g)
    // c' = f c + (1 − f) g,  h' = o tanh c'
    recur(p, ax, u, { h, c }) {
      const H = h.length, { b } = p;
      p.w_h.multiply(h, u);
      for (let k = 0; k < H; k++) {
        const f = sigmoid(ax[k] + u[k] + b[k]);
        const g = Math.tanh(ax[H + k] + u[H + k] + b[H + k]);
        const o = sigmoid(ax[2 * H + k] + u[2 * H + k] + b[2 * H + k]);
        c[k] = f * c[k] + (1 - f) * g;
        h[k] = o * Math.tanh(c[k]);
        u[k] = f, u[H + k] = g, u[2 * H + k] = o;
      }
    },
  },
  peephole_lstm: {
    state: ["h", "c"],
    gates: ["i", "f", "g", "o"],
    // as the LSTM, with wᵢ c added to aᵢ, w_f c to a_f and wₒ c' to aₒ
    recur(p, ax, u, { h, c }) {
      const H = h.length, { b, w_c: w } = p;
      p.w_h.multiply(h, u);
      for (let k = 0; k < H; k++) {
        const i = sigmoid(ax[k] + u[k] + b[k] + w[k] * c[k]);
        const f = sigmoid(ax[H + k] + u[H + k] + b[H + k] + w[H + k] * c[k]);
        const g = Math.tanh(ax[2 * H + k] + u[2 * H + k] + b[2 * H + k]);
        c[k] = f * c[k] + i * g;
        const o = sigmoid(
          ax[3 * H + k] + u[3 * H + k] + b[3 * H + k] + w[2 * H + k] * c[k]);
        h[k] = o * Math.tanh(c[k]);
        u[k] = i, u[H + k] = f, u[2 * H + k] = g, u[3 * H + k] = o;
      }
    },
  },
  layernorm_lstm: {
    state: ["h", "c"],
    gates: ["i", "f", "g", "o"],
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
        const g = Math.tanh(a(2 * H + k)), o = sigmoid(a(3 * H + k));
        c[k] = f * c[k] + i * g;
        u[k] = i, u[H + k] = f, u[2 * H + k] = g, u[3 * H + k] = o;
      }
      const y = Float64Array.from(c);
      normalise(y);
      for (let k = 0; k < H; k++) {
        h[k] = u[3 * H + k] * Math.tanh(gain_c[k] * y[k] + b_c[k]);
      }
    },
  },
};
