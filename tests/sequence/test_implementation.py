"""The `implementation` argument: its errors, and where it is passed."""

import re
from functools import partial
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from lstm_jax import (
  Autodiff,
  Directions,
  Explicit,
  Step,
  gru,
  gru_reset_before,
  init_stack,
  lstm,
  peephole_lstm,
  regularize,
  rnn,
  unroll,
  unroll_both,
  unroll_stack,
)
from lstm_jax.cells import RELU, platform
from lstm_jax.cells.platform import traced_for
from lstm_jax.mosaic_gpu.limits import Plan
from lstm_jax.sequence import implementation
from tests.draws import B, D, H, T, normal_like, worst
from tests.interpreting import as_if_on_an_h100, count_kernels

XS = jnp.ones((T, B, D), jnp.float32)
RUNS = [unroll, unroll_both, unroll_stack]
EACH_RUN = pytest.mark.parametrize("run", RUNS, ids=lambda run: run.__name__)
fused = partial(unroll, implementation="mosaic_gpu")


def weights(cell=lstm, hidden=H, dtype=jnp.float32):
  return cell.init(jax.random.key(0), D, hidden, dtype)


def packed(run, params):
  """Return the weights of one layer as `run` takes them."""
  if run is unroll_both:
    return Directions(params, params)
  return (params,) if run is unroll_stack else params


@pytest.fixture
def h100(monkeypatch):
  """Pass the check of the device, as an H100 would."""
  with as_if_on_an_h100(monkeypatch):
    yield


def refuses(text):
  """Expect a ValueError that names the argument, and goes on with a text."""
  message = f"implementation='mosaic_gpu' {text}"
  return pytest.raises(ValueError, match=f"^{re.escape(message)}(\n|$)")


@EACH_RUN
@pytest.mark.parametrize("name", ["cuda", "pallas", "", 1, True])
def test_an_unknown_implementation_is_an_error(run, name):
  message = f"^implementation must be None, 'xla' or 'mosaic_gpu', got {name!r}"
  with pytest.raises(ValueError, match=message):
    run(lstm, packed(run, weights()), None, XS, implementation=name)


@EACH_RUN
def test_an_array_is_no_implementation(run):
  message = r"^implementation must be None, .*, got array\(\[1., 1.\]\)$"
  with pytest.raises(ValueError, match=message):
    run(lstm, packed(run, weights()), None, XS, implementation=np.ones(2))


@EACH_RUN
def test_xla_is_the_default(run):
  def program(**options):
    f = partial(run, lstm, **options)
    return jax.jit(f).lower(packed(run, weights()), None, XS).as_text()

  assert program(implementation="xla") == program(implementation=None)
  assert program(implementation=None) == program()


@EACH_RUN
def test_a_cpu_is_refused(run):
  with refuses(
    "needs an H100 or H200 and lstm-jax[cuda], got a cpu: leave implementation "
    "out here"
  ):
    run(lstm, packed(run, weights()), None, XS, implementation="mosaic_gpu")


def test_a_cpu_is_refused_on_a_machine_with_a_gpu(monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  with (
    traced_for("cpu"),
    refuses(
      "needs an H100 or H200 and lstm-jax[cuda], got a cpu: leave "
      "implementation out here"
    ),
  ):
    fused(lstm, weights(), None, XS)


@pytest.mark.parametrize("version", [(0, 10, 2), (0, 11, 1), (0, 13, 0)])
def test_another_version_of_jax_is_refused(version, monkeypatch):
  monkeypatch.setattr(jax, "__version_info__", version)
  monkeypatch.setattr(jax, "__version__", ".".join(map(str, version)))
  message = f"needs jax 0.11.2 to 0.12, got {jax.__version__}"
  with traced_for("cuda"), refuses(message):
    fused(lstm, weights(), None, XS)


@pytest.mark.parametrize("stated", [None, "gpu", "cuda", "device"])
def test_another_gpu_is_refused(stated, monkeypatch):
  """Also where `jax.default_device` states the GPU, or a platform by name."""
  device = SimpleNamespace(
    platform="gpu", compute_capability="8.0", device_kind="NVIDIA A100"
  )
  default = device if stated == "device" else stated
  for module in (platform, implementation):
    monkeypatch.setattr(module, "default_device", lambda: default)
  devices = {} if default is device else {"gpu": [device]}
  monkeypatch.setattr(jax, "__version_info__", (0, 12, 0))  # has the kernels
  monkeypatch.setattr(jax, "devices", devices.get)
  backend = "cpu" if default else "gpu"
  monkeypatch.setattr(jax, "default_backend", lambda: backend)
  with refuses(
    "needs an H100 or H200 (compute capability 9.0), got NVIDIA A100 (8.0)"
  ):
    fused(lstm, weights(), None, XS)
  device.compute_capability = "9.0"
  calls = count_kernels(monkeypatch)
  fused(lstm, weights(), None, XS)
  assert len(calls) == 1


@pytest.mark.usefixtures("h100")
def test_another_cell_is_refused():
  with refuses("takes the cells lstm, gru and rnn, got gru_reset_before"):
    fused(gru_reset_before, weights(gru_reset_before), None, XS)
  relu_rnn = rnn.with_activation(RELU)
  with refuses(
    "takes the cells lstm, gru and rnn, got rnn.with_activation(relu)"
  ):
    fused(relu_rnn, weights(relu_rnn), None, XS)
  with refuses("takes the cells lstm, gru and rnn, got peephole_lstm"):
    fused(peephole_lstm, weights(peephole_lstm), None, XS)
  with refuses("takes the cells lstm, gru and rnn, got Own"):
    own = Own(*(getattr(lstm, name) for name in Own._fields))
    fused(own, weights(), None, XS)


class Own(NamedTuple):
  """A cell that is not a module."""

  initial_state: object
  project: object
  recur: object
  recur_backward: object
  parameter_gradients: object


@pytest.mark.usefixtures("h100")
@pytest.mark.parametrize(
  "adjoint",
  [Step(), Autodiff(), Explicit(chunk=2), Explicit(residuals="recompute")],
  ids=str,
)
@EACH_RUN
def test_another_adjoint_is_refused(run, adjoint):
  options = {"adjoint": adjoint, "implementation": "mosaic_gpu"}
  with refuses(f"takes adjoint=Explicit(), got {adjoint}"):
    run(lstm, packed(run, weights()), None, XS, **options)


@pytest.mark.usefixtures("h100")
@EACH_RUN
def test_zoneout_and_state_dropout_are_refused(run):
  noise = {
    "zoneout": lstm.LSTMState(0.0, 0.0),
    "state_dropout": regularize.factors(jax.random.key(0), (B, H), 0.1),
  }
  for name, value in noise.items():
    options = {name: packed(run, value), "implementation": "mosaic_gpu"}
    with refuses(f"takes no {name}"):
      run(lstm, packed(run, weights()), None, XS, **options)


@pytest.mark.usefixtures("h100")
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float16])
def test_other_dtypes_are_refused_in_any_place(dtype):
  params, state = weights(), lstm.initial_state(weights(), (B,))
  name = jnp.dtype(dtype).name
  cast = partial(jax.tree.map, lambda x: x.astype(dtype))
  cases = [
    ("params.w_x", cast(params), state, XS, None),
    ("params.b", params._replace(b=params.b.astype(dtype)), state, XS, None),
    ("state.h", params, cast(state), XS, None),
    ("state.c", params, state._replace(c=state.c.astype(dtype)), XS, None),
    ("xs", params, state, XS.astype(dtype), None),
    ("compute_dtype", params, state, XS, dtype),
  ]
  for where, *arguments, compute_dtype in cases:
    with refuses(f"takes float32 and bfloat16, got {where} of {name}"):
      fused(lstm, *arguments, compute_dtype=compute_dtype)


@pytest.mark.usefixtures("h100")
@pytest.mark.parametrize(
  ("cell", "dtype", "largest"),
  [  # of a cluster, in the second table of `mosaic_gpu.limits`
    (lstm, "bfloat16", 384),
    (lstm, "float32", 192),
    (gru, "bfloat16", 512),
    (gru, "float32", 256),
    (rnn, "bfloat16", 512),
    (rnn, "float32", 512),
  ],
)
def test_an_h_that_is_too_large_is_refused(cell, dtype, largest, monkeypatch):
  calls = count_kernels(monkeypatch)

  def run(hidden):
    params = weights(cell, hidden)
    return fused(cell, params, None, XS, compute_dtype=jnp.dtype(dtype))

  with refuses(
    f"takes H up to {largest} with products in {dtype}, got {largest + 1}"
  ):
    jax.eval_shape(partial(run, largest + 1))
  jax.eval_shape(partial(run, largest))
  assert len(calls) == 1


@pytest.mark.usefixtures("h100")
@pytest.mark.parametrize("wide", ["w_x", "b"])
def test_the_dtype_of_w_h_decides_how_large_h_may_be(wide, monkeypatch):
  calls = count_kernels(monkeypatch)

  def run(hidden):
    params = weights(lstm, hidden, jnp.bfloat16)
    widened = getattr(params, wide).astype(jnp.float32)
    return fused(lstm, params._replace(**{wide: widened}), None, XS)

  with refuses("takes H up to 384 with products in bfloat16, got 385"):
    jax.eval_shape(partial(run, 385))
  jax.eval_shape(partial(run, 384))
  assert len(calls) == 1


@pytest.mark.usefixtures("h100")
@pytest.mark.parametrize(("size", "hidden"), [(0, H), (D, 0)])
def test_a_layer_without_inputs_or_without_units_is_refused(size, hidden):
  units = 4 * hidden
  shapes = (size, units), (hidden, units), (units,)
  params = lstm.LSTMParams(*(jnp.zeros(s, jnp.float32) for s in shapes))
  with refuses(f"takes D and H of at least 1, got w_x {[size, units]}"):
    fused(lstm, params, None, XS[..., :1].repeat(size, axis=-1))


@pytest.mark.usefixtures("h100")
@pytest.mark.parametrize("text", ["T, B", f"T, {B}", f"{T}, B"])
def test_symbolic_sizes_are_refused(text):
  shape = *export.symbolic_shape(text), D
  xs = jax.ShapeDtypeStruct(shape, jnp.float32)
  with refuses(f"takes a T and a B that are numbers, got xs {shape}"):
    export.export(jax.jit(partial(fused, lstm, weights(), None)))(xs)


@pytest.mark.usefixtures("h100")
def test_every_layer_and_direction_runs_the_kernel(monkeypatch, key):
  calls = count_kernels(monkeypatch)
  cells = lstm, gru, rnn
  params = init_stack(cells, key, D, H, bidirectional=True, dtype=jnp.float32)
  xs = normal_like(key, XS)
  run = partial(unroll_stack, cells, params, None, xs, adjoint=Explicit())
  expected = run()
  assert not calls
  assert worst(run(implementation="mosaic_gpu"), expected) < 1e-6  # float32
  # H is padded to 64, and B to 8.
  plan = Plan(units=64, rows=8, warpgroups=1, cluster=1)
  both = [(cell, back, T, plan) for cell in cells for back in (False, True)]
  assert calls == both
  with refuses("takes the cells lstm, gru and rnn, got peephole_lstm"):
    cells = lstm, peephole_lstm
    params = init_stack(cells, key, D, H, dtype=jnp.float32)
    unroll_stack(cells, params, None, xs, implementation="mosaic_gpu")
