"""What decides a comparison of cells."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class CompareConfig:
  """Every number of it; `experiments.compare_cells --help` explains each."""

  corpus: str = "data/shakespeare.txt"
  val_fraction: float = 0.1
  hidden_size: int = 160
  embedding_size: int = 64
  num_seeds: int = 3
  seed: int = 0
  batch_size: int = 32
  seq_len: int = 64
  num_steps: int = 1000
  learning_rate: tuple[float, ...] = (5e-3, 1e-2, 2e-2)
  trial_steps: int = 300
  weight_decay: float = 0.3
  rounds: int = 11
  context: int = 512
  flow_steps: int = 200
  delay: tuple[int, ...] = (1, 2, 5, 10, 20, 50, 100, 200, 500)
  recall_hidden_size: int = 32
  recall_steps: int = 300
  recall_learning_rate: tuple[float, ...] = (1e-3, 3e-3)

  def __post_init__(self):
    for name in ("learning_rate", "recall_learning_rate"):
      rates = getattr(self, name)
      if not rates or not all(0 < rate < math.inf for rate in rates):
        raise ValueError(
          f"{name} must be positive and finite, got {list(rates)}"
        )
    if not self.delay or min(self.delay) < 1:
      raise ValueError(f"delays must be ≥ 1, got {list(self.delay)}")
    if self.seed < 0:
      raise ValueError(f"seed must be ≥ 0, got {self.seed}")
    for name in SIZES:
      if getattr(self, name) < 1:
        raise ValueError(f"{name} must be ≥ 1, got {getattr(self, name)}")


SIZES = (
  "hidden_size",
  "embedding_size",
  "num_seeds",
  "batch_size",
  "seq_len",
  "seq_len",
  "trial_steps",
  "rounds",
  "context",
  "flow_steps",
  "recall_hidden_size",
  "recall_steps",
)
