"""A reproduction: its commands, what it trains and evaluates, its record."""

import json
import re
import shlex
import shutil
import signal
import sys
from pathlib import Path

import pytest
from absl import flags

from experiments import evaluate, reproduce, train
from experiments.comparison import reproduction
from experiments.comparison.board import (
  Board,
  Result,
  Row,
  Training,
  read_board,
)
from experiments.comparison.reproduction import (
  UNIT,
  ReproduceConfig,
  compare,
  cost,
  ensemble_flags,
  parse,
  plan,
  plan_teachers,
)
from experiments.trainer.config import TrainConfig
from experiments.trainer.environment import environment_of
from experiments.trainer.records import replace, to_record
from experiments.trainer.run_dir import JOB_FLAGS, read_config
from tests.experiments.conftest import copy_run, edit_config
from tests.experiments.trainer.resuming import signal_at
from tests.processes import ROOT

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
PUPIL = ROW._replace(name="pupil", recipe="pupil")


def forbid(monkeypatch, module):
  """Have a call of the module's `run` fail the test."""

  def run(*args, **kwargs):
    raise AssertionError(f"{module.__name__} ran again")

  monkeypatch.setattr(module, "run", run)


@pytest.fixture
def recipe(config, tmp_path, monkeypatch):
  """Write the flags of `config` as the recipe of ROW; PUPIL has a teacher, too.

  Return the options of `reproduce` that train and evaluate its seed 0.
  """
  default = to_record(TrainConfig())
  lines = [
    f"--{name}={value}"
    for name, value in to_record(config).items()
    if value != default[name] and name not in (*JOB_FLAGS, "seed")
  ]
  (tmp_path / "verse.flags").write_text("\n".join(lines))
  teacher = f"--teacher={tmp_path}/teachers/verse/seed0"
  (tmp_path / "pupil.flags").write_text("\n".join([*lines, teacher]))
  board = Board({}, [ROW, PUPIL])
  monkeypatch.setattr(reproduction, "RECIPES", tmp_path)
  monkeypatch.setattr(reproduction, "read_board", lambda: board)
  return ReproduceConfig(run=str(tmp_path / "runs"), seeds=(0,))


@pytest.fixture
def trained(recipe, finished_config, config):
  """Return `recipe`, with a finished run of seed 0 that is not evaluated."""
  directory = f"{recipe.run}/seed0"
  copy_run(finished_config, replace(config, run=directory))
  return recipe


def read(recipe):
  return json.loads((Path(recipe.run) / "reproduction.json").read_text())


def test_the_commands_train_and_evaluate_every_seed_of_the_row():
  row = read_board().find("tinyshakespeare")
  lines = reproduce.commands(row, ReproduceConfig())
  # Three seeds, and their ensemble.
  assert [line.split()[-1] for line in lines[:6:2]] == [
    f"--run=runs/reproduce/tinyshakespeare/seed{seed}" for seed in range(3)
  ]
  run = "--run=runs/reproduce/tinyshakespeare/seed1"
  train_words, evaluate_words = (shlex.split(line) for line in lines[2:4])
  recipe = f"--flagfile={ROOT}/experiments/recipes/tinyshakespeare.flags"
  assert train_words[-4:] == ["experiments.train", recipe, "--seed=1", run]
  protocols = "cold", "stateful", "dynamic", "mixed_stateful", "mixed"
  more = ["--checkpoint=last", "--decay=0.002"]
  assert evaluate_words[-8:] == [
    *(run, *(f"--protocol={name}" for name in protocols), *more)
  ]
  assert len(lines) == 7 and lines[6].count("--run=") == 3
  (only,) = plan(row, ReproduceConfig(run="here", seeds=(7, 7)))
  assert (only.seed, only.directory) == (7, Path("here/seed7"))
  row = row._replace(results=[r._replace(seeds=()) for r in row.results])
  with pytest.raises(ValueError, match="no seeds of tinyshakespeare were"):
    plan(row, ReproduceConfig())


def test_a_dry_run_trains_the_missing_teachers_first(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.chdir(tmp_path)
  config = ReproduceConfig(dry_run=True)
  monkeypatch.setattr(reproduce, "FLAGS", None, raising=False)
  monkeypatch.setattr(reproduce, "config_from_flags", lambda *given: config)
  base = Path("runs/reproduce/tinyshakespeare-coupled")
  (base / "seed1").mkdir(parents=True)
  (base / "seed1" / "result.json").touch()  # it is trained
  assert reproduce.main(["tinyshakespeare-distilled"]) == 0
  lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
  own = "runs/reproduce/tinyshakespeare-distilled/seed0"
  assert [words[-1] for words in lines[:3]] == [
    *(f"--run={base}/seed0", f"--run={base}/seed2", f"--run={own}")
  ]
  assert not (tmp_path / own).exists()


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("runs/mine", "must be a directory seedN"),
    ("verse/seed005", "must be a directory seedN"),
    ("mine/seed0", "one of verse, pupil, got 'mine'"),
    ("verse/seed99999999999", "seeds must be in"),
  ],
)
def test_a_teacher_is_a_seed_of_a_row(name, message, recipe):
  config = replace(TrainConfig(), teacher=(name,))
  with pytest.raises(ValueError, match=message):
    plan_teachers(config)


@pytest.mark.parametrize(
  "row", [r for r in read_board().rows if r.recipe], ids=lambda row: row.name
)
def test_the_flags_of_every_row_are_those_of_the_programs(
  row, monkeypatch, tmp_path
):
  monkeypatch.chdir(tmp_path)  # the recipe is found from anywhere
  job = plan(row, ReproduceConfig())[0]
  config = job.config
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
  row = compare(published, {0: 2.5, 2: 4.5})
  assert row["published"]["mean"] == 2.0
  assert row["published"]["std"] == pytest.approx(2**0.5, rel=1e-15)
  assert (row["mean"], row["difference"]) == (3.5, 1.5)
  assert (row["seeds"], row["values"]) == ([0, 2], [2.5, 4.5])
  whole = {"mean": 2.0, "std": 1.0}
  more = compare(published, {0: 2.5, 1: 3.5, 2: 4.5, 3: 3.5})
  assert more["published"] == compare(published, {5: 1.0})["published"] == whole


def test_minutes_that_the_seeds_share_are_named_apart():
  assert cost(ROW, [1.26]) == (
    "minutes of training: 1.3; published 2 to 3, a core"
  )
  row = read_board().find("tinyshakespeare-distilled")
  assert cost(row, [31.0, 32.0]).startswith(
    "minutes of training: 31.0, 32.0; published 31.4 and, for all seeds "
    "together, 10.9, two cores (EPYC, AVX2), 10.9 of it for the teachers; "
  )


def test_an_ensemble_is_evaluated_only_if_all_its_seeds_are_the_given_ones(
  recipe,
):
  row = ROW._replace(evaluate=["--window=8"])

  def evaluated(*seeds):
    return ensemble_flags(row, plan(row, ReproduceConfig("r", seeds)))

  flags = ["--protocol=stateful", "--window=8"]
  assert evaluated(1, 0) == ["--run=r/seed1", "--run=r/seed0", *flags]
  assert evaluated(0) == evaluated(0, 1, 2) == []


def test_a_name_of_no_row_of_ours_is_an_error_that_lists_our_rows():
  board = read_board()
  quoted = next(row.name for row in board.rows if not row.is_ours)
  for name in ("gpt", quoted):
    message = rf"one of .*tinyshakespeare, .*, got {re.escape(repr(name))}$"
    with pytest.raises(ValueError, match=message):
      board.find(name)


def test_what_is_no_flag_is_refused(tmp_path):
  recipe = tmp_path / "mine.flags"
  recipe.write_text("--seed=1\nmine")
  for arguments in (["--seed=1", "mine"], [f"--flagfile={recipe}"]):
    with pytest.raises(flags.Error, match="unknown argument 'mine': flags beg"):
      parse(TrainConfig(), arguments)


def test_a_finished_run_is_evaluated_once_and_compared(
  trained, console, monkeypatch
):
  forbid(monkeypatch, train)
  seed0 = Path(f"{trained.run}/seed0")
  spent = json.loads((seed0 / "result.json").read_text()) | {"seconds": 75.6}
  (seed0 / "result.json").write_text(json.dumps(spent))
  result = reproduce.run(ROW, trained, console)
  saved = json.loads((seed0 / "evaluation.json").read_text())
  assert saved[UNIT].keys() == {"cold", "stateful"}
  cold, stateful = result.rows
  assert cold["values"] == [saved[UNIT]["cold"]]
  assert cold["published"] == {"mean": 1.5, "std": None}  # that of seed 0
  assert cold["difference"] == saved[UNIT]["cold"] - 1.5
  assert stateful["published"] == {"mean": 1.75, "std": None}
  record = read(trained)
  assert record["results"] == result.rows
  assert record["seeds"]["0"] == {
    UNIT: saved[UNIT],
    "step": saved["step"],
    "seconds": 75.6,
    "environment": environment_of(read_config(seed0)),
  }
  shown = console.file.getvalue()
  assert f"{cold['mean']:.4f}" in shown
  assert f"{cold['difference']:+.4f}" in shown
  assert "minutes of training: 1.3; published 2 to 3, a core\n" in shown
  assert "\nnot evaluated here: ensemble_stateful, of seeds 0, 1\n" in shown

  with monkeypatch.context() as patched:
    forbid(patched, evaluate)
    assert reproduce.run(ROW, trained, console) == result
  # With other flags, or a damaged record, it is evaluated again.
  narrow = ROW._replace(evaluate=["--window=8"])
  (row, _) = reproduce.run(narrow, trained, console).rows
  assert row["mean"] > cold["mean"]  # with less context
  for text in ("{", "[]", json.dumps(record | {"seeds": 1})):
    (Path(trained.run) / "reproduction.json").write_text(text)
    assert reproduce.run(ROW, trained, console) == result


def test_the_seeds_together_are_evaluated_once_and_compared(
  trained, config, console, monkeypatch
):
  """Here both runs have the same weights, so that together they are as one."""
  forbid(monkeypatch, train)
  other = replace(config, run=f"{trained.run}/seed1")
  directory = copy_run(replace(config, run=f"{trained.run}/seed0"), other)
  edit_config(directory, seed=1)
  row = ROW._replace(evaluate=["--window=8"])
  both = replace(trained, seeds=(0, 1))
  path, original = Path(trained.run) / "reproduction.json", evaluate.run

  def while_another_process_adds_a_seed(options, console):
    if path.exists():
      record = read(trained)
      seed = "7" if len(options.run) == 2 else "8"
      record["seeds"][seed] = record["seeds"]["0"]
      path.write_text(json.dumps(record))
    return original(options, console)

  with monkeypatch.context() as patched:
    patched.setattr(evaluate, "run", while_another_process_adds_a_seed)
    rows = reproduce.run(row, both, console).rows
  assert read(trained)["seeds"].keys() == {"0", "1", "7", "8"}
  cold, stateful, together = rows
  assert together["protocol"] == "ensemble_stateful"
  assert together["mean"] == pytest.approx(stateful["mean"], rel=1e-6)
  assert together["mean"] != cold["mean"]
  assert together["difference"] == together["mean"] - 1.0
  assert together["seeds"] == [0, 1] and together["std"] is None
  assert read(trained)["results"] == rows
  saved = json.loads(Path(f"{trained.run}/seed0/ensemble.json").read_text())
  assert saved["members"] == 2
  assert [together["mean"]] == [saved[UNIT]["stateful"]]
  forbid(monkeypatch, evaluate)
  assert reproduce.run(row, both, console).rows == rows
  assert len(reproduce.run(row, trained, console).rows) == 2  # of one seed


@pytest.mark.parametrize(("seed", "kept"), [(7, True), (0, False)])
def test_a_run_that_is_trained_again_drops_what_was_of_it(
  trained, config, finished_config, console, monkeypatch, seed, kept
):
  """The ensemble's losses, too, if the seed is a member of it."""
  first = reproduce.run(ROW, trained, console).rows
  path, record = Path(trained.run) / "reproduction.json", read(trained)
  for entry in (record["seeds"]["0"][UNIT], record["together"]):
    entry |= dict.fromkeys(("cold", "stateful"), 9.9)
  path.write_text(json.dumps(record))
  if seed == 0:
    shutil.rmtree(Path(trained.run) / "seed0")

  def train_seed(single, console):
    made = copy_run(finished_config, replace(config, run=single.job.run))
    edit_config(made, seed=seed)
    return train.Result(made, 47, 1.5, 3.0)

  monkeypatch.setattr(train, "run", train_seed)
  with monkeypatch.context() as patched:
    # Interrupted between its training and its evaluation.
    forbid(patched, evaluate)
    with pytest.raises(AssertionError):
      reproduce.run(ROW, replace(trained, seeds=(seed,)), console)
  rows = reproduce.run(ROW, replace(trained, seeds=(seed,)), console).rows
  assert [row["values"] for row in rows] == [row["values"] for row in first]
  assert read(trained)["seeds"].keys() == {"0", f"{seed}"}
  assert bool(read(trained)["together"]) == kept


def test_an_interrupted_training_is_resumed(recipe, console):
  with pytest.MonkeyPatch.context() as monkeypatch:
    signal_at(monkeypatch, 33)
    result = reproduce.run(ROW, recipe, console)
  assert result == ([], signal.SIGTERM)
  assert not (Path(recipe.run) / "reproduction.json").exists()
  result = reproduce.run(ROW, recipe, console)
  assert not result.stopped_by and len(result.rows) == 2
  steps = Path(f"{recipe.run}/seed0/metrics.jsonl").read_text()
  assert '"step": 30' in steps and "resumed" in console.file.getvalue()


def test_missing_teachers_are_trained_first_and_all_share_the_devices(
  recipe, finished_config, config, console, tmp_path, monkeypatch
):
  teacher, own = f"{tmp_path}/teachers/verse/seed0", f"{recipe.run}/seed0"
  shared, runs = [], []

  def share(configs):
    shared.append([one.job.run for one in configs])
    return list(configs)

  def run(single, console):
    runs.append(single.job.run)
    made = copy_run(finished_config, replace(config, run=single.job.run))
    return train.Result(made, 47, 1.5, 3.0, signalled=signal.SIGTERM)

  monkeypatch.setattr(reproduce, "share_batches", share)
  monkeypatch.setattr(train, "run", run)
  for _ in range(2):
    assert reproduce.run(PUPIL, recipe, console) == ([], signal.SIGTERM)
  assert shared == [[teacher, own], [own]]
  assert runs == [teacher, own]
  assert f"teacher {teacher}" in console.file.getvalue()


@pytest.mark.parametrize(
  ("damage", "message"),
  [
    ("flags", "seed0 holds a finished run .*: learning_rate is .* 0.5 here; "),
    ("teacher", "seed0 holds a finished run .*: hidden_size is 9 there"),
    ("corpus", "seed0 holds a finished run .*: the corpus has changed; "),
    ("extended", "seed0 holds a run that began with num"),
    ("unfinished", "seed0 holds a run that began with num"),
    ("run", "all seeds, got .*seed0, which is a run"),
  ],
)
def test_what_is_not_a_run_of_the_recipe_is_refused_before_any_training(
  damage, message, trained, finished_config, config, console, monkeypatch
):
  for module in (train, evaluate):
    forbid(monkeypatch, module)
  row, directory = ROW, Path(f"{trained.run}/seed0")
  if damage == "flags":
    row = ROW._replace(flags=["--learning_rate=0.5"])
  elif damage == "teacher":
    row = PUPIL
    teacher = Path(trained.run).parent / "teachers" / "verse" / "seed0"
    copy_run(finished_config, replace(config, run=str(teacher)))
    edit_config(teacher, hidden_size=9)
  elif damage == "corpus":
    corpus = Path(config.data.corpus)
    corpus.write_text(corpus.read_text() + "more")
  elif damage == "extended":
    edit_config(directory, extensions=[{"before": {"num_epochs": 0}}])
  elif damage == "unfinished":
    (directory / "result.json").unlink()
    edit_config(directory, num_epochs=0)
  else:
    trained = replace(trained, run=str(directory))
  with pytest.raises(ValueError, match=message):
    reproduce.run(row, trained, console)


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
