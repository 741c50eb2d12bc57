"""The commands and rows of the published results, and their teachers."""

import json
import math
import re
import shlex
import signal
import sys
from pathlib import Path

import pytest
from absl import flags

from experiments import evaluate, reproduce, train
from experiments.cli import command_line
from experiments.comparison import plan as plans
from experiments.comparison.board import Board, Result, read_board
from experiments.comparison.plan import (
  ReproduceConfig,
  ensemble_flags,
  ensemble_seeds,
  is_trained,
  parse,
  plan,
  plan_teachers,
)
from experiments.comparison.published import UNIT, compare, cost
from experiments.trainer.config import TrainConfig
from experiments.trainer.records import replace, to_record
from experiments.trainer.run_dir import JOB_FLAGS
from tests.experiments.conftest import copy_run
from tests.experiments.reproduce.rows import ROW, forbid
from tests.experiments.trainer.resuming import signal_at
from tests.processes import ROOT


def test_the_commands_train_and_evaluate_every_seed_of_the_row():
  row = read_board().find("tinyshakespeare")
  jobs = plan(row, ReproduceConfig())
  assert [job.seed for job in jobs] == [0, 1, 2]
  lines = [line.partition(" -m ")[2] for line in reproduce.commands(jobs[1])]
  run = "--run=runs/reproduce/tinyshakespeare/seed1"
  assert lines == [
    "experiments.train --flagfile=experiments/recipes/tinyshakespeare.flags "
    f"--seed=1 {run}",
    f"experiments.evaluate {run} --protocol=cold --protocol=stateful "
    "--protocol=dynamic --protocol=mixed_stateful --protocol=mixed "
    "--checkpoint=last --decay=0.002",
  ]
  (only,) = plan(row, ReproduceConfig(run="here", seeds=(7, 7)))
  assert (only.seed, only.directory) == (7, Path("here/seed7"))


@pytest.mark.parametrize(
  "row", [r for r in read_board().rows if r.recipe], ids=lambda row: row.name
)
def test_the_flags_of_every_row_are_those_of_the_programs(
  row, monkeypatch, tmp_path
):
  monkeypatch.chdir(tmp_path)  # the recipe is found from anywhere
  job = plan(row, ReproduceConfig())[0]
  config = parse(TrainConfig(), job.train_flags)
  files = {"poems": "data/shakespeare.txt"}
  assert config.data.corpus == files.get(row.corpus, row.corpus)
  options = parse(evaluate.EvaluateConfig(), job.evaluate_flags)
  assert config.job.run == f"runs/reproduce/{row.name}/seed0"
  assert options.run == (config.job.run,)
  for record in row.records[:1]:
    kept = json.loads((ROOT / record / "config.json").read_text())
    now = to_record(config)
    lacking = now.keys() - kept  # a new flag: add what the run would have had
    assert not lacking, f"{record}/config.json lacks {sorted(lacking)}"
    changed = {
      name
      for name, value in now.items()
      if kept[name] != value and name not in (*JOB_FLAGS, "corpus")
    }
    assert changed == set()


def test_the_published_mean_is_that_of_the_same_seeds():
  seeds, values = [0, 1, 2], [1.0, 2.0, 3.0]
  published = Result("cold", 2.0, std=1.0, seeds=seeds, values=values)
  losses = {seed: {UNIT: {"cold": 2.5 + seed}} for seed in (0, 2)}
  row = compare(published, losses)
  assert row["published"]["mean"] == 2.0
  assert row["published"]["std"] == pytest.approx(2**0.5, rel=1e-15)
  assert (row["mean"], row["difference"]) == (3.5, 1.5)
  more = losses | {1: {UNIT: {"cold": 3.5}}, 3: {UNIT: {"cold": 3.5}}}
  assert compare(published, more)["published"] == {"mean": 2.0, "std": 1.0}
  assert compare(published, {5: losses[0]})["published"]["std"] == 1.0


@pytest.mark.exhaustive
def test_teachers_are_trained_first(recipe, console, tmp_path, monkeypatch):
  teacher = tmp_path / "teachers" / "verse" / "seed5"
  flags = (tmp_path / "verse.flags").read_text()
  (tmp_path / "pupil.flags").write_text(f"{flags}\n--teacher={teacher}\n")
  pupil = ROW._replace(name="pupil", recipe="pupil")
  board = Board({}, [ROW, pupil])
  monkeypatch.setattr(plans, "read_board", lambda: board)
  with pytest.MonkeyPatch.context() as patch:
    signal_at(patch, 33)
    result = reproduce.run(pupil, recipe, console)
  assert result == ([], signal.SIGTERM)
  assert not Path(recipe.run).exists()
  assert not reproduce.run(pupil, recipe, console).stopped_by
  made = json.loads((teacher / "config.json").read_text())
  assert made["seed"] == 5 and (teacher / "result.json").exists()
  shown = console.file.getvalue()
  assert f"teacher {teacher}" in shown and "resumed     after" in shown
  forbid(monkeypatch, train)
  reproduce.run(pupil, recipe, console)


@pytest.mark.exhaustive
def test_cpu_devices_are_started_once_for_all_that_is_trained(
  recipe, finished_config, config, console, tmp_path, monkeypatch
):
  teacher = tmp_path / "teachers" / "verse" / "seed0"
  flags = (tmp_path / "verse.flags").read_text()
  (tmp_path / "pupil.flags").write_text(f"{flags}\n--teacher={teacher}\n")
  pupil = ROW._replace(name="pupil", recipe="pupil")
  monkeypatch.setattr(plans, "read_board", lambda: Board({}, [ROW, pupil]))
  shared, trained, finished = [], [], []

  def share(configs):
    shared.append([one.job.run for one in configs])
    for directory in finished:  # by another process, meanwhile
      copy_run(finished_config, replace(config, run=directory))
    return list(configs)

  def run(config, console):
    trained.append(config.job.run)
    # Stopped before the first evaluation: its best loss is still infinite.
    return train.Result(Path(trained[-1]), 0, math.inf, 0.0, signal.SIGTERM)

  monkeypatch.setattr(reproduce, "share_batches", share)
  monkeypatch.setattr(train, "run", run)
  own = f"{recipe.run}/seed0"
  assert reproduce.run(pupil, recipe, console) == ([], signal.SIGTERM)
  assert (shared.pop(), trained.pop()) == ([str(teacher), own], str(teacher))
  finished.append(str(teacher))
  assert reproduce.run(pupil, recipe, console) == ([], signal.SIGTERM)
  assert (shared.pop(), trained.pop()) == ([str(teacher), own], own)
  finished.clear()
  assert reproduce.run(pupil, recipe, console) == ([], signal.SIGTERM)
  assert (shared, trained) == ([[own]], [own])


def test_a_run_of_other_flags_is_no_teacher(
  recipe, finished_config, config, console, tmp_path, monkeypatch
):
  teacher = tmp_path / "teachers" / "verse" / "seed0"
  copy_run(finished_config, replace(config, run=str(teacher)))
  flags = (tmp_path / "verse.flags").read_text()
  (tmp_path / "pupil.flags").write_text(f"{flags}\n--teacher={teacher}\n")
  pupil = ROW._replace(name="pupil", recipe="pupil")
  other = ROW._replace(flags=["--hidden_size=9"])
  monkeypatch.setattr(plans, "read_board", lambda: Board({}, [other, pupil]))
  forbid(monkeypatch, train)
  message = "seed0 holds a finished run .*: hidden_size is 12 there and 9 here"
  with pytest.raises(ValueError, match=message):
    reproduce.run(pupil, recipe, console)


def test_the_commands_of_teachers_are_those_of_their_row(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  row = read_board().find("tinyshakespeare-distilled")
  (job, *_) = plan(row, ReproduceConfig())
  config = parse(TrainConfig(), job.train_flags)
  base = "runs/reproduce/tinyshakespeare-coupled"
  teachers = plan_teachers(config)
  assert [str(job.directory) for job in teachers] == [
    f"{base}/seed{seed}" for seed in range(3)
  ]
  recipe = "experiments/recipes/tinyshakespeare-coupled.flags"
  for here, path in ((tmp_path, ROOT / recipe), (ROOT, recipe)):
    monkeypatch.chdir(here)
    words = shlex.split(reproduce.commands(teachers[2])[0])
    flags = [f"--flagfile={path}", "--seed=2", f"--run={base}/seed2"]
    assert words[-4:] == ["experiments.train", *flags]
  monkeypatch.chdir(tmp_path)
  (Path(base) / "seed1").mkdir(parents=True)
  (Path(base) / "seed1" / "result.json").write_text("{}")
  directories = [job.directory for job in plan_teachers(config)]
  assert [*map(is_trained, directories)] == [False, True, False]
  for name in ("runs/mine", f"{base}/5", f"{base}/seed005"):
    with pytest.raises(ValueError, match=f"{name} must be a directory seedN"):
      plan_teachers(replace(config, teacher=(name,)))
  with pytest.raises(
    ValueError, match="teacher runs/mine/seed0: the name must"
  ):
    plan_teachers(replace(config, teacher=("runs/mine/seed0",)))
  name = f"{base}/seed99999999999"
  with pytest.raises(ValueError, match=f"^teacher {name}: seeds must be in"):
    plan_teachers(replace(config, teacher=(name,)))


def test_a_dry_run_prints_every_command_in_order(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  config = ReproduceConfig(dry_run=True)
  monkeypatch.setattr(reproduce, "FLAGS", None, raising=False)
  monkeypatch.setattr(reproduce, "config_from_flags", lambda *given: config)
  forbid(monkeypatch, train)
  row = read_board().find("tinyshakespeare-distilled")
  jobs = plan(row, config)
  first, second, third = plan_teachers(
    parse(TrainConfig(), jobs[0].train_flags)
  )
  second.directory.mkdir(parents=True)
  (second.directory / "result.json").touch()  # it is trained
  assert reproduce.main([row.name]) == 0
  assert capsys.readouterr().out.splitlines() == [
    *(reproduce.commands(teacher)[0] for teacher in (first, third)),
    *(line for job in jobs for line in reproduce.commands(job)),
    command_line("evaluate", ensemble_flags(row, jobs)),
  ]


def test_the_command_is_printed_that_resumes_a_stopped_one(monkeypatch, capsys):
  stopped = reproduce.Reproduction([], signal.SIGTERM)
  monkeypatch.setattr(reproduce, "FLAGS", None, raising=False)
  monkeypatch.setattr(
    reproduce, "config_from_flags", lambda *given: ReproduceConfig()
  )
  monkeypatch.setattr(reproduce, "run", lambda *given: stopped)
  monkeypatch.setattr(sys, "argv", ["reproduce", "poems", "--run=a b"])
  assert reproduce.main(["poems"]) == 128 + signal.SIGTERM
  shown = capsys.readouterr().out
  assert shown.startswith("to resume:\n  ")
  assert shown.endswith(" -m experiments.reproduce poems '--run=a b'\n")


@pytest.mark.parametrize("arguments", [["mine"], ["--", "--seed=2"]])
def test_what_is_no_flag_is_refused(arguments, tmp_path):
  message = f"^unknown argument '{arguments[-1]}': flags begin with --$"
  with pytest.raises(flags.Error, match=message):
    parse(TrainConfig(), ["--seed=1", *arguments])
  recipe = tmp_path / "mine.flags"
  recipe.write_text("--seed=1\n" + "\n".join(arguments))
  with pytest.raises(flags.Error, match=message):
    parse(TrainConfig(), [f"--flagfile={recipe}"])


def test_minutes_that_the_seeds_share_are_named_apart():
  assert cost(ROW, [1.26]) == (
    "minutes of training: 1.3; published 2 to 3, a core"
  )
  row = read_board().find("tinyshakespeare-distilled")
  line = cost(row, [31.0, 32.0])
  assert line.startswith(
    "minutes of training: 31.0, 32.0; published 31.4 and, for all seeds "
    "together, 10.9, two cores (EPYC, AVX2), 10.9 of it for the teachers; "
  )


def test_a_row_without_published_seeds_needs_the_flag_seeds():
  row = read_board().find("tinyshakespeare")
  row = row._replace(results=[r._replace(seeds=()) for r in row.results])
  with pytest.raises(ValueError, match="no seeds of tinyshakespeare were"):
    plan(row, ReproduceConfig())
  assert [job.seed for job in plan(row, ReproduceConfig(seeds=(3,)))] == [3]


def test_an_ensemble_is_evaluated_only_if_all_its_seeds_are_the_given_ones():
  row = ROW._replace(evaluate=["--window=8"])

  def evaluated(*seeds):
    return ensemble_flags(row, plan(row, ReproduceConfig("r", seeds)))

  flags = ["--protocol=stateful", "--window=8"]
  assert evaluated(1, 0) == ["--run=r/seed1", "--run=r/seed0", *flags]
  assert evaluated(0) == evaluated(0, 1, 2) == []
  single = Result("cold", 2.0, None, [7], [2.0])
  row = row._replace(results=[*row.results, single])
  assert ensemble_seeds(row) == {0, 1}


def test_a_name_of_no_row_of_ours_is_an_error_that_lists_our_rows():
  board = read_board()
  quoted = next(row.name for row in board.rows if not row.is_ours)
  for name in ("gpt", quoted):
    message = rf"one of .*tinyshakespeare, .*, got {re.escape(repr(name))}$"
    with pytest.raises(ValueError, match=message):
      board.find(name)
