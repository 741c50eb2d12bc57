"""One layer timed in JAX libraries: its outputs alone, and all gradients.

Before it is timed, each library must compute the same outputs and gradients as
our scan in float32, to 5 % with products in bfloat16 and to 1 % with products
in float32, which a GPU may compute in TF32. On a GPU, `benchmarks.models`
and `benchmarks.proof` allow the same errors.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import layers
from experiments.benchmarks.gpu.case import (
  ENDED,
  LayerCase,
  Prepared,
  Programs,
  Result,
  kernel_kind,
  reason,
)
from experiments.benchmarks.gpu.floor import find_device, layer_floor
from experiments.benchmarks.gpu.inputs import random_params, without_tf32
from experiments.benchmarks.gpu.peers import PEERS, REFERENCE
from experiments.benchmarks.gpu.timing import (
  check_equal,
  memory_of,
  time_calls,
)
from experiments.benchmarks.proof import Unsupported, is_installed
from experiments.benchmarks.resets import draw_starts
from experiments.benchmarks.sequences import layer_gradient
from experiments.benchmarks.tables import Row

TOLERANCE = {"bfloat16": 5e-2, "float32": 1e-2}  # by the products' dtype
MODES = "forward", "gradient"


@dataclass(frozen=True)
class Layer(LayerCase):
  """A case (see `Case`) of one layer in several libraries."""

  peers: tuple[str, ...]  # names in PEERS, ours first
  resets: bool = False  # episodes begin inside, as in a recurrent policy
  rounds: int = 11  # measurements of each program

  needs_kernels = False

  @property
  def name(self) -> str:
    """The name of the case, as it is printed."""
    return super().name + ", resets" * self.resets

  @property
  def kernels(self) -> frozenset[str]:
    """The kinds of its kernels."""
    kinds = [self._kernel(peer) for peer in self.peers]
    return frozenset(kind for kind in kinds if kind)

  def _kernel(self, peer: str) -> str | None:
    if not PEERS[peer].kernel:
      return None
    sizes = self.hidden_size, self.batch_size
    return kernel_kind(self.cell, *sizes, PEERS[peer].dtype)

  def _require(self, peer: str, left_out: frozenset[str]) -> None:
    """Raise Unsupported if a peer's package or kernel cannot be used.

    Args:
      peer: the peer's name.
      left_out: kinds of kernels that are not to run.
    """
    if not is_installed(PEERS[peer].package):
      raise Unsupported(f"{PEERS[peer].package} is not installed")
    if self._kernel(peer) in left_out:
      raise Unsupported(ENDED)

  def prepare(self, left_out: frozenset[str]) -> Prepared:
    """Return two programs for each peer, and one of the expected results."""
    rng = np.random.default_rng(0)
    weights = random_params(self.cell, self.hidden_size, self.hidden_size, rng)
    if self.cell == "gru":  # not all libraries have b_n
      weights = weights._replace(b_n=np.zeros_like(weights.b_n))
    weights = jax.tree.map(jnp.asarray, weights)
    shape = self.seq_len, self.batch_size, self.hidden_size
    xs, dhs = _normal(shape)
    starts = None
    if self.resets:
      starts = draw_starts(rng, self.seq_len, self.batch_size)

    arguments = {"forward": (xs, starts), "gradient": (xs, starts, dhs)}

    lowered: dict[str, Any] = {}
    made: dict[str, Any] = {}
    skipped: dict[str, str] = {}
    failures: list[str] = []

    def skip(peer, error):
      skipped[peer] = _explain(error)
      # A scan of ours may need more memory than there is.
      exhausted = "RESOURCE_EXHAUSTED" in skipped[peer]
      fails = PEERS[peer].ours and not exhausted
      if PEERS[peer].kernel:  # it fails unless it is refused for its size
        fails = self._kernel(peer) is not None
      if fails and not isinstance(error, Unsupported):
        failures.append(f"{self.name}: {peer}: {skipped[peer]}")

    for peer in self.peers:
      try:
        self._require(peer, left_out)
        layer = PEERS[peer].make(self.cell, weights, starts)
        functions = self._functions(peer, weights, layer)
        lowered |= {
          f"{peer}: {mode}": jax.jit(f).lower(layer.params, *arguments[mode])
          for mode, f in zip(MODES, functions, strict=True)
        }
        made[peer] = layer
      except Exception as error:  # a library may raise anything
        skip(peer, error)
    layer = PEERS[REFERENCE].make(self.cell, weights, starts)
    forward, gradient = self._functions(REFERENCE, weights, layer)

    def both(weights, xs, starts, dhs):
      results = gradient(weights, xs, starts, dhs)
      return {"forward": forward(weights, xs, starts), "gradient": results}

    everything = weights, *arguments["gradient"]
    lowered["expected"] = jax.jit(without_tf32(both)).lower(*everything)

    def check(programs: Programs, errors: dict[str, str], expected: Any):
      """Return the calls of each mode that compute what is expected."""
      calls: dict[str, dict[str, Callable]] = {mode: {} for mode in MODES}
      for peer, layer in made.items():
        checked = {}
        try:
          for mode in MODES:
            name = f"{peer}: {mode}"
            if name in errors:
              raise ValueError(errors[name])
            call = partial(programs[name], layer.params, *arguments[mode])
            wanted = expected[mode]
            if mode == "gradient":
              d_weights, dxs = wanted
              wanted = layer.convert(d_weights), dxs
            check_equal(call(), wanted, TOLERANCE[PEERS[peer].dtype])
            checked[mode] = call
        except Exception as error:  # such as a kernel's, or too little memory
          skip(peer, error)
          continue
        for mode, call in checked.items():
          calls[mode][peer] = call
      return calls

    def finish(programs: Programs, errors: dict[str, str]) -> Result:
      if "expected" in errors:
        raise ValueError(errors["expected"])
      # Nothing here holds the expected arrays, so that they are freed before
      # the timing.
      calls = check(programs, errors, programs["expected"](*everything))
      rows = [
        row for mode in MODES for row in self._time(mode, calls[mode], programs)
      ]
      return Result(rows, skipped, failures)

    return Prepared(lowered, finish, Result([], skipped, failures))

  def _functions(
    self, peer: str, weights: Any, layer: layers.Layer
  ) -> tuple[Callable, Callable]:
    """Return the functions of a layer's outputs and of its gradient.

    The starts of episodes are an argument: if they were constants, XLA would
    fold what depends on them while it compiles, which takes long. `Peer.make`
    needs the starts, so a layer with resets is made again inside these
    functions, from the starts that JAX traces.

    Returns:
      (apply, gradient): apply(params, xs, starts) -> hs, and
      gradient(params, xs, starts, dhs) -> (d_params, dxs).
    """

    def apply(params, xs, starts):
      traced = layer
      if starts is not None:
        traced = PEERS[peer].make(self.cell, weights, starts)
      return traced.apply(params, xs)

    def gradient(params, xs, starts, dhs):
      traced = layer._replace(apply=lambda p, x: apply(p, x, starts))
      return layer_gradient(traced)(params, xs, dhs)

    return apply, gradient

  def _time(
    self, mode: str, calls: dict[str, Callable], programs: Programs
  ) -> list[Row]:
    """Return a row for each library."""
    times = time_calls(calls, jax.block_until_ready, self.rounds, self.seq_len)
    return [
      self._row(peer, mode) | time | memory_of(programs[f"{peer}: {mode}"])
      for peer, time in times.items()
    ]

  def _row(self, name: str, mode: str) -> Row:
    """Return the entries of a row that are not measured."""
    peer = PEERS[name]
    device = find_device(jax.devices()[0].device_kind)
    part = "gpu policy" if self.resets else "gpu layer"
    return self.labels(part, mode) | {
      "peer": name,
      "operands": peer.operands,
      "floor_us": layer_floor(
        device,
        self.cell,
        mode == "gradient",
        peer.operands,
        *self.sizes,
        hs_bytes=peer.hs_bytes,
      ),
    }


@partial(jax.jit, static_argnums=0)
def _normal(shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
  """Return (xs, dhs), [T, B, H] each, drawn on the device, to copy nothing."""
  keys = jax.random.split(jax.random.key(0))
  xs, dhs = (jax.random.normal(key, shape, jnp.float32) for key in keys)
  return xs, dhs


def _explain(error: Exception) -> str:
  """Return why a peer is skipped, in one line."""
  return str(error) if isinstance(error, Unsupported) else reason(error)
