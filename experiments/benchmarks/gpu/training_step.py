"""The training step of a language model, with scans and with kernels.

The model is the benchmark's: an embedding, one layer and a readout, trained by
Adam. Before it is timed, its loss and gradient must be those of the scan in
float32, to the tolerances of `gpu.layers`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmarks.gpu.case import (
  ENDED,
  KernelCase,
  Prepared,
  Result,
  compute_dtype,
  operands_of,
  reason,
)
from experiments.benchmarks.gpu.floor import find_device, training_step_floor
from experiments.benchmarks.gpu.inputs import without_tf32
from experiments.benchmarks.gpu.layers import TOLERANCE
from experiments.benchmarks.gpu.timing import (
  check_equal,
  memory_of,
  time_calls,
)
from experiments.benchmarks.models import our_loss
from experiments.trainer.config import CELLS
from lstm_jax.language import ModelConfig, language_model

LEARNING_RATE = 1e-3
IMPLEMENTATIONS = {"kernel": "mosaic_gpu", "scan": None}


@dataclass(frozen=True)
class TrainingStep(KernelCase):
  """A language model's training step, by kernel and by scan."""

  vocabulary_size: int = 65  # of Tiny Shakespeare, in characters
  rounds: int = 11

  needs_kernels = False

  @property
  def name(self) -> str:
    """The name of the case, as it is printed."""
    return f"language model, {super().name}"

  def prepare(self, left_out: frozenset[str]) -> Prepared:
    """Return for each implementation the gradient and the training step.

    The program "expected" is the gradient that the others must equal.
    """
    params = self._model(None, None).init(jax.random.key(0))
    optimizer = optax.adam(LEARNING_RATE)
    opt_state = optimizer.init(params)
    rng = np.random.default_rng(0)
    shape = self.seq_len + 1, self.batch_size
    text = rng.integers(0, self.vocabulary_size, shape).astype(np.int32)
    batch = jnp.asarray(text[:-1]), jnp.asarray(text[1:])
    lowered: dict[str, Any] = {}
    skipped: dict[str, str] = {}
    failures: list[str] = []

    def skip(name, error):
      skipped[name] = reason(error)
      if name == "scan" or self.kernels:  # a size may have no kernel
        failures.append(f"{self.name}: {name}: {skipped[name]}")

    for name, implementation in IMPLEMENTATIONS.items():
      if name == "kernel" and self.kernels & left_out:
        skipped[name] = ENDED
        continue
      loss = our_loss(self._model(self.dtype, implementation))
      gradient = jax.value_and_grad(loss)

      def train_step(params, opt_state, *batch, gradient=gradient):
        value, d_params = gradient(params, *batch)
        updates, opt_state = optimizer.update(d_params, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

      try:
        first = jax.jit(gradient).lower(params, *batch)
        step = jax.jit(train_step, donate_argnums=(0, 1))
        lowered[f"{name}: step"] = step.lower(params, opt_state, *batch)
        lowered[f"{name}: gradient"] = first
      except Exception as error:  # the kernel's, in lowering
        skip(name, error)
    expected = jax.value_and_grad(our_loss(self._model(None, None)))
    lowered["expected"] = jax.jit(without_tf32(expected)).lower(params, *batch)

    def finish(programs, errors):
      if "expected" in errors:
        raise ValueError(errors["expected"])
      wanted = programs["expected"](params, *batch)
      calls: dict[str, Callable] = {}
      for name in IMPLEMENTATIONS:
        if name in skipped:
          continue
        problem = [e for key, e in errors.items() if key.startswith(name)]
        try:
          if problem:
            raise ValueError(problem[0])
          found = programs[f"{name}: gradient"](params, *batch)
          check_equal(found, wanted, TOLERANCE[self.dtype])
        except Exception as error:  # such as a kernel's, or too little memory
          skip(name, error)
          continue
        state = jax.tree.map(jnp.copy, (params, opt_state))
        calls[name] = _training(programs[f"{name}: step"], state, batch)
      times = time_calls(
        calls, jax.block_until_ready, self.rounds, self.seq_len
      )
      rows = [
        self._row(name, jax.tree.leaves(params))
        | row
        | memory_of(programs[f"{name}: step"])
        for name, row in times.items()
      ]
      return Result(rows, skipped, failures)

    return Prepared(lowered, finish, Result([], skipped, failures))

  def _model(self, dtype: str | None, implementation: Any) -> Any:
    """Return the model; dtype None is float32, implementation None a scan."""
    config = ModelConfig(
      cell=CELLS[self.cell],
      hidden_size=self.hidden_size,
      compute_dtype=compute_dtype(dtype or "float32"),
      implementation=implementation,
    )
    return language_model(config, self.vocabulary_size)

  def _row(self, peer: str, params: list[jax.Array]) -> dict[str, Any]:
    """Return a row's sizes and its lower bound, in µs per time step."""
    device = find_device(jax.devices()[0].device_kind)
    num_params = sum(p.size for p in params)
    operands = operands_of(self.dtype)
    return {
      "part": "gpu model",
      "cell": self.cell,
      "hidden_size": self.hidden_size,
      "seq_len": self.seq_len,
      "batch_size": self.batch_size,
      "dtype": self.dtype,
      "peer": peer,
      "operands": operands,
      "floor_us": training_step_floor(
        device,
        self.cell,
        operands,
        num_params,
        self.vocabulary_size,
        *self.sizes,
      ),
    }


def _training(program: Any, state: tuple, batch: tuple) -> Callable[[], Any]:
  """Return a function that makes the next training step at every call.

  The weights and the optimizer's state are donated to the step that replaces
  them.
  """
  params, opt_state = state

  def step():
    nonlocal params, opt_state
    params, opt_state, value = program(params, opt_state, *batch)
    return value

  return step
