"""--replot of a comparison: what is damaged, and what is not."""

from types import SimpleNamespace

import pytest

from experiments import compare_cells
from experiments.comparison import dot_plot, plots
from experiments.trainer.run_dir import lock
from tests.experiments.comparing import example
from tests.patterns import exact
from tests.processes import ROOT

RECORDS = sorted((ROOT / "experiments/results").glob("compare_cells*"))


@pytest.fixture
def replot(tmp_path, monkeypatch):
  """Return `main` with --replot in a directory of a comparison."""
  compare_cells.save(example(), tmp_path)
  flags = {"OUT": str(tmp_path), "REPLOT": True}
  for name, value in flags.items():
    flag = SimpleNamespace(value=value)
    monkeypatch.setattr(compare_cells, name, flag, raising=False)
  return compare_cells.main


def test_there_are_kept_comparisons():
  assert RECORDS


@pytest.mark.parametrize("directory", RECORDS, ids=lambda path: path.name)
def test_a_kept_comparison_is_whole(directory):
  assert compare_cells.load(directory)["runs"]


@pytest.mark.parametrize(
  ("part", "values", "message"),
  [
    (
      "runs",
      ("evaluations", 0, "val_loss"),
      "val_loss must have 2 values, got 1$",
    ),
    (
      "runs",
      ("samples", 0, "words_in_val"),
      "words_in_val must have 2 values, got 1$",
    ),
    ("runs", ("samples", 0, "rhymes"), "rhymes must have 2 values, got 1$"),
    ("context", ("val_loss",), "val_loss must have 2 values, got 1"),
    ("context", ("val_loss", 0), "val_loss must have 3 values, got 2"),
    ("gradient_flow", ("norms", "h"), "norms of h must have 11 values, got 10"),
    ("recall", ("accuracy",), "accuracy must have 2 values, got 1"),
  ],
)
def test_a_list_that_lost_a_value_is_damaged(part, values, message, tmp_path):
  record = example()
  found = record[part][0]
  for key in values:
    found = found[key]
  found.pop()
  compare_cells.save(record, tmp_path)
  path = tmp_path / "comparison.json"
  with pytest.raises(
    ValueError, match=f"{exact(path)} is damaged: .*{message}"
  ):
    compare_cells.load(tmp_path)


def test_a_lost_delay_is_damaged(tmp_path):
  record = example()
  del record["recall"][1]
  compare_cells.save(record, tmp_path)
  message = r"the delays of \w+, \w+, must be \[1, 5\], got \[1\]$"
  with pytest.raises(ValueError, match=f"is damaged: {message}"):
    compare_cells.load(tmp_path)


def test_a_lost_entry_is_damaged(tmp_path):
  one, other = example(), example()
  del one["corpus"]["text_statistics"]["validation text"]["rhymes"]
  del other["cells"]["gru"]["seconds_per_step"]
  for record, name in ((one, "rhymes"), (other, "seconds_per_step")):
    compare_cells.save(record, tmp_path)
    with pytest.raises(ValueError, match=f"is damaged: it lacks '{name}'$"):
      compare_cells.load(tmp_path)


@pytest.mark.parametrize(
  ("part", "wrong", "message"),
  [
    ("cells", {"seconds_per_step": "1"}, "seconds_per_step .*, got '1'"),
    ("evaluations", {"step": "0"}, "step and val_loss .*, got '0'"),
    ("evaluations", {"val_loss": [None, 4]}, "step and val_loss .* got None"),
    ("samples", {"step": {}}, "step must be finite numbers, got {}"),
    ("samples", {"words_in_val": ["x", None]}, "words_in_val .*, got 'x'"),
    ("gradient_flow", {"norms": {"h": [{}] * 11}}, "norms of h .*, got {}"),
  ],
)
def test_what_the_figure_cannot_draw_is_damaged(part, wrong, message, tmp_path):
  record = example()
  # A part is an entry of the record, or of its first run.
  entries = record | record["runs"][0]
  entries["cells"] = [record["cells"]["rnn"]]
  entries[part][0].update(wrong)
  compare_cells.save(record, tmp_path)
  with pytest.raises(ValueError, match=f"json is damaged: {message}$"):
    compare_cells.load(tmp_path)


def test_a_comparison_without_a_finished_training_has_nothing_to_show(tmp_path):
  record = example() | {"runs": [], "context": []}
  compare_cells.save(record, tmp_path)
  with pytest.raises(ValueError, match=r"has no training that has finished$"):
    compare_cells.load(tmp_path)


def test_an_error_of_the_figure_does_not_blame_the_record(replot, monkeypatch):
  def draw(record, path):
    raise AttributeError("module 'matplotlib' has no attribute 'figgure'")

  monkeypatch.setattr(plots, "draw", draw)
  with pytest.raises(AttributeError, match=r"'figgure'$"):
    replot()


@pytest.mark.exhaustive
def test_a_comparison_that_is_being_written_is_not_replotted(replot, tmp_path):
  with lock(tmp_path), pytest.raises(ValueError, match="is in use by process"):
    replot()
  assert not (tmp_path / "comparison.png").exists()
  replot()
  assert (tmp_path / "comparison.png").exists()


def test_a_cell_that_only_the_figure_misses_is_named(replot, tmp_path):
  """The figure of many cells divides by the LSTM's time."""
  record = example()
  other = record["cells"].pop("lstm")
  record["cells"] |= {f"lstm{k}": other for k in range(dot_plot.MANY)}
  for part in ("runs", "context", "gradient_flow", "recall"):
    for row in record[part]:
      row["cell"] = row["cell"].replace("lstm", "lstm0")
  compare_cells.save(record, tmp_path)
  assert compare_cells.load(tmp_path) == record
  with pytest.raises(ValueError, match=r"is damaged: it lacks 'lstm'$"):
    replot()
