"""The cases of --part=gpu, the most important first.

A section's `until` is the time, in seconds since the start, at which its last
case should have ended. A batch of cases does not begin if it would end later,
assuming that it takes as long as the one before. Most of the time of a case in
JAX is expected to go to the compiler. Nobody has measured that on a device yet,
so the last cases of a section may be left out; the output names them.
"""

from collections.abc import Sequence

from experiments.benchmarks.gpu.case import Case, kernel_kind
from experiments.benchmarks.gpu.checks import Check
from experiments.benchmarks.gpu.layers import Layer
from experiments.benchmarks.gpu.races import Race
from experiments.benchmarks.gpu.supervisor import Section
from experiments.benchmarks.gpu.torch_layers import TorchLayer
from experiments.benchmarks.gpu.training_step import TrainingStep
from experiments.benchmarks.proof import is_installed
from experiments.benchmarks.tables import Row

# For all sections; with the program's start and the figure, below 8 minutes.
SECONDS = 460.0
SEQ_LEN = 128
LAYER_SIZES = "hidden_size", "seq_len", "batch_size"  # that a user may give
HIDDEN_SIZES = 64, 128, 256, 512, 1024
BATCH_SIZES = 16, 128, 1024, 4096
TOO_LARGE = 1024, 4096  # (H, B): some libraries need more than 80 GB

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
# (cell, H, T, B, dtype): batches so large that a block has 16 or 32 sequences,
# not 8; and, in the last two, sizes that are padded.
SHAPES = [
  Check("lstm", 128, 24, 1100, "bfloat16"),
  Check("gru", 128, 24, 2200, "bfloat16", with_mask_and_reset=True),
  Check("rnn", 256, 24, 2200, "bfloat16"),
  Check("lstm", 256, 24, 300, "bfloat16"),
  Check("lstm", 100, 24, 13, "bfloat16", with_mask_and_reset=True),
  Check("gru", 200, 24, 13, "float32", reverse=True),
]
LONG = [
  Check(cell, hidden_size, 512, 16, dtype)
  for cell, hidden_size, dtype in (*ONE_BLOCK[:2], *CLUSTERS[:2], CLUSTERS[3])
]
CHECKS = [
  *(Check(cell, h, 24, 40, dtype) for cell, h, dtype in ONE_BLOCK),
  *(Check(cell, h, 24, 40, dtype) for cell, h, dtype in CLUSTERS),
  *(
    Check(cell, h, 24, 40, dtype, with_mask_and_reset=True, reverse=True)
    for cell, h, dtype in (*ONE_BLOCK, *CLUSTERS)
  ),
  *SHAPES,
  *LONG,
]
# (cell, H, T, B, dtype): batches with as many blocks as run at once, at most
# 132. One block, or a cluster of H / 64 blocks, has 8 sequences: B is
# 8 ⌊132 / blocks⌋. The last two are small and short instead, with many repeats,
# to repeat the start and the end of a kernel.
RACES = [
  Race("lstm", 128, 512, 1056, "bfloat16"),
  Race("lstm", 256, 512, 264, "bfloat16"),
  Race("gru", 512, 512, 128, "bfloat16"),
  Race("gru", 128, 512, 1056, "bfloat16", with_mask_and_reset=True),
  Race("lstm", 64, 512, 1056, "float32"),
  Race("lstm", 192, 512, 352, "float32"),
  Race("rnn", 256, 512, 1056, "bfloat16"),
  Race("rnn", 512, 512, 128, "bfloat16"),
  Race("lstm", 384, 512, 176, "bfloat16", with_mask_and_reset=True),
  Race("gru", 256, 512, 264, "float32"),
  Race("lstm", 128, 3, 8, "bfloat16", repeats=1000),
  Race("lstm", 256, 3, 8, "bfloat16", repeats=1000),
]
# Names of programs in `gpu.peers.PEERS`. A policy is a layer with resets.
OURS = "kernel bfloat16", "scan bfloat16", "kernel", "scan"
ALWAYS = *OURS, "autodiff", "flax linen"
LIBRARIES = "haiku", "equinox", "jax.experimental.rnn", "flax nnx"
POLICY_PEERS = (
  "kernel bfloat16",
  "scan bfloat16",
  "autodiff bfloat16",
  "flax bfloat16",
  "kernel",
  "scan",
  "flax linen",
  "equinox",
)
POLICY = 128, 128, 1024  # H, T, B
MODELS = [
  ("lstm", 128, "bfloat16"),
  ("lstm", 512, "bfloat16"),
  ("gru", 512, "bfloat16"),
  ("lstm", 128, "float32"),
  ("lstm", 512, "float32"),
]
AGAINST_ALL = [  # (cell, H, B): with LIBRARIES too
  ("lstm", 128, 1024),
  ("lstm", 256, 128),
  ("lstm", 512, 128),
  ("gru", 128, 1024),
  ("lstm", 64, 16),
  ("lstm", 1024, 1024),
  ("rnn", 128, 1024),
]


def sections(sizes: Row, rounds: int) -> Sequence[Section]:
  """Return all sections.

  Args:
    sizes: hidden_size, seq_len and batch_size of one layer, measured for each
      cell in place of the grid of the sections pytorch and layers. Those that
      are not given are 128, 128 and 1024. Empty for the grid.
    rounds: measurements of each program.
  """
  policies = [
    Layer(cell, *POLICY, POLICY_PEERS, resets=True, rounds=rounds)
    for cell in ("gru", "lstm")
  ]
  models = [  # T 64, B 32
    TrainingStep(cell, hidden_size, 64, 32, dtype, rounds=rounds)
    for cell, hidden_size, dtype in MODELS
  ]
  grid = layer_sizes(sizes)
  length = sizes.get("seq_len", SEQ_LEN)
  torch: list[Case] = [
    TorchLayer(cell, hidden_size, length, batch_size, rounds)
    for cell, hidden_size, batch_size in grid
  ]
  layers: list[Case] = [
    Layer(
      cell,
      hidden_size,
      length,
      batch_size,
      (
        ALWAYS + LIBRARIES
        if sizes or (cell, hidden_size, batch_size) in AGAINST_ALL
        else ALWAYS
      ),
      rounds=rounds,
    )
    for cell, hidden_size, batch_size in grid
  ]
  return [
    Section("checks", CHECKS, until=150, together=4, limit=15),
    Section("races", RACES, until=210, together=3, limit=30),
    Section("policies", policies, until=260),
    Section("models", models, until=300),
    Section("pytorch", torch, until=350, jax_on_cpu=is_installed("torch")),
    Section("layers", layers, until=440),
  ]


def layer_sizes(sizes: Row) -> list[tuple[str, int, int]]:
  """Return (cell, H, B) of every layer of the sections pytorch and layers."""
  if sizes:
    hidden_size = sizes.get("hidden_size", 128)
    batch_size = sizes.get("batch_size", 1024)
    return [(cell, hidden_size, batch_size) for cell in ("lstm", "gru", "rnn")]
  grid = [
    (cell, hidden_size, batch_size)
    for cell in ("lstm", "gru", "rnn")
    for hidden_size in HIDDEN_SIZES
    for batch_size in BATCH_SIZES
    if (hidden_size, batch_size) != TOO_LARGE
  ]

  def has_no_kernel(case):
    cell, hidden_size, batch_size = case
    return kernel_kind(cell, hidden_size, batch_size, "bfloat16") is None

  grid.sort(key=has_no_kernel)  # the layers that have a kernel come first
  return [*AGAINST_ALL, *(case for case in grid if case not in AGAINST_ALL)]
