"""The cells again, from outside: NumPy loops, gate by gate, unit by unit.

Each oracle maps (params, state, xs) of one unbatched sequence to (state, hs),
written from the textbook equations and from nothing in the library.
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
  hidden, hs = len(h), []
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
