"""What `experiments.gradcheck` prints, and the errors that it plants."""

import pytest

from experiments import gradcheck
from lstm_jax import rnn
from lstm_jax.testing import Error, Report, TensorReport


def test_a_row_has_each_error_and_a_cross_where_it_exceeds_a_tolerance(console):
  def error(relative, *where):
    return Error(1, 0.0, relative, where)

  exact = error(0.0, 0)
  # Errors against autodiff (at most 1e-12), and against central and directional
  # differences (1e-6). The exact ones, of autodiff itself, are not shown.
  rows = (
    TensorReport(
      "w_x",
      1200,
      error(1e-13, 0),
      error(2e-7, 3, 4),
      exact,
      error(3e-7, 1),
      exact,
    ),
    TensorReport(
      "b", 7, error(2e-12, 0), error(3e-6, 5), exact, error(4e-6, 1), exact
    ),
  )
  console.print(gradcheck.table("lstm, unrolled", Report(0.0, rows)))
  lines = [" ".join(s.split()) for s in console.file.getvalue().splitlines()]
  assert lines[0] == "lstm, unrolled"
  assert "w_x 1,200 1.0e-13 2.0e-07 [3, 4] 3.0e-07" in lines
  assert "b 7 2.0e-12 ✗ 3.0e-06 ✗ [5] 4.0e-06 ✗" in lines


@pytest.mark.parametrize("value", [2e-12, float("nan")])
def test_outputs_that_differ_have_a_row(value, console):
  console.print(gradcheck.table("lstm, unrolled", Report(value, ())))
  lines = [" ".join(s.split()) for s in console.file.getvalue().splitlines()]
  assert f"(outputs) {value:.1e} ✗" in lines


@pytest.mark.exhaustive
def test_an_error_in_the_readout_or_the_loss_is_planted_in_the_model(
  config, console, monkeypatch
):
  monkeypatch.setattr(gradcheck, "CELLS", {"rnn": rnn})
  passing = Report(0.0, ())
  monkeypatch.setattr(gradcheck, "check_cell", lambda cell, key: passing)
  for planted in ("affine.dx", "affine.dw", "affine.db", "loss.dlogits", ""):
    passed = gradcheck.run(config.data.corpus, planted, 0, console)
    assert passed == (not planted)
