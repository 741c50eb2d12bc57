"""The page of `experiments.report`: its numbers are those of the files."""

import json
import shutil
import statistics
from pathlib import Path

import jax
import pytest

from experiments import report, sweep
from experiments.pages.report import differences
from experiments.report import ReportConfig
from experiments.trainer.history import derive, read_run_history
from experiments.trainer.records import from_record, to_record
from experiments.trainer.sweep_members import SweepConfig
from experiments.trainer.trained import load
from tests.experiments.pages.explored import PageData
from tests.experiments.trainer.resuming import read_rows


@pytest.fixture
def copy(trained_runs, tmp_path):
  """Return a copy of a finished run, which a test may change."""
  return shutil.copytree(trained_runs["lstm"].job.run, tmp_path / "copy")


@pytest.fixture
def header(console, tmp_path):
  """Return a function that writes the page of runs and returns its header."""

  def write(*directories):
    config = ReportConfig(str(tmp_path / "page.html"))
    page = report.run([*map(str, directories)], config, console)
    return PageData(page.path).header

  return write


def in_table(header):
  """Return the results of each run, {column: text}."""
  table = header["results"]
  return [dict(zip(table["head"], row, strict=True)) for row in table["rows"]]


def write_rows(directory, *rows):
  text = "".join(f"{json.dumps(row)}\n" for row in rows)
  (directory / "metrics.jsonl").write_text(text)


def test_the_page_has_every_curve_and_sample_of_every_run(trained_runs, header):
  """The values of the curves are compared in the file that the page saves."""
  directories = [config.job.run for config in trained_runs.values()]
  page = header(*directories)
  assert page["unit"] == "character"
  assert [run["name"] for run in page["runs"]] == ["lstm", "rnn"]
  for run, directory in zip(page["runs"], directories, strict=True):
    assert {*run["curves"]} == {"train_loss", "val_loss", "lr", "grad_norm"}
    last_step = read_rows(directory)[-1]["step"]
    assert run["epoch_ends"] == [last_step]  # there is one epoch
    samples = "".join(
      f"=== {s['title']} ===\n{s['text']}\n\n" for s in run["samples"]
    )
    assert samples == (Path(directory) / "samples.txt").read_text("utf-8")
    steps = [sample["step"] for sample in run["samples"]]
    assert steps == [0, *run["curves"]["val_loss"]["step"], None]


def test_the_table_has_the_results_of_the_runs(trained_runs, header, copy):
  directory = trained_runs["lstm"].job.run
  (row,) = in_table(header(directory))
  rows = read_rows(directory)
  best = min((r["val_loss"], r["step"]) for r in rows if "val_loss" in r)
  params = load(Path(directory)).params
  speeds = [r["tokens_per_second"] for r in rows if "train_loss" in r]
  # The last row is the evaluation after the last training step.
  seconds = round(rows[-2]["seconds"])
  assert row == {
    "run": "lstm",
    "best validation loss": f"{best[0]:.4f}",
    "at step": f"{best[1]}",
    "parameters": f"{sum(p.size for p in jax.tree.leaves(params)):,}",
    "training steps": f"{rows[-1]['step']} of {rows[-1]['step']}",
    "training time": f"0:{seconds // 60:02}:{seconds % 60:02}",
    "median speed": f"{statistics.median(speeds):,.0f} characters/s",
    "finished": "yes",
  }
  losses = (10, 3.5), (2000, 2.5), (3000, 2.75)
  rows = [{"step": step, "val_loss": nats} for step, nats in losses]
  rows += [{"step": 10, "test_loss": 2.75}, {"step": 2000, "test_loss": 2.625}]
  write_rows(copy, *rows)
  row, other = in_table(header(copy, directory))
  assert (row["best validation loss"], row["at step"]) == ("2.5000", "2,000")
  assert (row["test loss"], other["test loss"]) == ("2.6250", "–")


def test_what_differs_is_shown_and_places_are_not(trained_runs, header):
  directories = [config.job.run for config in trained_runs.values()]
  assert header(*directories)["differences"] == {
    "head": ["flag", "lstm", "rnn"],
    "rows": [
      ["cell", "lstm", "rnn"],
      ["num_layers", "2", "1"],
      ["learning_rate", "0.02", "0.01"],
      ["eval_every", "20", "30"],
    ],
  }
  one, other = "0123456789abcdef", "fedcba9876543210"
  first = {"git_commit": one, "teacher_sha256": [one, other], "seed": 1}
  first |= {"versions": {"jax": "1", "optax": "2"}, "run": "a", "quiet": True}
  first |= {"num_epochs": 2, "extensions": [{"before": {"num_epochs": 1}}]}
  second = {"git_commit": other, "teacher_sha256": [one], "seed": 1}
  second |= {"versions": {"jax": "3", "optax": "2"}, "started": "today"}
  second |= {"num_epochs": 2, "tied": False}
  assert differences([first, first]) == []
  assert differences([first, second]) == [
    ["git_commit", "0123456789ab", "fedcba987654"],
    ["teacher_sha256", "0123456789ab, fedcba987654", "0123456789ab"],
    ["extended from num_epochs", "1", "–"],
    ["version of jax", "1", "3"],
    ["tied", "–", "False"],
  ]


@pytest.mark.exhaustive
def test_the_members_of_a_sweep_are_runs(trained_runs, config, console, header):
  record = to_record(config) | {"num_seeds": 2, "rate": [0.005, 0.03]}
  members = sweep.run(from_record(SweepConfig(), record), console).members
  page = header(config.job.run, trained_runs["rnn"].job.run)
  names = [f"run, seed {s} at {rate}" for rate in (0.005, 0.03) for s in (0, 1)]
  assert [run["name"] for run in page["runs"]] == [*names, "rnn"]
  for run, row, member in zip(
    page["runs"], in_table(page), members, strict=False
  ):
    validation = run["curves"]["val_loss"]
    losses = list(zip(validation["step"], validation["value"], strict=True))
    assert member.val_losses == losses
    assert 0 < validation["seconds"][0] < validation["seconds"][-1]
    assert run["curves"]["train_loss"]["step"] == run["samples"] == []
    assert row["best validation loss"] == f"{member.best[1]:.4f}"
    assert row["training time"] == "–"  # the members train together
  rows = {row[0]: row[1:5] for row in page["differences"]["rows"]}
  assert rows["seed"] == ["0", "1", "0", "1"]
  assert rows["learning_rate"] == ["0.005", "0.005", "0.03", "0.03"]


def test_the_page_is_in_the_run_directory_or_else_the_current_one(
  copy, console, tmp_path, monkeypatch
):
  page = report.run([str(copy)], ReportConfig(), console)
  assert page == (copy / "report.html", page.path.stat().st_size)
  monkeypatch.chdir(tmp_path)
  shutil.copytree(copy, "other/copy")
  record = json.loads(Path("other/copy/config.json").read_text())
  Path("other/copy/config.json").write_text(
    json.dumps(record | {"tokenizer": "word"})
  )
  page = report.run(["copy", "other/copy"], ReportConfig(), console)
  assert page.path == Path("report.html")
  assert "page    report.html: " in console.file.getvalue()
  header = PageData(page.path).header
  names = [run["name"] for run in header["runs"]]
  assert names == ["copy", "other/copy"] and header["unit"] == "token"


def test_an_unfinished_run_is_shown_as_far_as_it_has_got(
  copy, header, trained_runs
):
  (copy / "result.json").unlink()
  path = copy / "metrics.jsonl"
  lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
  path.write_text("".join(lines[:3]) + '{"step": 50, "train_lo', "utf-8")
  path = copy / "samples.txt"
  text = path.read_text(encoding="utf-8")
  cut = text.index("=== step 20,")
  path.write_bytes(text[:cut].encode() + b"=== step 20, epo\xe2\x80")
  page = header(copy)
  (run,), (row,) = page["runs"], in_table(page)
  assert run["curves"]["train_loss"]["step"] == [10, 20]
  assert run["curves"]["val_loss"]["step"] == [10]
  assert [sample["step"] for sample in run["samples"]] == [0, 10]
  assert row["training steps"].startswith("20 of ") and row["finished"] == "no"
  # Skipped training steps leave a gap.
  good, gap = {"step": 10, "train_loss": 2.0}, {"step": 20, "train_loss": None}
  gap |= {"grad_norm": None, "skipped": 10}
  write_rows(copy, good, gap, good | {"step": 30})
  (run,) = header(copy)["runs"]
  assert run["curves"]["train_loss"]["step"] == [10, 30]
  # A run that has no row yet is shown beside one that has some.
  shutil.rmtree(copy / "checkpoints")
  for name in ("metrics.jsonl", "samples.txt"):
    (copy / name).unlink()
  page = header(copy, trained_runs["lstm"].job.run)
  run, complete = page["runs"]
  assert run["curves"]["train_loss"]["step"] == run["samples"] == []
  assert complete["curves"]["train_loss"]["step"] != []
  assert in_table(page)[0]["best validation loss"] == "–"
  # A column that is empty for every run is left out.
  assert "best validation loss" not in in_table(header(copy))[0]


def test_what_the_corpus_tells_is_left_out_if_it_is_missing_or_has_changed(
  copy, header
):
  history = read_run_history(copy)
  last_step = history.rows[-1]["step"]
  assert derive(history).num_steps == last_step
  changed = history.record | {"corpus_sha256": "0"}
  assert derive(history._replace(record=changed)) is None
  record = history.record | {"corpus": "nowhere.txt"}
  (copy / "config.json").write_text(json.dumps(record))
  # The last step of a finished run tells where its epochs end, unless there
  # were fewer than it was asked for.
  result = json.loads((copy / "result.json").read_text())
  for early, ends, finished in (
    (False, [last_step], "yes"),
    (True, None, "yes, early"),
  ):
    changed = result | {"stopped_early": early}
    (copy / "result.json").write_text(json.dumps(changed))
    page = header(copy)
    assert "parameters" not in page["results"]["head"]
    assert page["runs"][0]["epoch_ends"] == ends
    assert in_table(page)[0]["finished"] == finished
