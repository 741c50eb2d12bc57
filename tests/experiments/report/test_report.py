"""The page of `experiments.report`: its numbers are those of the files."""

import json
import shutil
import statistics
from pathlib import Path

import jax
import pytest

from experiments import report, sweep
from experiments.pages import report as report_page
from experiments.pages.report import differences
from experiments.report import ReportConfig
from experiments.trainer.records import from_record, to_record
from experiments.trainer.sweep_members import SweepConfig
from experiments.trainer.trained import cost, load
from lstm_jax.training import list_checkpoints
from tests.experiments.pages.explored import PageData
from tests.experiments.report.writing import write_page
from tests.experiments.trainer.resuming import read_rows


def test_the_page_has_every_loss_and_sample_of_every_run(
  trained_runs, console, tmp_path
):
  directories = [config.job.run for config in trained_runs.values()]
  header = write_page(console, tmp_path / "page.html", *directories)
  assert header["unit"] == "character"
  assert [run["name"] for run in header["runs"]] == ["lstm", "rnn"]
  for run, directory in zip(header["runs"], directories, strict=True):
    rows = read_rows(directory)
    assert {*run["curves"]} == {"train_loss", "val_loss", "lr", "grad_norm"}
    for name, curve in run["curves"].items():
      values = [(row["step"], row[name]) for row in rows if name in row]
      assert values == list(zip(curve["step"], curve["value"], strict=True))
    # The time of an evaluation is that of the training step before it.
    seconds = {r["step"]: r["seconds"] for r in rows if "train_loss" in r}
    validation = run["curves"]["val_loss"]
    expected = [seconds[step] for step in validation["step"]]
    assert validation["seconds"] == expected
    assert run["curves"]["train_loss"]["seconds"] == [*seconds.values()]
    assert run["epoch_ends"] == [rows[-1]["step"]]  # there is one epoch
    samples = "".join(
      f"=== {s['title']} ===\n{s['text']}\n\n" for s in run["samples"]
    )
    assert samples == (Path(directory) / "samples.txt").read_text("utf-8")
    steps = [sample["step"] for sample in run["samples"]]
    assert steps == [0, *validation["step"], None]


def test_the_table_has_the_results_of_the_runs(trained_runs, console, tmp_path):
  directories = [config.job.run for config in trained_runs.values()]
  table = write_page(console, tmp_path / "page.html", *directories)["results"]
  for values, directory in zip(table["rows"], directories, strict=True):
    row = dict(zip(table["head"], values, strict=True))
    rows = read_rows(directory)
    best = min((r["val_loss"], r["step"]) for r in rows if "val_loss" in r)
    params = load(Path(directory)).params
    speeds = [r["tokens_per_second"] for r in rows if "train_loss" in r]
    # The last row is the evaluation after the last training step.
    seconds = round(rows[-2]["seconds"])
    assert row == {
      "run": Path(directory).name,
      "best validation loss": f"{best[0]:.4f}",
      "at step": f"{best[1]}",
      "parameters": f"{sum(p.size for p in jax.tree.leaves(params)):,}",
      "training steps": f"{rows[-1]['step']} of {rows[-1]['step']}",
      "training time": f"0:{seconds // 60:02}:{seconds % 60:02}",
      "median speed": f"{statistics.median(speeds):,.0f} characters/s",
      "finished": "yes",
    }


def test_only_what_differs_is_a_row_of_the_differences(
  trained_runs, console, tmp_path
):
  directories = [config.job.run for config in trained_runs.values()]
  table = write_page(console, tmp_path / "page.html", *directories)[
    "differences"
  ]
  assert table == {
    "head": ["flag", "lstm", "rnn"],
    "rows": [
      ["cell", "lstm", "rnn"],
      ["num_layers", "2", "1"],
      ["learning_rate", "0.02", "0.01"],
      ["eval_every", "20", "30"],
    ],
  }
  first = {
    "seed": 1,
    "device": "cpu, cpu",
    "versions": {"jax": "1", "optax": "2"},
  }
  second = {
    "seed": 1,
    "device": "gpu, X",
    "versions": {"jax": "3", "optax": "2"},
  }
  extended = {"num_epochs": 2, "extensions": [{"before": {"num_epochs": 1}}]}
  assert differences([extended, extended]) == []
  assert differences([extended, {"num_epochs": 2, "seed": 1}]) == [
    ["extended from num_epochs", "1", "–"],
    ["seed", "–", "1"],
  ]
  first |= {"run": "a", "quiet": True, "started": "today", "tied": False}
  assert differences([first, second | {"run": "b"}]) == [
    ["device", "cpu, cpu", "gpu, X"],
    ["tied", "False", "–"],
    ["version of jax", "1", "3"],
  ]


def test_hashes_are_shortened():
  one, other = "0123456789abcdef", "fedcba9876543210"
  first = {"git_commit": one, "teacher_sha256": [one, other]}
  second = {"git_commit": other, "teacher_sha256": [one]}
  assert differences([first, second]) == [
    ["git_commit", "0123456789ab", "fedcba987654"],
    ["teacher_sha256", "0123456789ab, fedcba987654", "0123456789ab"],
  ]


def test_the_best_evaluation_and_the_test_loss_are_in_the_table(
  copy, console, tmp_path
):
  directory, config = copy
  losses = (10, 3.5), (2000, 2.5), (3000, 2.75)
  rows = [{"step": step, "val_loss": nats} for step, nats in losses]
  rows.append({"step": 10, "test_loss": 2.75})
  rows.append({"step": 2000, "test_loss": 2.625})
  text = "".join(json.dumps(row) + "\n" for row in rows)
  (directory / "metrics.jsonl").write_text(text)
  page = tmp_path / "page.html"
  header = write_page(console, page, directory, config.job.run)
  assert header["runs"][0]["curves"]["val_loss"]["value"] == [3.5, 2.5, 2.75]
  table = header["results"]
  row, other = (
    dict(zip(table["head"], row, strict=True)) for row in table["rows"]
  )
  assert (row["best validation loss"], row["at step"]) == ("2.5000", "2,000")
  assert (row["test loss"], other["test loss"]) == ("2.6250", "–")


@pytest.mark.exhaustive
def test_the_members_of_a_sweep_are_runs(
  trained_runs, config, console, tmp_path, monkeypatch
):
  record = to_record(config) | {"num_seeds": 2, "rate": [0.005, 0.03]}
  members = sweep.run(from_record(SweepConfig(), record), console).members
  page, other = tmp_path / "page.html", trained_runs["rnn"].job.run
  read, directories = report_page.derive, []

  def derive_once(history):
    directories.append(history.directory)
    return read(history)

  monkeypatch.setattr(report_page, "derive", derive_once)
  header = write_page(console, page, config.job.run, other)
  assert sorted(map(str, directories)) == sorted([config.job.run, other])
  names = [
    "run, seed 0 at 0.005",
    "run, seed 1 at 0.005",
    "run, seed 0 at 0.03",
    "run, seed 1 at 0.03",
  ]
  assert [run["name"] for run in header["runs"]] == [*names, "rnn"]
  for run, member in zip(header["runs"], members, strict=False):
    validation = run["curves"]["val_loss"]
    losses = list(zip(validation["step"], validation["value"], strict=True))
    assert member.val_losses == losses
    assert 0 < validation["seconds"][0] < validation["seconds"][-1]
    assert run["curves"]["train_loss"]["step"] == run["samples"] == []
  table = header["results"]
  best = table["head"].index("best validation loss")
  for row, member in zip(table["rows"], members, strict=False):
    assert row[best] == f"{member.best[1]:.4f}"
  # If the newest checkpoint is damaged, the one before has all other losses.
  checkpoints = Path(config.job.run) / "checkpoints"
  newest = list_checkpoints(checkpoints)[-1]
  (checkpoints / f"{newest}/description/metadata").write_text("")
  again = write_page(console, page, config.job.run)
  for run, member in zip(again["runs"], members, strict=True):
    losses = member.val_losses[:-1]
    assert run["curves"]["val_loss"]["step"] == [step for step, _ in losses]
  # The seconds of a sweep are those of all its members together.
  found = cost([Path(config.job.run)], [load(Path(config.job.run))])
  assert found.training_seconds is None
  rows = {row[0]: row[1:5] for row in header["differences"]["rows"]}
  assert rows["seed"] == ["0", "1", "0", "1"]
  assert rows["learning_rate"] == ["0.005", "0.005", "0.03", "0.03"]


def test_the_default_output_and_the_names_of_runs(
  copy, console, tmp_path, monkeypatch
):
  directory, _ = copy
  page = report.run([str(directory)], ReportConfig(), console)
  assert page == (directory / "report.html", page.path.stat().st_size)
  monkeypatch.chdir(tmp_path)
  shutil.copytree(directory, "other/copy")
  page = report.run(["copy", "other/copy"], ReportConfig(), console)
  assert page.path == Path("report.html")
  names = [run["name"] for run in PageData(page.path).header["runs"]]
  assert names == ["copy", "other/copy"]
  assert "page    report.html: " in console.file.getvalue()


def test_the_unit_of_runs_with_different_tokenizers_is_a_token(
  copy, console, tmp_path
):
  directory, config = copy
  record = json.loads((directory / "config.json").read_text())
  (directory / "config.json").write_text(
    json.dumps(record | {"tokenizer": "word"})
  )
  page = tmp_path / "page.html"
  header = write_page(console, page, directory, config.job.run)
  assert header["unit"] == "token"
