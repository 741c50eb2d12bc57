"""A row of the published results, and what the tests forbid."""

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
  def run(*args, **kwargs):
    raise AssertionError(f"{module.__name__} ran again")

  monkeypatch.setattr(module, "run", run)
