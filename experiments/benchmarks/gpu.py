"""The part `gpu`: the GPU kernels checked, and timed beside other programs.

A check compares a kernel with the scan: values and every gradient. The
tolerances are below 1 %, so that an array that is 1.01 times what it should be
fails.

bfloat16: kernel and scan round the same operands, but the kernel's tanh is an
instruction with an error of 2⁻¹¹, after which one h in ten or so is rounded to
the neighbouring number, 2⁻⁸ away. With such a tanh the interpreted kernels
differ from the scan by up to 1.6e-3 (lstm), 1.4e-3 (gru) and 2.7e-3 (rnn).

float32: the kernel's operands are TF32, with 10 bits of mantissa, and those of
the scan are float32. Operands cut off after 10 bits, in a recurrence on the
CPU, give errors of up to 1.1e-3, for T from 24 to 512.

Policies (layers with resets), language models and layers are the problems of
the other parts. Here the program of a name is in bfloat16 or float32 if the
name ends so, and in TF32 otherwise. A program is timed only if its own results
are right. If one of ours is not, that is a failure, as a check that fails is;
the other cases run all the same.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import models, sequences
from experiments.benchmarks.floor import (
  GATES,
  find_device,
  layer_floor,
  training_step_floor,
)
from experiments.benchmarks.layers import (
  LAYERS,
  Layer,
  autodiff,
  flax_scan,
  ours,
)
from experiments.benchmarks.tables import Found, Row
from experiments.benchmarks.timing import (
  Makers,
  Peer,
  Unsupported,
  compare,
  worst_error,
)
from experiments.trainer.config import CELLS
from lstm_jax.mosaic_gpu import limits
from lstm_jax.sequence import unroll
from lstm_jax.sequence.implementation import COUNTS, VERSIONS, VERSIONS_TEXT

# Each section of cases has a time, in seconds since the start, after which no
# case of it begins. With the program's start and the figure, less than 8
# minutes. Most of the time of a case is expected to go to the compiler. Nobody
# has measured that on a device yet, so the last cases of a section, the least
# important ones, may be left out; the output names them.
UNTIL = {"checks": 200.0, "policies": 250.0, "models": 300.0, "layers": 440.0}
NO_TIME = "no time is left"
SECONDS = 0.005  # aim of a measurement
THREADS = 12  # that compile
INPUT_SIZE = 40  # D of the checks, different from every H
CHECK_TOLERANCE = {"bfloat16": 5e-3, "float32": 2e-3}
TOLERANCE = {"bfloat16": 5e-2, "TF32": 1e-2, "float32": 1e-4}  # by operands

LAYER: Row = {"hidden_size": 128, "seq_len": 128, "batch_size": 1024}
HIDDEN_SIZES = 64, 128, 256, 512, 1024
BATCH_SIZES = 16, 128, 1024, 4096
TOO_LARGE = 1024, 4096  # (H, B): some libraries need more than 80 GB
AGAINST_ALL = [  # (cell, H, B): with LIBRARIES too
  ("lstm", 128, 1024),
  ("lstm", 256, 128),
  ("lstm", 512, 128),
  ("gru", 128, 1024),
  ("lstm", 64, 16),
  ("lstm", 1024, 1024),
  ("rnn", 128, 1024),
]
MODELS = [  # (cell, H, dtype)
  ("lstm", 128, "bfloat16"),
  ("lstm", 512, "bfloat16"),
  ("gru", 512, "bfloat16"),
  ("lstm", 128, "float32"),
  ("lstm", 512, "float32"),
]
# Names of programs (`maker_of`), ours first.
OURS = "kernel bfloat16", "scan bfloat16", "kernel", "scan"
TORCH = "pytorch bfloat16", "pytorch TF32", "pytorch float32"
ALWAYS = *OURS, "autodiff", "flax linen", *TORCH
LIBRARIES = "haiku", "equinox", "jax.experimental.rnn", "flax nnx"
POLICY = (
  *("kernel bfloat16", "scan bfloat16", "autodiff bfloat16"),
  *("flax scan bfloat16", "kernel", "scan", "flax scan", "equinox"),
)


def operands_of(name: str) -> str:
  """Return what a program of this name multiplies, a key of TOLERANCE.

  Where a program has float32 operands, a GPU rounds them to TF32 by default.
  """
  last = name.rpartition(" ")[2]
  return last if last in TOLERANCE else "TF32"


BFLOAT16: dict[str, Any] = {"compute_dtype": jnp.dtype("bfloat16")}
KERNEL: dict[str, Any] = {"implementation": "mosaic_gpu"}
JAX_LAYERS: dict[str, tuple[Callable[[str, Any], Layer], str]] = {
  "kernel bfloat16": (partial(ours, **KERNEL, **BFLOAT16), "jax"),
  "scan bfloat16": (partial(ours, **BFLOAT16), "jax"),
  "autodiff bfloat16": (partial(autodiff, **BFLOAT16), "jax"),
  "flax scan bfloat16": (partial(flax_scan, dtype=jnp.bfloat16), "flax"),
  "kernel": (partial(ours, **KERNEL), "jax"),
  "scan": (ours, "jax"),
  "autodiff": (autodiff, "jax"),
  "flax scan": (flax_scan, "flax"),
  **{name: LAYERS[name] for name in ("flax linen", *LIBRARIES)},
}


def maker_of(name: str) -> tuple[Callable[..., Peer], str]:
  """Return the maker of a layer's program, and the package that it needs."""
  operands = operands_of(name)
  if name in JAX_LAYERS:
    make, package = JAX_LAYERS[name]
    return sequences.jax_peer(name, make, TOLERANCE[operands]), package
  make_torch = partial(
    sequences.pytorch,
    name=name,
    dtype="bfloat16" if operands == "bfloat16" else "float32",
    tf32=operands == "TF32",
    allowed=TOLERANCE[operands],
  )
  return make_torch, "torch"


class Check(NamedTuple):
  """A kernel that is compared with the scan, for several seeds."""

  cell: str
  hidden_size: int
  seq_len: int
  batch_size: int
  dtype: str  # of the products' operands; the weights are float32
  masked: bool = False  # with masks and resets
  reverse: bool = False
  seeds: int = 3

  @property
  def name(self) -> str:
    """The name of the check, as it is printed."""
    options = ", masks and resets" * self.masked + ", reverse" * self.reverse
    return f"{_title(*self[:4])}, {self.dtype}{options}"


# (cell, H, dtype) of layers whose units one thread block computes, and of those
# whose units are divided over a cluster of blocks (see `mosaic_gpu.limits`).
ONE_BLOCK = [
  ("lstm", 128, "bfloat16"),
  ("gru", 128, "bfloat16"),
  ("rnn", 256, "bfloat16"),
  ("lstm", 64, "float32"),
  ("gru", 128, "float32"),
  ("rnn", 192, "float32"),
]
CLUSTERS = [
  ("lstm", 256, "bfloat16"),
  ("gru", 512, "bfloat16"),
  ("rnn", 512, "bfloat16"),
  ("lstm", 192, "float32"),
  ("gru", 256, "float32"),
  ("rnn", 512, "float32"),
  ("lstm", 384, "bfloat16"),
]
CHECKS = [
  *(
    Check(cell, hidden_size, 24, 40, dtype, masked=both, reverse=both)
    for both in (False, True)
    for cell, hidden_size, dtype in (*ONE_BLOCK, *CLUSTERS)
  ),
  # Batches so large that a block has 16 or 32 sequences, not 8.
  Check("lstm", 128, 24, 1100, "bfloat16"),
  Check("gru", 128, 24, 2200, "bfloat16", masked=True),
  Check("rnn", 256, 24, 2200, "bfloat16"),
  Check("lstm", 256, 24, 300, "bfloat16"),
  # Sizes that are padded.
  Check("lstm", 100, 24, 13, "bfloat16", masked=True),
  Check("gru", 200, 24, 13, "float32", reverse=True),
  # Long sequences.
  *(
    Check(cell, hidden_size, 512, 16, dtype)
    for cell, hidden_size, dtype in (*ONE_BLOCK[:2], *CLUSTERS[:2], CLUSTERS[3])
  ),
]


def measure(sizes: Row, rounds: int) -> Iterator[Found]:
  """Check the kernels on this machine's GPU, and time them.

  Args:
    sizes: hidden_size, seq_len and batch_size of one layer, which is timed for
      each cell in place of the grid of layers; empty for the grid.
    rounds: measurements of each program.
  """
  begin = time.monotonic()
  for section, cases in sections(sizes, rounds).items():
    for name, run in cases:
      if time.monotonic() - begin > UNTIL[section]:
        yield Found([], {name: NO_TIME})
        continue
      try:
        found = run()
      except Exception as error:  # a failure of this case, not of all
        found = Found([], {}, [f"{name}: {reason(error)}"])
      yield found


# (its name, what runs it)
Case = tuple[str, Callable[[], Found]]


def sections(sizes: Row, rounds: int) -> dict[str, list[Case]]:
  """Return the cases of each section, the most important first.

  The arguments are those of `measure`.
  """
  layers: list[Case] = []
  sizes = {name: sizes[name] for name in LAYER if name in sizes}
  for cell, hidden_size, batch_size in layer_sizes(sizes):
    size = LAYER | sizes | {"hidden_size": hidden_size}
    size["batch_size"] = batch_size
    peers: tuple[str, ...] = ALWAYS
    if sizes or (cell, hidden_size, batch_size) in AGAINST_ALL:
      peers += LIBRARIES
    layers += layer_cases(cell, size, peers, rounds)
  return {
    "checks": [(case.name, partial(check, case)) for case in CHECKS],
    "policies": [
      case
      for cell in ("gru", "lstm")
      for case in layer_cases(cell, LAYER, POLICY, rounds, resets=True)
    ],
    "models": [
      (f"model, {cell} H {size}, {dtype}", partial(time_model, *case, rounds))
      for case in MODELS
      for cell, size, dtype in [case]
    ],
    "layers": layers,
  }


def layer_sizes(sizes: Row) -> list[tuple[str, int, int]]:
  """Return (cell, H, B) of every layer; those with a kernel come first."""
  if sizes:
    size = LAYER | sizes
    return [(c, size["hidden_size"], size["batch_size"]) for c in GATES]
  grid = [
    (cell, hidden_size, batch_size)
    for cell in GATES
    for hidden_size in HIDDEN_SIZES
    for batch_size in BATCH_SIZES
    if (hidden_size, batch_size) != TOO_LARGE
  ]

  def has_none(case: tuple[str, int, int]) -> bool:
    cell, hidden_size, batch_size = case
    return not has_kernel(cell, hidden_size, batch_size, "bfloat16")

  grid.sort(key=has_none)
  return [*AGAINST_ALL, *(case for case in grid if case not in AGAINST_ALL)]


def layer_cases(
  cell: str,
  sizes: Row,
  peers: tuple[str, ...],
  rounds: int,
  resets: bool = False,
) -> list[Case]:
  """Return the cases of a layer's outputs alone, and of all its gradients."""
  return [
    (
      _title(cell, *sizes.values()),
      partial(time_layer, cell, backward, sizes, peers, rounds, resets),
    )
    for backward in (False, True)
  ]


def _title(cell: str, hidden_size: int, seq_len: int, batch_size: int) -> str:
  return f"{cell} H {hidden_size}, T {seq_len}, B {batch_size}"


def has_kernel(
  cell: str, hidden_size: int, batch_size: int, dtype: str
) -> bool:
  """Return whether H is small enough for a kernel."""
  size = jnp.dtype(dtype).itemsize
  sizes = hidden_size, batch_size, size
  return limits.divide(COUNTS[CELLS[cell]], *sizes) is not None


def reason(error: Exception) -> str:
  """Return an error's class and the first line of its message."""
  lines = [*str(error).strip().splitlines(), ""]
  return f"{type(error).__name__}: {lines[0][:200]}"


def check_device() -> None:
  """Raise ValueError unless the first device can run the kernels."""
  device = jax.devices()[0]
  known = getattr(device, "compute_capability", None) == "9.0"
  first, last = VERSIONS
  if not known or not first <= jax.__version_info__ < last:
    raise ValueError(
      f"--part=gpu needs an H100 or H200 and jax {VERSIONS_TEXT} with its CUDA "
      f"packages, got {device.device_kind} and jax {jax.__version__}"
    )


def time_layer(
  cell: str,
  backward: bool,
  sizes: Row,
  peers: tuple[str, ...],
  rounds: int,
  resets: bool = False,
) -> Found:
  """Time a layer's outputs alone, or all gradients, of these programs.

  Kernels are left out where there is none for these sizes.
  """
  size = sizes["hidden_size"], sizes["batch_size"]
  makers = {
    name: maker_of(name)
    for name in peers
    if not name.startswith("kernel")
    or has_kernel(cell, *size, "bfloat16" if "bf" in name else "float32")
  }
  problem = sequences.make_problem(cell, backward, **sizes, resets=resets)
  part = "gpu policy" if resets else "gpu layer"
  labels = {"part": part, "cell": cell, "backward": backward} | sizes

  def floor(device, name):
    operands = operands_of(name)
    number_bytes = 2 if name == "pytorch bfloat16" else 4
    return layer_floor(
      device, cell, backward, operands, **sizes, number_bytes=number_bytes
    )

  return _timed(labels, makers, rounds, problem, floor)


def time_model(cell: str, hidden_size: int, dtype: str, rounds: int) -> Found:
  """Time a language model's Adam step, with a kernel and with a scan."""
  sizes = {"hidden_size": hidden_size, "seq_len": 64, "batch_size": 32}
  vocabulary_size = 65  # of Tiny Shakespeare, in characters
  problem = models.make_problem(
    **sizes,
    num_layers=1,
    vocabulary_size=vocabulary_size,
    dtype=dtype,
    cell=cell,
  )
  ending = " bfloat16" * (dtype == "bfloat16")
  makers: Makers = {"scan" + ending: (models.lstm_jax, "jax")}
  if has_kernel(cell, hidden_size, sizes["batch_size"], dtype):
    kernel = partial(models.lstm_jax, **KERNEL)
    makers = {"kernel" + ending: (kernel, "jax"), **makers}
  num_params = sum(p.size for p in jax.tree.leaves(problem.params))

  def floor(device, name):
    counts = num_params, vocabulary_size
    return training_step_floor(
      device, cell, operands_of(name), *counts, **sizes
    )

  labels = {"part": "gpu model", "cell": cell} | sizes | {"dtype": dtype}
  return _timed(labels, makers, rounds, problem, floor)


def _timed(
  labels: Row,
  makers: Makers,
  rounds: int,
  problem: Any,
  floor: Callable[[Any, str], float],
) -> Found:
  """Time the peers of a problem; one that cannot be timed is skipped.

  That is also a failure if its gradient is derived by hand, unless it needs
  more memory than there is.

  Args:
    labels: the entries of a row that name the case.
    makers: of the peers.
    rounds: measurements of each.
    problem: the argument of each maker.
    floor: (device, name of a peer) -> its floor, in milliseconds.
  """
  failures = []

  def guarded(name, make):
    def attempt(problem):
      try:
        return make(problem)
      except Unsupported:
        raise
      except Exception as error:  # a library may raise anything
        why = reason(error)
        by_hand = name.startswith(("kernel", "scan"))
        if by_hand and "RESOURCE_EXHAUSTED" not in why:
          case = ", ".join(map(str, labels.values()))
          failures.append(f"{case}: {name}: {why}")
        raise Unsupported(why) from error

    return attempt

  guards = {n: (guarded(n, make), needs) for n, (make, needs) in makers.items()}
  rows, skipped = compare(
    guards, rounds, problem, seconds=SECONDS, threads=THREADS
  )
  device = find_device(jax.devices()[0].device_kind)
  for row in rows:
    row["compile_s"] = None  # several were compiled at the same time
    row["operands"] = operands_of(row["peer"])
    row["floor_ms"] = floor(device, row["peer"])
  return Found([labels | row for row in rows], skipped, failures)


class Inputs(NamedTuple):
  """What a layer and its gradient depend on."""

  params: Any
  state: Any  # before the first step, [B, H] each
  xs: Any  # [T, B, D]
  mask: Any  # bool [T, B], False at steps that are left out; or None
  reset: Any  # bool [T, B], True at steps that begin with zero state; or None
  d_last: Any  # cotangent of the last state, [B, H] each
  d_hs: Any  # cotangent of the outputs, [T, B, H]


class Outputs(NamedTuple):
  """All that a layer and its gradient compute."""

  last: Any  # the last state, [B, H] each
  hs: Any  # [T, B, H]
  d_params: Any
  d_state: Any
  d_xs: Any  # [T, B, D]


def check(case: Check) -> Found:
  """Compare a kernel with the scan: the last state, outputs and gradients."""
  seeds = [draw_inputs(case, seed) for seed in range(case.seeds)]
  kernel, scan = (jax.jit(layer_program(case, made)) for made in (True, False))
  error, array = max(worst_error(kernel(each), scan(each)) for each in seeds)
  allowed = CHECK_TOLERANCE[case.dtype]
  row = {
    "part": "gpu check",
    "peer": case.name,
    "error": error if np.isfinite(error) else None,  # JSON has no inf
    "allowed": allowed,
    "array": array,
  }
  text = f"{array} differs by {error:.1e}, allowed is {allowed:.0e}"
  failures = [] if error <= allowed else [f"{case.name}: {text}"]
  return Found([row], {}, failures)


def draw_inputs(case: Check, seed: int) -> Inputs:
  """Return random inputs, as NumPy arrays.

  Weights and biases are uniform between ±1/√H, as PyTorch's are. With masks and
  resets, 30 % of the steps are left out, and 10 % begin with a zero state.
  """
  rng = np.random.default_rng(seed)
  module, bound = CELLS[case.cell], case.hidden_size**-0.5
  sizes = INPUT_SIZE, case.hidden_size
  steps = case.seq_len, case.batch_size

  def normal(shape):
    return rng.standard_normal(shape, np.float32)

  def init():
    params = module.init(jax.random.key(0), *sizes, jnp.float32)
    return params, module.initial_state(params, (case.batch_size,))

  params, state = jax.eval_shape(init)
  return Inputs(
    jax.tree.map(
      lambda x: rng.uniform(-bound, bound, x.shape).astype(np.float32), params
    ),
    jax.tree.map(lambda x: normal(x.shape), state),
    normal((*steps, INPUT_SIZE)),
    rng.random(steps) < 0.7 if case.masked else None,
    rng.random(steps) < 0.1 if case.masked else None,
    jax.tree.map(lambda x: normal(x.shape), state),
    normal((*steps, case.hidden_size)),
  )


def layer_program(case: Check, kernel: bool) -> Callable[[Inputs], Outputs]:
  """Return the program of a layer and all of its gradients.

  In float32 the scan computes products without TF32.
  """

  def program(inputs: Inputs) -> Outputs:
    def layer(params, state, xs):
      return unroll(
        CELLS[case.cell],
        params,
        state,
        xs,
        mask=inputs.mask,
        reset=inputs.reset,
        reverse=case.reverse,
        **(BFLOAT16 if case.dtype == "bfloat16" else {}),
        **(KERNEL if kernel else {}),
      )

    given = inputs.params, inputs.state, inputs.xs
    with jax.default_matmul_precision(None if kernel else "highest"):
      (last, hs), pull_back = jax.vjp(layer, *given)
      return Outputs(last, hs, *pull_back((inputs.d_last, inputs.d_hs)))

  return program
