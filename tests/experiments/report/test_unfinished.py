"""The page of runs that are unfinished, damaged or without their corpus."""

import json
import shutil
from pathlib import Path

import pytest

from experiments import report
from experiments.pages import report as report_page
from experiments.report import ReportConfig
from experiments.trainer.config import TrainConfig
from experiments.trainer.data import read_corpus
from experiments.trainer.history import (
  MOST_EPOCHS,
  RunHistory,
  derive,
  read_run_history,
)
from experiments.trainer.records import replace
from tests.experiments.report.writing import write_page
from tests.patterns import exact

PARTIAL = '{"step": 50, "train_lo'


def test_an_unfinished_run_is_shown_as_far_as_it_has_got(
  copy, console, tmp_path
):
  directory, _ = copy
  (directory / "result.json").unlink()
  path = directory / "metrics.jsonl"
  lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
  path.write_text("".join(lines[:3]) + PARTIAL, encoding="utf-8")
  path = directory / "samples.txt"
  text = path.read_text(encoding="utf-8")
  cut = text.index("=== step 20,")
  path.write_bytes(text[:cut].encode() + b"=== step 20, epo\xe2\x80")
  header = write_page(console, tmp_path / "page.html", directory)
  (run,) = header["runs"]
  assert run["curves"]["train_loss"]["step"] == [10, 20]
  assert run["curves"]["val_loss"]["step"] == [10]
  assert [sample["step"] for sample in run["samples"]] == [0, 10]
  ((*_, steps, _, _, finished),) = header["results"]["rows"]
  assert steps.startswith("20 of ") and finished == "no"


def test_a_run_without_rows_or_evaluations_is_shown(copy, console, tmp_path):
  directory, config = copy
  lines = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
  shutil.rmtree(directory / "checkpoints")
  for name in ("metrics.jsonl", "samples.txt", "result.json"):
    (directory / name).unlink()
  page = tmp_path / "page.html"
  header = write_page(console, page, directory, config.job.run)
  (run, complete), table = header["runs"], header["results"]
  assert run["curves"]["train_loss"]["step"] == run["samples"] == []
  assert complete["curves"]["train_loss"]["step"] != []
  assert table["rows"][0][1:3] == ["–", "–"]
  (directory / "metrics.jsonl").write_text(lines[0] + "\n", encoding="utf-8")
  header = write_page(console, page, directory)
  assert header["runs"][0]["curves"]["train_loss"]["step"] == [10]
  assert header["runs"][0]["curves"]["val_loss"]["step"] == []
  # A column that is empty for every run is left out.
  assert "best validation loss" not in header["results"]["head"]


def test_without_its_corpus_the_last_step_of_a_finished_run_tells_its_epochs(
  copy, console, tmp_path
):
  directory, _ = copy
  history = read_run_history(directory)
  last_step = history.rows[-1]["step"]
  assert derive(history).num_steps == last_step
  other = history.record | {"corpus_sha256": "0"}
  assert derive(history._replace(record=other)) is None
  for change in ({"corpus": "nowhere.txt"}, {"val_fraction": 0.999}):
    config = replace(history.config, **change)
    assert derive(history._replace(config=config)) is None
  for change in ({"cell": "gpt"}, {"val_fraction": "half"}):  # damaged
    (directory / "config.json").write_text(json.dumps(history.record | change))
    (name,) = change
    with pytest.raises(ValueError, match=name):
      read_run_history(directory)
  record = history.record | {"corpus": "nowhere.txt"}
  (directory / "config.json").write_text(json.dumps(record))
  header = write_page(console, tmp_path / "page.html", directory)
  assert header["runs"][0]["epoch_ends"] == [last_step]
  assert "parameters" not in header["results"]["head"]
  (directory / "result.json").unlink()
  header = write_page(console, tmp_path / "page.html", directory)
  assert header["runs"][0]["epoch_ends"] is None


def test_a_run_that_stopped_early_has_no_ends_of_epochs_without_its_corpus():
  rows = [{"step": 10, "seconds": 7}, {"step": 20, "val_loss": 2.0}]
  config = replace(TrainConfig(), num_epochs=2)
  run = RunHistory(
    Path(), "", {}, config, rows, samples=[], finished=True, stopped_early=False
  )
  assert report_page._curves(run, None)["epoch_ends"] == [10, 20]
  result = report_page._results(run, None)
  assert (result["finished"], result["training time"]) == ("yes", "0:00:07")
  config = replace(config, num_epochs=MOST_EPOCHS + 1)
  many = run._replace(config=config)
  assert report_page._curves(many, None)["epoch_ends"] is derive(many) is None
  early = run._replace(stopped_early=True, member="seed 0")
  assert report_page._curves(early, None)["epoch_ends"] is None
  result = report_page._results(early, None)  # of a sweep's member
  assert (result["finished"], result["training time"]) == ("yes, early", "–")


def test_the_weights_of_very_many_layers_are_not_counted(monkeypatch):
  config = replace(TrainConfig(), num_layers=2, hidden_size=2)
  record = {"corpus_sha256": read_corpus(config.data).sha256}
  run = RunHistory(Path(), "", record, config, [], [], True, False)
  assert derive(run) is not None
  monkeypatch.setattr("experiments.trainer.history.MOST_LAYERS", 1)
  assert derive(run) is None


@pytest.mark.parametrize(
  "line",
  [
    '{"step": 3',
    "3",
    "{}",
    '{"step": "1"}',
    '{"step": 1, "train_loss": NaN}',
    f'{{"step": 1, "train_loss": {10**400}}}',
    '{"step": 1, "val_loss": null}',
    '{"step": 1, "seconds": 1e300}',
  ],
)
def test_a_line_that_is_not_a_row_is_an_error_that_names_it(
  line, copy, console
):
  directory, _ = copy
  path = directory / "metrics.jsonl"
  good = '{"step": 10, "train_loss": 2.0, "grad_norm": null}'
  path.write_text(f"{good}\n{line}\n")
  with pytest.raises(ValueError, match=f"line 2 of {exact(path)} is not a row"):
    report.run([str(directory)], ReportConfig(), console)


def test_skipped_training_steps_leave_a_gap(copy, console, tmp_path):
  directory, _ = copy
  path = directory / "metrics.jsonl"
  good, gap = {"step": 10, "train_loss": 2.0}, {"step": 20, "train_loss": None}
  rows = good, gap | {"grad_norm": None, "skipped": 10}, good | {"step": 30}
  path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
  header = write_page(console, tmp_path / "page.html", directory)
  assert header["runs"][0]["curves"]["train_loss"]["step"] == [10, 30]


def test_a_directory_without_a_run_or_given_twice_is_refused(
  copy, console, tmp_path
):
  directory, _ = copy
  for runs, message in (
    ((), "expected run directories: report RUN"),
    ((tmp_path / "nowhere",), "no run in .*nowhere: no such directory"),
    ((tmp_path,), f"no run in {exact(tmp_path)}: no config.json of a run"),
    ((directory, directory / ".." / "copy"), "copy is given twice"),
  ):
    with pytest.raises(ValueError, match=message):
      report.run([*map(str, runs)], ReportConfig(), console)
  nowhere = ReportConfig(str(tmp_path / "nowhere" / "page.html"))
  with pytest.raises(ValueError, match="cannot be written: no such directory"):
    report.run([str(directory)], nowhere, console)


def test_a_page_replaces_no_file_of_a_run(copy, console, tmp_path, monkeypatch):
  directory, _ = copy
  config = (directory / "config.json").read_text()
  previous, other = directory / "previous", tmp_path / "other"
  shutil.copytree(directory, other)
  shutil.copytree(other, previous)
  monkeypatch.chdir(directory)
  for name in ("config.json", "page.html", "checkpoints/page.html"):
    for run, output in ((directory, name), (other, directory / name)):
      options = ReportConfig(str(output))
      with pytest.raises(ValueError, match=r"^out must be outside the run"):
        report.run([str(run)], options, console)
  assert (directory / "config.json").read_text() == config
  page = report.run([str(previous)], ReportConfig(), console)
  assert page.path == previous / "report.html"


def test_a_page_replaces_no_corpus_of_its_runs(copy, console, tmp_path):
  directory, _ = copy
  record = json.loads((directory / "config.json").read_text())
  text = Path(record["corpus"]).read_bytes()
  (tmp_path / "verse.txt").write_bytes(text)
  options = ReportConfig(str(tmp_path / "verse.txt"))
  message = r"^out must be no file with the run's corpus, got .*verse\.txt$"
  with pytest.raises(ValueError, match=message):
    report.run([str(directory)], options, console)
  assert (tmp_path / "verse.txt").read_bytes() == text


def test_a_link_in_place_of_the_page_is_not_followed(
  copy, console, tmp_path, monkeypatch
):
  directory, _ = copy
  target = tmp_path / "target"
  (directory / "report.html").symlink_to(target)
  with pytest.raises(ValueError, match=r"report\.html is a link"):
    report.run([str(directory)], ReportConfig(), console)
  assert not target.exists()
  monkeypatch.chdir(tmp_path)  # of several runs, the page is the user's own
  Path("report.html").symlink_to(target)
  (directory / "report.html").unlink()
  other = shutil.copytree(directory, tmp_path / "other")
  report.run([str(directory), str(other)], ReportConfig(), console)
  assert target.exists()
