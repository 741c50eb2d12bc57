"""An invented row of the board, and a guard for programs that must not run."""

from experiments.comparison.board import Result, Row, Training

ROW = Row(
  name="verse",
  corpus="verse",
  model="LSTM",
  results=[
    Result("cold", 2.0, std=0.5, seeds=[0, 1], values=[1.5, 2.5]),
    Result("stateful", 1.75),
    Result("ensemble_stateful", 1.0, seeds=[0, 1]),
  ],
  settings="by hand",
  training=Training(minutes=[2, 3], machine="a core"),
  recipe="verse",
)


def forbid(monkeypatch, module):
  """Have a call of the module's `run` fail the test."""

  def run(*args, **kwargs):
    raise AssertionError(f"{module.__name__} ran again")

  monkeypatch.setattr(module, "run", run)
