"""The parts of the benchmark: which cases each measures, and for which peers.

A part yields for each measurement of a case the rows of its results (sizes,
peer, and times, bytes or launches) and the peers that it skips, and why.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from experiments.benchmarks import (
  launches,
  linear,
  memory,
  models,
  original,
  resets,
  samplers,
  sequences,
)
from experiments.benchmarks.proof import Makers
from experiments.benchmarks.tables import Row
from experiments.benchmarks.timing import compare
from lstm_jax.sequence.in_place import GPU_STEPS

Results = Iterator[tuple[list[Row], dict[str, str]]]  # (rows, skipped)
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
SAMPLING: list[Row] = [
  {"hidden_size": 512, "num_samples": 1},
  {"hidden_size": 512, "num_samples": 64},
]
# {"part" of the rows: (size, its values)}, all measured by the part growth.
GROWTH: dict[str, tuple[str, tuple[int, ...]]] = {
  "growth in steps": ("seq_len", (16, 64, 256, 1024)),
  "growth in batch": ("batch_size", (1, 8, 32, 128)),
  "growth in hidden": ("hidden_size", (64, 128, 256, 512, 1024)),
  "growth in layers": ("num_layers", (1, 2, 4)),
}
GROWTH_PEERS = "lstm_jax", "flax linen", "pytorch", "products alone"


def model_part(
  cases: Iterable[Row],
  rounds: int,
  part: str = "model",
  peers: Iterable[str] | None = None,
) -> Results:
  """Time the Adam step of a language model.

  A case holds the sizes that differ from MODEL. `part` is only written into the
  rows. `peers` holds the names of the peers to time; None for all.
  """
  makers = models.models()
  if peers is not None:
    makers = {name: makers[name] for name in peers}
  for case in cases:
    sizes = MODEL | case
    rows, skipped = compare(makers, rounds, models.make_problem(**sizes))
    yield [{"part": part} | sizes | row for row in rows], skipped


def layer_part(
  cases: Iterable[Row], rounds: int, cells: Iterable[str]
) -> Results:
  """Time one layer: first its outputs alone, then all gradients.

  A case holds the sizes that differ from LAYER.
  """
  for cell in cells:
    yield from _layer_cases("layer", cell, sequences.sequences(), cases, rounds)


def linear_part(
  cases: Iterable[Row], rounds: int, cells: Iterable[str]
) -> Results:
  """Time cells whose recurrence is linear, as `layer_part` does."""
  for cell in cells:
    yield from _layer_cases("linear", cell, linear.linear(), cases, rounds)


def _layer_cases(
  part: str, cell: str, makers: Makers, cases: Iterable[Row], rounds: int
) -> Results:
  for case in cases:
    for backward in (False, True):
      sizes = LAYER | case
      problem = sequences.make_problem(cell, backward, **sizes)
      rows, skipped = compare(makers, rounds, problem)
      labels = {"part": part, "cell": cell, "backward": backward}
      yield [labels | sizes | row for row in rows], skipped


def resets_part(cases: Iterable[Row], rounds: int) -> Results:
  """Time the GRU of a recurrent policy; episodes begin inside its sequences.

  A case holds the sizes that differ from POLICY.
  """
  for case in cases:
    sizes = POLICY | case
    for backward in (False, True):
      problem = resets.make_problem(backward, **sizes)
      rows, skipped = compare(resets.reset_peers(), rounds, problem)
      labels = {"part": "resets", "backward": backward}
      yield [labels | sizes | row for row in rows], skipped


def sampling_part(
  cases: Iterable[Row], rounds: int, length: int = 500
) -> Results:
  """Time the sampling of texts of `length` characters."""
  for case in cases:
    problem = samplers.make_problem(length=length, **case)
    rows, skipped = compare(samplers.samplers(), rounds, problem)
    for row in rows:
      tokens = length * case["num_samples"]
      row["tokens_per_second"] = 1e3 * tokens / row["median_ms"]
    yield [{"part": "sampling"} | case | row for row in rows], skipped


def memory_part(sizes: Row) -> Results:
  """Measure the peak memory of an LSTM layer's gradients."""
  case = MEMORY | _sizes_of(sizes, MEMORY)
  rows, skipped = memory.measure_memory(case)
  yield [{"part": "memory"} | case | row for row in rows], skipped


def launches_part(sizes: Row) -> Results:
  """Count the kernel launches per time step of a layer's gradient.

  It is compiled for an H100.
  """
  case = LAUNCHES | _sizes_of(sizes, LAUNCHES)
  for cell in ("lstm", "gru"):
    for dtype in launches.DTYPES:
      rows, skipped = launches.count(cell, case, dtype)
      labels = {"part": "launches", "cell": cell} | case | {"dtype": dtype}
      yield [labels | row for row in rows], skipped


def original_part(rounds: int, num_steps: int = 64) -> Results:
  """Time the training step of an LSTM like min-char-rnn, in JAX and in NumPy.

  One JAX program makes one training step per call, another makes `num_steps`.

  Args:
    rounds: each program is timed 10 · rounds times, since its steps are short.
    num_steps: training steps per call of the second program.
  """
  makers = {  # name: (maker, the package that it needs)
    "lstm_jax": (original.compiled_program(1), "jax"),
    f"lstm_jax, {num_steps} a call": (
      original.compiled_program(num_steps),
      "jax",
    ),
    "numpy": (original.numpy_program, "numpy"),
  }
  rows, skipped = compare(makers, 10 * rounds)
  for row in rows:
    count = num_steps if "a call" in row["peer"] else 1
    row["median_ms"] /= count
    row["quartiles_ms"] = [ms / count for ms in row["quartiles_ms"]]
    row["ratio_to_ours"] = row["median_ms"] / rows[0]["median_ms"]
    row["tokens_per_second"] = 1e3 * original.SEQ_LEN / row["median_ms"]
  yield [{"part": "original"} | row for row in rows], skipped


def growth_part(
  growth: dict[str, tuple[str, tuple[int, ...]]], rounds: int
) -> Results:
  """Time the Adam step of a language model as one size grows."""
  for part, (size, values) in growth.items():
    cases = [{"hidden_size": 256, size: value} for value in values]
    yield from model_part(cases, rounds, part, GROWTH_PEERS)


def _sizes_of(sizes: Row, defaults: Row) -> Row:
  """Return those of the sizes that have a default."""
  return {name: size for name, size in sizes.items() if name in defaults}


def _model(sizes: Row, rounds: int) -> Results:
  case = _sizes_of(sizes, MODEL)
  return model_part([case] if case else MODELS, rounds)


def _layer(sizes: Row, rounds: int) -> Results:
  case = _sizes_of(sizes, LAYER)
  lstm_cases, other_cases = ([case], [case]) if case else (LSTMS, OTHERS)
  yield from layer_part(lstm_cases, rounds, ["lstm"])
  yield from layer_part(other_cases, rounds, ["gru", "rnn"])


def _linear(sizes: Row, rounds: int) -> Results:
  case = _sizes_of(sizes, LAYER)
  cases = [case] if case else LINEAR
  cells = [*linear.COEFFICIENTS]  # its keys are the cells' names
  return linear_part(cases, rounds, cells)


def _resets(sizes: Row, rounds: int) -> Results:
  case = _sizes_of(sizes, POLICY)
  return resets_part([case] if case else POLICIES, rounds)


class Part(NamedTuple):
  """A part of the benchmark."""

  measure: Callable[[Row, int], Results]  # (sizes, rounds) -> its results
  # The sizes that a user may give, with their defaults. If one is given, the
  # part measures only the case of these sizes.
  sizes: Row
  timed: bool = True  # whether there are times to compare


PARTS: dict[str, Part] = {
  "model": Part(_model, MODEL),
  "layer": Part(_layer, LAYER),
  "linear": Part(_linear, LAYER),
  "resets": Part(_resets, POLICY),
  "sampling": Part(lambda _, rounds: sampling_part(SAMPLING, rounds), {}),
  "memory": Part(lambda sizes, _: memory_part(sizes), MEMORY, False),
  "launches": Part(lambda sizes, _: launches_part(sizes), LAUNCHES, False),
  "original": Part(lambda _, rounds: original_part(rounds), {}),
  "growth": Part(lambda _, rounds: growth_part(GROWTH, rounds), {}),
}


def check_sizes(parts: Iterable[str], sizes: Row) -> None:
  """Raise ValueError if a given size belongs to none of the chosen parts.

  Also raise it if the part launches would count wrongly for this T. It reads
  compiled loops; an iteration of ours has GPU_STEPS time steps. If these do not
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
