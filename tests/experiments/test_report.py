"""What a report says of runs: what their files say, and no more."""

import dataclasses
import json
import shutil
import statistics
from pathlib import Path

import jax
import pytest

from experiments import report, sweep
from experiments.report import ReportConfig
from experiments.trainer import run_dir
from experiments.trainer.ensemble import SweepConfig
from experiments.trainer.history import derive, read_run_history
from tests.experiments.pages.explored import Read

HALF = '{"step": 50, "lo'


def header(console, output, *directories):
  config = ReportConfig(tuple(map(str, directories)), str(output))
  assert report.run(config, console).path == output
  return Read(output).header


def rows(directory):
  text = (Path(directory) / "metrics.jsonl").read_text(encoding="utf-8")
  return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def copy(trained_runs, tmp_path):
  """A run that a test may change: its folder and its configuration."""
  directory = tmp_path / "copy"
  shutil.copytree(trained_runs["lstm"].run, directory)
  return directory, trained_runs["lstm"]


def test_the_page_has_every_loss_of_every_run(trained_runs, console, tmp_path):
  directories = [config.run for config in trained_runs.values()]
  told = header(console, tmp_path / "page.html", *directories)
  assert told["unit"] == "character"
  assert [run["name"] for run in told["runs"]] == ["lstm", "rnn"]
  for run, directory in zip(told["runs"], directories, strict=True):
    found = rows(directory)
    for curve, name in (("training", "loss"), ("looks", "held_out")):
      losses = [(row["step"], row[name]) for row in found if name in row]
      assert losses == list(
        zip(run[curve]["step"], run[curve]["loss"], strict=True)
      )
    # A look is as late as the updates that it looks at.
    seconds = {row["step"]: row["seconds"] for row in found if "loss" in row}
    looks = run["looks"]
    assert looks["seconds"] == [seconds[step] for step in looks["step"]]
    assert run["epochs"] == 1 / found[-1]["step"]  # there is one epoch
    samples = "".join(
      f"=== {s['title']} ===\n{s['text']}\n\n" for s in run["samples"]
    )
    assert samples == (Path(directory) / "samples.txt").read_text("utf-8")
    steps = [sample["step"] for sample in run["samples"]]
    assert steps == [0, *looks["step"], None]


def test_the_table_says_what_the_runs_came_to(trained_runs, console, tmp_path):
  directories = [config.run for config in trained_runs.values()]
  table = header(console, tmp_path / "page.html", *directories)["table"]
  for row, directory in zip(table["rows"], directories, strict=True):
    told, found = dict(zip(table["head"], row, strict=True)), rows(directory)
    best = min((r["held_out"], r["step"]) for r in found if "held_out" in r)
    params = run_dir.load(Path(directory)).params
    speeds = [r["characters_per_second"] for r in found if "loss" in r]
    seconds = round(found[-2]["seconds"])
    assert told == {
      "run": Path(directory).name,
      "watched": "held-out",
      "best loss": f"{best[0]:.4f}",
      "at update": f"{best[1]}",
      "parameters": f"{sum(p.size for p in jax.tree.leaves(params)):,}",
      "updates": f"{found[-1]['step']} of {found[-1]['step']}",
      "training time": f"0:{seconds // 60:02}:{seconds % 60:02}",
      "median speed": f"{statistics.median(speeds):,.0f} characters/s",
      "finished": "yes",
    }


def test_only_what_differs_is_told_as_different(
  trained_runs, console, tmp_path
):
  directories = [config.run for config in trained_runs.values()]
  table = header(console, tmp_path / "page.html", *directories)["differences"]
  assert table == {
    "head": ["flag", "lstm", "rnn"],
    "rows": [
      ["cell", "lstm", "rnn"],
      ["num_layers", "2", "1"],
      ["learning_rate", "0.005", "0.02"],
      ["eval_every", "20", "30"],
    ],
  }
  one = {
    "seed": 1,
    "device": "cpu, cpu",
    "versions": {"jax": "1", "optax": "2"},
  }
  other = {
    "seed": 1,
    "device": "gpu, X",
    "versions": {"jax": "3", "optax": "2"},
  }
  run_alone = {"run": "a", "quiet": True, "started": "today", "tied": False}
  assert report.differences([one | run_alone, other | {"run": "b"}]) == [
    ["device", "cpu, cpu", "gpu, X"],
    ["tied", "False", "–"],
    ["version of jax", "1", "3"],
  ]


def test_a_run_that_goes_on_is_shown_as_far_as_it_is(copy, console, tmp_path):
  directory, _ = copy
  (directory / "result.json").unlink()
  path = directory / "metrics.jsonl"
  lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
  path.write_text("".join(lines[:3]) + HALF, encoding="utf-8")
  path = directory / "samples.txt"
  text = path.read_text(encoding="utf-8")
  cut = text.index("=== update 20,")
  path.write_bytes(text[:cut].encode() + b"=== update 20, epo\xe2\x80")
  told = header(console, tmp_path / "page.html", directory)
  (run,) = told["runs"]
  assert run["training"]["step"] == [10, 20] and run["looks"]["step"] == [10]
  assert [sample["step"] for sample in run["samples"]] == [0, 10]
  ((*_, updates, _, _, finished),) = told["table"]["rows"]
  assert updates.startswith("20 of ") and finished == "no"


def test_a_run_without_a_look_or_a_row_yet_is_shown(copy, console, tmp_path):
  directory, config = copy
  lines = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
  shutil.rmtree(directory / "checkpoints")
  for name in ("metrics.jsonl", "samples.txt", "result.json"):
    (directory / name).unlink()
  told = header(console, tmp_path / "page.html", directory, config.run)
  (run, whole), table = told["runs"], told["table"]
  assert run["training"]["step"] == run["samples"] == []
  assert whole["training"]["step"] != []
  assert table["rows"][0][1:4] == ["held-out", "–", "–"]
  (directory / "metrics.jsonl").write_text(lines[0] + "\n", encoding="utf-8")
  told = header(console, tmp_path / "page.html", directory)
  assert told["runs"][0]["training"]["step"] == [10]
  assert told["runs"][0]["looks"]["step"] == []
  assert "best loss" not in told["table"]["head"]  # nobody has one


def test_of_development_text_the_best_is_looked_at_by_held_out_text(
  copy, console, tmp_path
):
  directory, config = copy
  record = json.loads((directory / "config.json").read_text())
  record |= {"development": 0.2}
  (directory / "config.json").write_text(json.dumps(record))
  steps = ((10, 3.5), (20, 2.5), (30, 2.75))
  found = [{"step": step, "development": nats} for step, nats in steps]
  found.append({"step": 20, "held_out": 2.625})
  text = "".join(json.dumps(row) + "\n" for row in found)
  (directory / "metrics.jsonl").write_text(text)
  told = header(console, tmp_path / "page.html", directory, config.run)
  assert told["runs"][0]["watched"] == "development"
  assert told["runs"][0]["looks"]["loss"] == [3.5, 2.5, 2.75]
  told, other = (
    dict(zip(told["table"]["head"], row, strict=True))
    for row in told["table"]["rows"]
  )
  assert (told["best loss"], told["at update"]) == ("2.5000", "20")
  assert told["held-out loss of the best"] == "2.6250"
  assert other["held-out loss of the best"] == "–"


def test_the_members_of_a_sweep_are_runs(
  trained_runs, config, console, tmp_path
):
  fields = dataclasses.asdict(config)
  many = SweepConfig(**fields, num_seeds=2, rate=[0.005, 0.03])
  members = sweep.run(many, console).members
  other = trained_runs["rnn"].run
  told = header(console, tmp_path / "page.html", config.run, other)
  names = [
    "run, seed 0 at 0.005",
    "run, seed 1 at 0.005",
    "run, seed 0 at 0.03",
    "run, seed 1 at 0.03",
  ]
  assert [run["name"] for run in told["runs"]] == [*names, "rnn"]
  for run, one in zip(told["runs"], members, strict=False):
    looks = run["looks"]
    assert one.looks == list(zip(looks["step"], looks["loss"], strict=True))
    assert 0 < looks["seconds"][0] < looks["seconds"][-1]
    assert run["training"]["step"] == run["samples"] == []
  table = told["table"]
  best = table["head"].index("best loss")
  for row, one in zip(table["rows"], members, strict=False):
    assert row[best] == f"{one.best[1]:.4f}"
  rows = {row[0]: row[1:5] for row in told["differences"]["rows"]}
  assert rows["seed"] == ["0", "1", "0", "1"]
  assert rows["learning_rate"] == ["0.005", "0.005", "0.03", "0.03"]


def test_without_its_corpus_a_run_has_the_epochs_of_its_last_update(
  copy, console, tmp_path
):
  directory, _ = copy
  course = read_run_history(directory)
  assert derive(course).num_steps == course.rows[-1]["step"]
  other = course.record | {"corpus_sha256": "0"}
  assert derive(course._replace(record=other)) is None
  for change in ({"corpus": "nowhere.txt"}, {"val_fraction": 0.999}):
    config = dataclasses.replace(course.config, **change)
    assert derive(course._replace(config=config)) is None
  for change in ({"cell": "gpt"}, {"val_fraction": "half"}):  # damaged
    (directory / "config.json").write_text(json.dumps(course.record | change))
    (name,) = change
    with pytest.raises(ValueError, match=name):
      read_run_history(directory)
  record = course.record | {"corpus": "nowhere.txt"}
  (directory / "config.json").write_text(json.dumps(record))
  told = header(console, tmp_path / "page.html", directory)
  assert told["runs"][0]["epochs"] == 1 / course.rows[-1]["step"]
  assert "parameters" not in told["table"]["head"]
  (directory / "result.json").unlink()
  samples = (directory / "samples.txt").read_text(encoding="utf-8")
  cut = samples[: samples.index("=== the best")]
  (directory / "samples.txt").write_text(cut, encoding="utf-8")
  told = header(console, tmp_path / "page.html", directory)
  assert told["runs"][0]["epochs"] is None


@pytest.mark.parametrize(
  "line",
  [
    '{"step": 3',
    "3",
    "{}",
    '{"step": "1"}',
    '{"step": 1, "loss": NaN}',
    '{"step": 1, "held_out": null}',
  ],
)
def test_a_row_that_is_none_is_named(line, copy, console):
  directory, _ = copy
  path = directory / "metrics.jsonl"
  good = '{"step": 10, "loss": 2.0, "grad_norm": null}'
  path.write_text(f"{good}\n{line}\n")
  with pytest.raises(ValueError, match=f"line 2 of {path} is no row of a run"):
    report.run(ReportConfig((str(directory),)), console)


def test_updates_that_were_skipped_leave_a_gap(copy, console, tmp_path):
  directory, _ = copy
  path = directory / "metrics.jsonl"
  good, gap = {"step": 10, "loss": 2.0}, {"step": 20, "loss": None}
  rows = good, gap | {"grad_norm": None, "skipped": 10}, good | {"step": 30}
  path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
  told = header(console, tmp_path / "page.html", directory)
  assert told["runs"][0]["training"]["step"] == [10, 30]


def test_what_is_no_run_or_given_twice_is_refused(copy, console, tmp_path):
  directory, _ = copy
  for runs, message in (
    ((), "expected the folders of runs: report RUN"),
    ((tmp_path / "nowhere",), "there is no run in .*nowhere: it has no config"),
    ((directory, directory / ".." / "copy"), "copy is given twice"),
  ):
    with pytest.raises(ValueError, match=message):
      report.run(ReportConfig(tuple(map(str, runs))), console)


def test_the_page_lies_in_the_run_or_here_and_names_tell_runs_apart(
  copy, console, tmp_path, monkeypatch
):
  directory, _ = copy
  alone = report.run(ReportConfig((str(directory),)), console)
  assert alone.path == directory / "report.html"
  assert alone.size == alone.path.stat().st_size
  monkeypatch.chdir(tmp_path)
  shutil.copytree(directory, "other/copy")
  several = report.run(ReportConfig(("copy", "other/copy")), console)
  assert several.path == Path("report.html")
  names = [run["name"] for run in Read(several.path).header["runs"]]
  assert names == ["copy", "other/copy"]
  assert "page    report.html: " in console.file.getvalue()


def test_runs_of_other_tokens_are_said_to_have_others(copy, console, tmp_path):
  directory, config = copy
  record = json.loads((directory / "config.json").read_text())
  (directory / "config.json").write_text(
    json.dumps(record | {"tokenizer": "word"})
  )
  told = header(console, tmp_path / "page.html", directory, config.run)
  assert told["unit"] == "token"
