"""A row of published results, and a guard for programs that must not run."""

from experiments.comparison.board import Result, Row, Training

ROW = Row(
  "verse",
  "verse",
  "LSTM",
  [
    Result("cold", 2.0, 0.5, [0, 1], [1.5, 2.5]),
    Result("stateful", 1.75),
    Result("ensemble_stateful", 1.0, seeds=[0, 1]),
  ],
  "by hand",
  training=Training([2, 3], "a core"),
  recipe="verse",
)


def forbid(monkeypatch, module):
  """Have a call of the module's `run` fail the test."""

  def run(*args, **kwargs):
    raise AssertionError(f"{module.__name__} ran again")

  monkeypatch.setattr(module, "run", run)
