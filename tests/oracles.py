"""The cells once more, independently: NumPy loops over gates and units.

Each oracle maps (params, state, xs) of one unbatched sequence to (state, hs).
It is written from the textbook equations of one step, (params, x, h, c) for an
LSTM, and uses nothing of the library.
"""

import math
from functools import wraps

import numpy as np


def _sigmoid(a):
  return 1 / (1 + math.exp(-a))


def _column(params, gate, unit, hidden):
  j = gate * hidden + unit
  return params.w_x[:, j], params.w_h[:, j], params.b[j]


def _unrolled(step):
  """Return a step's loop over time; the first array of its state is h."""

  @wraps(step)
  def oracle(params, state, xs):
    state, hs = tuple(np.array(leaf) for leaf in state), []
    for x in np.asarray(xs):
      state = step(params, x, *state)
      hs.append(state[0])
    return state, np.array(hs)

  return oracle


def _pre_activations(params, x, h, unit, hidden, gates=4):
  columns = [_column(params, gate, unit, hidden) for gate in range(gates)]
  return [float(x @ w_x + h @ w_h + b) for w_x, w_h, b in columns]


def _cell_and_output(params, x, h, c):
  """Return the cell state of an LSTM, and o ⊙ tanh of it."""
  c_next, m = c.copy(), c.copy()
  for unit in range(len(c)):
    i, f, g, o = _pre_activations(params, x, h, unit, len(c))
    c_next[unit] = _sigmoid(f) * c[unit] + _sigmoid(i) * math.tanh(g)
    m[unit] = _sigmoid(o) * math.tanh(c_next[unit])
  return c_next, m


@_unrolled
def lstm(params, x, h, c):
  c_next, h_next = _cell_and_output(params, x, h, c)
  return h_next, c_next


@_unrolled
def projected_lstm(params, x, h, c):
  c_next, m = _cell_and_output(params, x, h, c)
  w_r = np.asarray(params.w_r)
  h_next = [sum(m[j] * w_r[j, k] for j in range(len(m))) for k in range(len(h))]
  return np.array(h_next), c_next


def _normalised(values):
  mean = sum(values) / len(values)
  variance = sum((v - mean) ** 2 for v in values) / len(values)
  return [(v - mean) / math.sqrt(variance + 1e-5) for v in values]


@_unrolled
def layernorm_lstm(params, x, h, c):
  hidden = len(h)
  x_normal = _normalised([float(v) for v in x @ params.w_x])
  h_normal = _normalised([float(v) for v in h @ params.w_h])
  a = [
    float(params.gain_x[j] * x_normal[j] + params.gain_h[j] * h_normal[j])
    + float(params.b[j])
    for j in range(4 * hidden)
  ]
  c_next, h_next = c.copy(), h.copy()
  for unit in range(hidden):
    i, f, g = a[unit], a[hidden + unit], a[2 * hidden + unit]
    c_next[unit] = _sigmoid(f) * c[unit] + _sigmoid(i) * math.tanh(g)
  y = _normalised([float(v) for v in c_next])
  for unit in range(hidden):
    scaled = float(params.gain_c[unit]) * y[unit] + float(params.b_c[unit])
    h_next[unit] = _sigmoid(a[3 * hidden + unit]) * math.tanh(scaled)
  return h_next, c_next


@_unrolled
def peephole_lstm(params, x, h, c):
  h_next, c_next = h.copy(), c.copy()
  hidden = len(h)
  for unit in range(hidden):
    i, f, g, o = _pre_activations(params, x, h, unit, hidden)
    w_i, w_f, w_o = (float(params.w_c[k * hidden + unit]) for k in range(3))
    i, f = _sigmoid(i + w_i * c[unit]), _sigmoid(f + w_f * c[unit])
    c_next[unit] = f * c[unit] + i * math.tanh(g)
    h_next[unit] = _sigmoid(o + w_o * c_next[unit]) * math.tanh(c_next[unit])
  return h_next, c_next


@_unrolled
def coupled_lstm(params, x, h, c):
  h_next, c_next = h.copy(), c.copy()
  for unit in range(len(h)):
    f, g, o = _pre_activations(params, x, h, unit, len(h), gates=3)
    f = _sigmoid(f)
    c_next[unit] = f * c[unit] + (1 - f) * math.tanh(g)
    h_next[unit] = _sigmoid(o) * math.tanh(c_next[unit])
  return h_next, c_next


@_unrolled
def mogrifier_lstm(params, x, h, c):
  """Apply the rounds in turn: `q[k]` scales x, and then `r[k]` scales h."""
  x, h = x.copy(), h.copy()
  for k in range(len(params.q)):
    q = np.asarray(params.q[k])
    x = np.array([2 * _sigmoid(h @ q[:, j]) * x[j] for j in range(len(x))])
    if k < len(params.r):
      r = np.asarray(params.r[k])
      h = np.array([2 * _sigmoid(x @ r[:, j]) * h[j] for j in range(len(h))])
  c_next, h_next = _cell_and_output(params, x, h, c)
  return h_next, c_next


@_unrolled
def slstm(params, x, h, c, n, m):
  """Compute memory exp(m) c and normaliser exp(m) n first, then m, c and n."""
  h_next, c_next, n_next, m_next = (np.zeros_like(h) for _ in range(4))
  hidden, size = len(h), params.w_h.shape[1]
  for unit in range(hidden):
    head, place = divmod(unit, size)
    of_head = h[head * size : (head + 1) * size]
    i, f, g, o = (
      float(x @ params.w_x[:, gate * hidden + unit])
      + float(of_head @ params.w_h[head, :, gate * size + place])
      + float(params.b[gate * hidden + unit])
      for gate in range(4)
    )
    memory = _sigmoid(f) * math.exp(m[unit]) * c[unit]
    memory += math.exp(i) * math.tanh(g)
    normaliser = _sigmoid(f) * math.exp(m[unit]) * n[unit] + math.exp(i)
    h_next[unit] = _sigmoid(o) * memory / normaliser
    m_next[unit] = max(math.log(_sigmoid(f)) + m[unit], i)
    c_next[unit] = memory / math.exp(m_next[unit])
    n_next[unit] = normaliser / math.exp(m_next[unit])
  return h_next, c_next, n_next, m_next


@_unrolled
def gru(params, x, h):
  h_next = h.copy()
  for unit in range(len(h)):
    columns = [_column(params, gate, unit, len(h)) for gate in range(3)]
    ax = [float(x @ w_x + b) for w_x, _, b in columns]
    ah = [float(h @ w_h) for _, w_h, _ in columns]
    r, z = _sigmoid(ax[0] + ah[0]), _sigmoid(ax[1] + ah[1])
    n = math.tanh(ax[2] + r * (ah[2] + float(params.b_n[unit])))
    h_next[unit] = (1 - z) * n + z * h[unit]
  return (h_next,)


@_unrolled
def gru_reset_before(params, x, h):
  h_next, hidden = h.copy(), len(h)
  a = [
    _pre_activations(params, x, h, u, hidden, gates=2) for u in range(hidden)
  ]
  reset_h = np.array(
    [_sigmoid(a_r) * v for (a_r, _), v in zip(a, h, strict=True)]
  )
  for unit, (_, a_z) in enumerate(a):
    w_x, w_h, b = _column(params, 2, unit, hidden)
    n = math.tanh(float(x @ w_x + reset_h @ w_h + b))
    h_next[unit] = (1 - _sigmoid(a_z)) * n + _sigmoid(a_z) * h[unit]
  return (h_next,)


@_unrolled
def rnn(params, x, h):
  units = range(len(h))
  a = [_pre_activations(params, x, h, u, len(h), gates=1)[0] for u in units]
  return (np.array([math.tanh(v) for v in a]),)


@_unrolled
def relu_rnn(params, x, h):
  units = range(len(h))
  a = [_pre_activations(params, x, h, u, len(h), gates=1)[0] for u in units]
  return (np.array([max(v, 0.0) for v in a]),)


def _inputs(params, x, unit, hidden, gates):
  """Return the pre-activations of a unit of a cell without W_h."""
  columns = [gate * hidden + unit for gate in range(gates)]
  return [float(x @ params.w_x[:, j] + params.b[j]) for j in columns]


@_unrolled
def min_gru(params, x, h):
  h_next = h.copy()
  for unit in range(len(h)):
    z, n = _inputs(params, x, unit, len(h), gates=2)
    h_next[unit] = h[unit] + _sigmoid(z) * (n - h[unit])
  return (h_next,)


@_unrolled
def min_lstm(params, x, h):
  h_next = h.copy()
  for unit in range(len(h)):
    f, i, n = _inputs(params, x, unit, len(h), gates=3)
    f, i = _sigmoid(f), _sigmoid(i)
    h_next[unit] = f / (f + i) * h[unit] + i / (f + i) * n
  return (h_next,)


@_unrolled
def lru(params, x, h):
  h_next = h.copy()
  for unit in range(len(h)):
    (a,) = _inputs(params, x, unit, len(h), gates=1)
    decay = math.exp(-math.exp(params.nu[unit]))
    h_next[unit] = decay * h[unit] + math.sqrt(1 - decay**2) * a
  return (h_next,)
