"""The parts of the benchmark: which cases each measures, and for which peers.

A part yields what it finds of each case: the rows of its results (sizes, peer,
and times, bytes or launches) and the peers that it skips, and why.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from experiments.benchmarks import (
  gpu,
  launches,
  models,
  original,
  samplers,
  sequences,
)
from experiments.benchmarks.tables import Found, Row
from experiments.benchmarks.timing import Makers, compare
from lstm_jax.sequence.in_place import GPU_STEPS

Measure = Callable[
  [Row, int], Iterator[Found]
]  # (sizes, rounds) -> its results
# MODEL holds the default sizes of a case of the part model. MODELS lists the
# cases that are measured, each by the sizes in which it differs from MODEL. In
# the same way, LSTMS, OTHERS and LINEAR belong to LAYER, POLICIES to POLICY.
MODEL: Row = {
  "hidden_size": 512,
  "seq_len": 64,
  "batch_size": 32,
  "num_layers": 1,
  "vocabulary_size": 65,  # of Tiny Shakespeare, in characters
  "dtype": "float32",
}
MODELS: list[Row] = [
  *({"hidden_size": size} for size in (128, 256, 512, 1024)),
  *({"hidden_size": size, "dtype": "bfloat16"} for size in (512, 1024)),
  {"num_layers": 2},
  {"vocabulary_size": 10_000},
]
LAYER: Row = {"hidden_size": 256, "seq_len": 64, "batch_size": 32}
LSTMS: list[Row] = [
  *({"hidden_size": size} for size in (32, 128, 256, 512, 1024)),
  {"hidden_size": 128, "batch_size": 1},
  {"batch_size": 256},
  {"seq_len": 1024},
]
OTHERS: list[Row] = [  # of the GRU and the RNN
  {"hidden_size": size} for size in (128, 256, 512)
]
POLICY: Row = {"hidden_size": 128, "seq_len": 128, "batch_size": 1024}
POLICIES: list[Row] = [{"batch_size": size} for size in (256, 1024, 4096)]
LINEAR: list[Row] = [
  *({"seq_len": steps} for steps in (64, 256, 1024)),
  {"seq_len": 4096, "batch_size": 8},
  *({"seq_len": steps, "batch_size": 1} for steps in (1024, 16_384)),
]
MEMORY: Row = LAYER | {"hidden_size": 512, "seq_len": 1024}
LAUNCHES: Row = LAYER | {"hidden_size": 512}
SAMPLE_LENGTH = 500  # characters
SAMPLING: list[Row] = [
  {"hidden_size": 512, "num_samples": 1},
  {"hidden_size": 512, "num_samples": 64},
]
STEPS = 64  # training steps in a call, of a program of the part original
# {"part" of the rows: (size, its values)}, all measured by the part growth.
GROWTH: dict[str, tuple[str, tuple[int, ...]]] = {
  "growth in steps": ("seq_len", (16, 64, 256, 1024)),
  "growth in batch": ("batch_size", (1, 8, 32, 128)),
  "growth in hidden": ("hidden_size", (64, 128, 256, 512, 1024)),
  "growth in layers": ("num_layers", (1, 2, 4)),
}
GROWTH_PEERS = "lstm_jax", "flax linen", "pytorch", "products alone"


def _cases(sizes: Row, defaults: Row, cases: Iterable[Row]) -> list[Row]:
  """Return all sizes of each case; if some are given, of one case with them.

  Args:
    sizes: those that the user gives, of any part.
    defaults: of the part.
    cases: sizes that differ from the defaults.
  """
  given = {name: size for name, size in sizes.items() if name in defaults}
  return [defaults | case for case in ([given] if given else cases)]


def _timed(labels: Row, makers: Makers, rounds: int, *problem: Any) -> Found:
  """Time the peers of a problem; return rows that begin with the labels."""
  rows, skipped = compare(makers, rounds, *problem)
  return Found([labels | row for row in rows], skipped)


def model_part(sizes: Row, rounds: int) -> Iterator[Found]:
  """Time the Adam step of a language model."""
  for case in _cases(sizes, MODEL, MODELS):
    problem = models.make_problem(**case)
    yield _timed({"part": "model"} | case, models.models(), rounds, problem)


def growth_part(sizes: Row, rounds: int) -> Iterator[Found]:
  """Time the Adam step of a language model as one size grows."""
  makers = models.models()
  makers = {name: makers[name] for name in GROWTH_PEERS}
  for part, (size, values) in GROWTH.items():
    for value in values:
      case = MODEL | {"hidden_size": 256, size: value}
      problem = models.make_problem(**case)
      yield _timed({"part": part} | case, makers, rounds, problem)


def _layers(
  part: str, cell: str, makers: Makers, cases: Iterable[Row], rounds: int
) -> Iterator[Found]:
  """Time one layer: first its outputs alone, then all gradients."""
  resets = part == "resets"
  for case in cases:
    for backward in (False, True):
      problem = sequences.make_problem(cell, backward, **case, resets=resets)
      labels: Row = {"part": part} if resets else {"part": part, "cell": cell}
      labels |= {"backward": backward} | case
      yield _timed(labels, makers, rounds, problem)


def layer_part(sizes: Row, rounds: int) -> Iterator[Found]:
  """Time a layer of each cell in each library."""
  for cell, own in (("lstm", LSTMS), ("gru", OTHERS), ("rnn", OTHERS)):
    cases = _cases(sizes, LAYER, own)
    yield from _layers("layer", cell, sequences.sequences(), cases, rounds)


def linear_part(sizes: Row, rounds: int) -> Iterator[Found]:
  """Time cells whose recurrence is linear, as `layer_part` does."""
  for cell in ("min_gru", "min_lstm", "lru"):
    cases = _cases(sizes, LAYER, LINEAR)
    yield from _layers("linear", cell, sequences.linear(), cases, rounds)


def resets_part(sizes: Row, rounds: int) -> Iterator[Found]:
  """Time the GRU of a recurrent policy; episodes begin inside its sequences."""
  cases = _cases(sizes, POLICY, POLICIES)
  return _layers("resets", "gru", sequences.reset_peers(), cases, rounds)


def sampling_part(sizes: Row, rounds: int) -> Iterator[Found]:
  """Time the sampling of texts."""
  for case in SAMPLING:
    problem = samplers.make_problem(length=SAMPLE_LENGTH, **case)
    labels = {"part": "sampling"} | case
    found = _timed(labels, samplers.samplers(), rounds, problem)
    for row in found.rows:
      tokens = SAMPLE_LENGTH * case["num_samples"]
      row["tokens_per_second"] = 1e3 * tokens / row["median_ms"]
    yield found


def memory_part(sizes: Row, rounds: int) -> Iterator[Found]:
  """Measure the peak memory of an LSTM layer's gradients."""
  for case in _cases(sizes, MEMORY, [{}]):
    rows, skipped = sequences.measure_memory(case)
    yield Found([{"part": "memory"} | case | row for row in rows], skipped)


def launches_part(sizes: Row, rounds: int) -> Iterator[Found]:
  """Count the kernel launches per time step of a layer's gradient.

  It is compiled for an H100.
  """
  (case,) = _cases(sizes, LAUNCHES, [{}])
  for cell in ("lstm", "gru"):
    for dtype in launches.DTYPES:
      rows, skipped = launches.count(cell, case, dtype)
      labels = {"part": "launches", "cell": cell} | case | {"dtype": dtype}
      yield Found([labels | row for row in rows], skipped)


def original_part(sizes: Row, rounds: int) -> Iterator[Found]:
  """Time the training step of an LSTM like min-char-rnn, in JAX and in NumPy.

  One JAX program makes one training step per call, another makes STEPS. Each is
  timed 10 · rounds times, since its steps are short.
  """
  makers: Makers = {
    "lstm_jax": (original.compiled_program(1), "jax"),
    f"lstm_jax, {STEPS} a call": (original.compiled_program(STEPS), "jax"),
    "numpy": (original.numpy_program, "numpy"),
  }
  found = _timed({"part": "original"}, makers, 10 * rounds)
  for row in found.rows:
    count = STEPS if "a call" in row["peer"] else 1
    row["median_ms"] /= count
    row["quartiles_ms"] = [ms / count for ms in row["quartiles_ms"]]
    row["ratio_to_ours"] = row["median_ms"] / found.rows[0]["median_ms"]
    row["tokens_per_second"] = 1e3 * original.SEQ_LEN / row["median_ms"]
  yield found


class Part(NamedTuple):
  """A part of the benchmark."""

  measure: Measure
  # The sizes that a user may give, with their defaults. If one is given, the
  # part measures only the case of these sizes.
  sizes: Row
  timed: bool = True  # whether there are times to compare
  default: bool = True  # whether it is measured without --part


PARTS: dict[str, Part] = {
  "model": Part(model_part, MODEL),
  "layer": Part(layer_part, LAYER),
  "linear": Part(linear_part, LAYER),
  "resets": Part(resets_part, POLICY),
  "sampling": Part(sampling_part, {}),
  "memory": Part(memory_part, MEMORY, timed=False),
  "launches": Part(launches_part, LAUNCHES, timed=False, default=False),
  "original": Part(original_part, {}),
  "growth": Part(growth_part, {}),
  "gpu": Part(gpu.measure, gpu.LAYER, default=False),
}


def check(parts: Iterable[str], sizes: Row) -> None:
  """Raise ValueError if a part cannot be measured here, or with these sizes.

  A size must belong to one of the chosen parts, and the part gpu needs its
  device. The part launches would count wrongly for some T: it reads compiled
  loops, of which an iteration of ours has GPU_STEPS time steps. If these do not
  divide T, some time steps are outside of the loop; with fewer than two
  iterations, there is no loop.
  """
  names = [*parts]
  for size in sizes:
    if not any(size in PARTS[name].sizes for name in names):
      having = [name for name, part in PARTS.items() if size in part.sizes]
      raise ValueError(
        f"--{size} needs --part={' or '.join(having)}, got {', '.join(names)}"
      )
  steps = (LAUNCHES | sizes)["seq_len"]
  if "launches" in names and (steps % GPU_STEPS or steps < 2 * GPU_STEPS):
    raise ValueError(
      f"--part=launches needs a --seq_len that is a multiple of {GPU_STEPS} "
      f"and at least {2 * GPU_STEPS}, got {steps}"
    )
  if "gpu" in names:
    gpu.check_device()
