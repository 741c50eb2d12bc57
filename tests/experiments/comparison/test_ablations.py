"""The file of an ablation: which records can be continued; and its table."""

import json
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments import ablate
from experiments.comparison import ablations
from experiments.comparison.ablations import (
  Ablations,
  check_all_named,
  make_table,
  read_ablations,
)
from tests.experiments.ablating import ROW, read_record, record_path, write_rows

RECIPE = {"corpus": "a.txt", "test_fraction": 0.1, "dev_fraction": 0.0}


def test_a_record_is_read_as_it_was_written_and_lacks_nothing(tmp_path):
  path = tmp_path / "ablations.json"
  written = Ablations(
    RECIPE,
    "1a2b",
    [{"change": "base"} | ROW],
    {"base": "2026"},
    "dev",
    {"a": "1"},
  )
  written.write(path)
  assert read_ablations(path, RECIPE, "1a2b") == written
  written._replace(split="test").write(path)
  with pytest.raises(ValueError, match=r"split must be val or dev, got 'test'"):
    read_ablations(path, RECIPE, "1a2b")
  for name in written._fields:
    record = {k: v for k, v in written._asdict().items() if k != name}
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=f"another version: it lacks '{name}'"):
      read_ablations(path, RECIPE, "1a2b")


def test_the_same_text_may_lie_elsewhere(tmp_path):
  path = tmp_path / "ablations.json"
  Ablations(RECIPE, "1a2b", []).write(path)
  elsewhere = RECIPE | {"corpus": "b.txt"}
  assert read_ablations(path, elsewhere, "1a2b").rows == []
  with pytest.raises(ValueError, match=r"corpus was 'a.txt' and is 'b.txt'"):
    read_ablations(path, elsewhere, "3c4d")


def test_rows_with_other_weights_of_a_teacher_are_not_added(tmp_path):
  path = tmp_path / "ablations.json"
  models = {"runs/a (best)": "1a", "runs/b (best)": "2b"}
  Ablations(RECIPE, "1a2b", []).with_models(path, models).write(path)
  found = read_ablations(path, RECIPE, "1a2b")
  others = {"runs/a (best)": "1a", "runs/c (last)": "3c"}
  assert found.with_models(path, others).models == models | others
  message = r"have read other weights of runs/b \(best\)"
  with pytest.raises(ValueError, match=message):
    found.with_models(path, others | {"runs/b (best)": "4d"})


def test_the_table_compares_the_stateful_losses_with_the_base():
  base = {"change": "base", "parameters": 1000, "cold": 2.0, "stateful": 1.5}
  worse = {"change": "seed=1", "parameters": 1200, "cold": 3.0, "stateful": 1e5}
  better = {"change": "num_layers=2", "parameters": 20, "cold": 1.4}
  rows = [
    base | {"seconds": 3.4},
    worse | {"seconds": 61.7},
    {"change": "tied=true", "diverged": True},
    better | {"stateful": 1.25, "seconds": 60.0},
  ]
  columns = [[*column.cells] for column in make_table(rows).columns]
  assert [*zip(*columns, strict=True)] == [
    ("base", "1,000", "2.0000", "1.5000", "", "3"),
    ("seed=1", "1,200", "3.0000", "1e+05", "+1e+05", "62"),
    ("tied=true", "", "", "diverged", "", ""),
    ("num_layers=2", "20", "1.4000", "1.2500", "-0.2500", "60"),
  ]


def test_a_large_difference_has_three_digits_also_if_it_is_negative():
  base = {"change": "base", "parameters": 1, "cold": 2.0, "stateful": 1.234e5}
  better = base | {"change": "seed=1", "stateful": 1.5}
  rows = [base | {"seconds": 3.0}, better | {"seconds": 3.0}]
  *_, differences, _ = (column.cells for column in make_table(rows).columns)
  assert [*differences] == ["", "-1.23e+05"]


@pytest.mark.parametrize("rows", ["", "base"])
def test_a_row_is_not_added_to_results_that_were_begun_again(
  rows, config, console, monkeypatch
):
  """By another process with --overwrite, which may have trained the base."""
  write_rows(config, "base")
  path, record = record_path(config), read_record(config)
  record |= {"outdated": {"base": "2026-12-01"}}
  dropped = json.dumps(record if rows else record | {"rows": []})

  def measure_beside(*given):
    path.write_text(dropped)
    return ROW

  # All that is read of the `train.Result` of a run that had finished before.
  ended = SimpleNamespace(stopped_by=None, signalled=None)
  monkeypatch.setattr(ablate, "_finished", lambda *arguments: ended)
  monkeypatch.setattr(ablate, "_measure", measure_beside)
  with pytest.raises(
    ValueError, match=r"json was begun again by another process"
  ):
    ablate.run(config, ["seed=5"], console)
  assert path.read_text() == dropped


def test_a_signal_in_a_measurement_stops_the_runs_after_it(
  config, console, monkeypatch
):
  """The row is kept, and `run` returns the signal."""

  def measure(*given):
    signal.raise_signal(signal.SIGTERM)
    return ROW

  # All that is read of the `train.Result` of a run that had finished before.
  ended = SimpleNamespace(stopped_by=None, signalled=None)
  monkeypatch.setattr(ablate, "_finished", lambda *arguments: ended)
  monkeypatch.setattr(ablate, "_measure", measure)
  Path(config.job.run).mkdir()
  rows, stopped_by = ablate.run(config, ["seed=5"], console)
  assert stopped_by == signal.SIGTERM
  assert rows == read_record(config)["rows"] == [{"change": "base"} | ROW]


def test_overwrite_drops_no_record_that_cannot_be_read(tmp_path, monkeypatch):
  def unreadable(path):
    raise PermissionError(13, "Permission denied", str(path))

  monkeypatch.setattr(ablations, "read_json", unreadable)
  path = tmp_path / "ablations.json"
  path.touch()
  with pytest.raises(PermissionError):
    check_all_named(path, {}, "", ["seed=1"])
