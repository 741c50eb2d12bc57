"""The cells once more, independently: NumPy loops over gates and units.

Each oracle maps (params, state, xs) of one unbatched sequence to (state, hs).
It is written from the textbook equations, and uses nothing of the library.
"""

import math

import numpy as np


def _sigmoid(a):
  return 1 / (1 + math.exp(-a))


def _column(params, gate, unit, hidden):
  j = gate * hidden + unit
  return params.w_x[:, j], params.w_h[:, j], params.b[j]


def lstm(params, state, xs):
  h, c = (np.array(leaf) for leaf in state)
  hidden, hs = len(c), []
  for x in np.asarray(xs):
    h_next, c_next = h.copy(), c.copy()
    for unit in range(hidden):
      a = []
      for gate in range(4):
        w_x, w_h, b = _column(params, gate, unit, hidden)
        a.append(float(x @ w_x + h @ w_h + b))
      i, f, g, o = _sigmoid(a[0]), _sigmoid(a[1]), math.tanh(a[2]), a[3]
      c_next[unit] = f * c[unit] + i * g
      h_next[unit] = _sigmoid(o) * math.tanh(c_next[unit])
    h, c = h_next, c_next
    hs.append(h)
  return (h, c), np.array(hs)


def layernorm_lstm(params, state, xs):
  def normalised(values):
    mean = sum(values) / len(values)
    variance = sum((v - mean) ** 2 for v in values) / len(values)
    return [(v - mean) / math.sqrt(variance + 1e-5) for v in values]

  h, c = (np.array(leaf) for leaf in state)
  hidden, hs = len(h), []
  for x in np.asarray(xs):
    x_normal = normalised([float(v) for v in x @ params.w_x])
    h_normal = normalised([float(v) for v in h @ params.w_h])
    a = [
      float(params.gain_x[j] * x_normal[j] + params.gain_h[j] * h_normal[j])
      + float(params.b[j])
      for j in range(4 * hidden)
    ]
    c_next, o = c.copy(), []
    for unit in range(hidden):
      i, f, g = a[unit], a[hidden + unit], a[2 * hidden + unit]
      c_next[unit] = _sigmoid(f) * c[unit] + _sigmoid(i) * math.tanh(g)
      o.append(_sigmoid(a[3 * hidden + unit]))
    y = normalised([float(v) for v in c_next])
    h = np.array(
      [
        o[unit]
        * math.tanh(
          float(params.gain_c[unit]) * y[unit] + float(params.b_c[unit])
        )
        for unit in range(hidden)
      ]
    )
    c = c_next
    hs.append(h)
  return (h, c), np.array(hs)


def projected_lstm(params, state, xs):
  h, c = (np.array(leaf) for leaf in state)
  hidden, hs = len(c), []
  for x in np.asarray(xs):
    c_next, m = c.copy(), c.copy()
    for unit in range(hidden):
      a = []
      for gate in range(4):
        w_x, w_h, b = _column(params, gate, unit, hidden)
        a.append(float(x @ w_x + h @ w_h + b))
      i, f, g, o = _sigmoid(a[0]), _sigmoid(a[1]), math.tanh(a[2]), a[3]
      c_next[unit] = f * c[unit] + i * g
      m[unit] = _sigmoid(o) * math.tanh(c_next[unit])
    w_r = np.asarray(params.w_r)
    h = np.array(
      [sum(m[j] * w_r[j, k] for j in range(hidden)) for k in range(len(h))]
    )
    c = c_next
    hs.append(h)
  return (h, c), np.array(hs)


def peephole_lstm(params, state, xs):
  h, c = (np.array(leaf) for leaf in state)
  hidden, hs = len(h), []
  for x in np.asarray(xs):
    h_next, c_next = h.copy(), c.copy()
    for unit in range(hidden):
      a = []
      for gate in range(4):
        w_x, w_h, b = _column(params, gate, unit, hidden)
        a.append(float(x @ w_x + h @ w_h + b))
      w_i, w_f, w_o = (float(params.w_c[k * hidden + unit]) for k in range(3))
      i, f = _sigmoid(a[0] + w_i * c[unit]), _sigmoid(a[1] + w_f * c[unit])
      c_next[unit] = f * c[unit] + i * math.tanh(a[2])
      o = _sigmoid(a[3] + w_o * c_next[unit])
      h_next[unit] = o * math.tanh(c_next[unit])
    h, c = h_next, c_next
    hs.append(h)
  return (h, c), np.array(hs)


def coupled_lstm(params, state, xs):
  h, c = (np.array(leaf) for leaf in state)
  hidden, hs = len(h), []
  for x in np.asarray(xs):
    h_next, c_next = h.copy(), c.copy()
    for unit in range(hidden):
      a = []
      for gate in range(3):
        w_x, w_h, b = _column(params, gate, unit, hidden)
        a.append(float(x @ w_x + h @ w_h + b))
      f = _sigmoid(a[0])
      c_next[unit] = f * c[unit] + (1 - f) * math.tanh(a[1])
      h_next[unit] = _sigmoid(a[2]) * math.tanh(c_next[unit])
    h, c = h_next, c_next
    hs.append(h)
  return (h, c), np.array(hs)


def gru(params, state, xs):
  (h,) = (np.array(leaf) for leaf in state)
  hidden, hs = len(h), []
  for x in np.asarray(xs):
    h_next = h.copy()
    for unit in range(hidden):
      ax, ah = [], []
      for gate in range(3):
        w_x, w_h, b = _column(params, gate, unit, hidden)
        ax.append(float(x @ w_x + b))
        ah.append(float(h @ w_h))
      r, z = _sigmoid(ax[0] + ah[0]), _sigmoid(ax[1] + ah[1])
      n = math.tanh(ax[2] + r * (ah[2] + float(params.b_n[unit])))
      h_next[unit] = (1 - z) * n + z * h[unit]
    h = h_next
    hs.append(h)
  return (h,), np.array(hs)


def rnn(params, state, xs):
  (h,) = (np.array(leaf) for leaf in state)
  hs = []
  for x in np.asarray(xs):
    columns = [_column(params, 0, unit, len(h)) for unit in range(len(h))]
    h = np.array(
      [math.tanh(float(x @ w_x + h @ w_h + b)) for w_x, w_h, b in columns]
    )
    hs.append(h)
  return (h,), np.array(hs)
