"""A reproduction trains and evaluates what is missing, and compares."""

import json
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments import evaluate, reproduce, train
from experiments.comparison import plan as plans
from experiments.comparison.board import (
  Board,
  Result,
  Row,
  Training,
  read_board,
)
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
from tests.experiments.trainer.resuming import signal_at
from tests.processes import ROOT

ROW = Row(
  "verse",
  "verse",
  "LSTM",
  [
    Result("cold", 2.0, 0.5, [0, 1], [1.5, 2.5]),
    Result("stateful", 1.75),
    Result("ensemble_stateful", 1.0, seeds=[0, 1]),
  ],
  "by hand",
  training=Training([2, 3], "a core"),
  recipe="verse",
)


@pytest.fixture
def recipe(config, tmp_path, monkeypatch):
  """The recipe of ROW: the flags of `config`."""
  default = to_record(TrainConfig())
  lines = [
    f"--{name}={value}"
    for name, value in to_record(config).items()
    if value != default[name] and name not in (*JOB_FLAGS, "seed")
  ]
  (tmp_path / "verse.flags").write_text("\n".join(lines))
  monkeypatch.setattr(plans, "RECIPES", str(tmp_path))
  return ReproduceConfig(run=str(tmp_path / "runs"), seeds=(0,))


@pytest.fixture
def trained(recipe, finished_config, config):
  """The same, whose run of seed 0 is finished and not evaluated."""
  directory = f"{recipe.run}/seed0"
  copy_run(finished_config, replace(config, run=directory))
  return recipe


def read(recipe):
  return json.loads((Path(recipe.run) / "reproduction.json").read_text())


def forbid(monkeypatch, module):
  def run(*args, **kwargs):
    raise AssertionError(f"{module.__name__} ran again")

  monkeypatch.setattr(module, "run", run)


def test_a_finished_run_is_evaluated_once_and_compared(
  trained, console, monkeypatch
):
  forbid(monkeypatch, train)
  with pytest.MonkeyPatch.context() as patch:
    calls = []
    original = evaluate.run
    patch.setattr(
      evaluate, "run", lambda *args: calls.append(args) or original(*args)
    )
    result = reproduce.run(ROW, trained, console)
  ((config, _),) = calls
  assert config.protocol == ("cold", "stateful")
  saved = json.loads(Path(f"{trained.run}/seed0/evaluation.json").read_text())
  cold, stateful = result.rows
  assert cold["values"] == [saved[UNIT]["cold"]]
  assert cold["published"] == {"mean": 1.5, "std": None}  # that of seed 0
  assert cold["difference"] == saved[UNIT]["cold"] - 1.5
  assert stateful["published"] == {"mean": 1.75, "std": None}
  record = read(trained)
  assert record["results"] == result.rows
  assert record["seeds"]["0"]["step"] == saved["step"]
  made = json.loads(Path(f"{trained.run}/seed0/config.json").read_text())
  environment = record["seeds"]["0"]["environment"]
  assert environment["versions"] == made["versions"]
  assert environment["git_commit"] == made["git_commit"]
  shown = console.file.getvalue()
  assert f"{cold['mean']:.4f}" in shown
  assert f"{cold['difference']:+.4f}" in shown
  assert "; published 2 to 3, a core\n" in shown
  assert "\nnot evaluated here: ensemble_stateful, of seeds 0, 1\n" in shown

  forbid(monkeypatch, evaluate)
  assert reproduce.run(ROW, trained, console) == result


def test_the_seeds_together_are_evaluated_once_and_compared(
  trained, config, console, monkeypatch
):
  """Here two runs of one seed, so that together they are as one."""
  forbid(monkeypatch, train)
  row = ROW._replace(evaluate=["--window=8"])
  other = replace(config, run=f"{trained.run}/seed1")
  copy_run(replace(config, run=f"{trained.run}/seed0"), other)
  made = json.loads(Path(f"{trained.run}/seed1/config.json").read_text())
  changed = json.dumps(made | {"seed": 1})
  Path(f"{trained.run}/seed1/config.json").write_text(changed)
  both = replace(trained, seeds=(0, 1))
  rows = reproduce.run(row, both, console).rows
  cold, stateful, together = rows
  assert together["protocol"] == "ensemble_stateful"
  assert together["mean"] == pytest.approx(stateful["mean"], rel=1e-6)
  assert together["mean"] != cold["mean"]
  assert together["difference"] == together["mean"] - 1.0
  assert together["seeds"] == [0, 1]
  assert read(trained)["results"] == rows
  saved = json.loads(Path(f"{trained.run}/seed0/ensemble.json").read_text())
  assert saved["members"] == 2
  assert [together["mean"]] == [saved[UNIT]["stateful"]]

  with pytest.MonkeyPatch.context() as patch:
    forbid(patch, evaluate)
    assert reproduce.run(row, both, console).rows == rows
  record = read(trained)
  for damaged in ({}, {"stateful": "1"}, [1]):
    path = Path(trained.run) / "reproduction.json"
    path.write_text(json.dumps(record | {"together": damaged}))
    assert reproduce.run(row, both, console).rows == rows
  assert len(reproduce.run(row, trained, console).rows) == 2  # of one seed


def test_a_row_that_is_evaluated_otherwise_is_evaluated_again(
  trained, console, monkeypatch
):
  before = reproduce.run(ROW, trained, console).rows[0]
  path = Path(trained.run) / "reproduction.json"
  narrow = ROW._replace(evaluate=["--window=8"])
  (row, _) = reproduce.run(narrow, trained, console).rows
  assert row["mean"] > before["mean"]  # with less context
  assert read(trained)["evaluate"] == ["--window=8"]
  good = read(trained)
  seed = good["seeds"]["0"]
  damaged = [
    good | {"seeds": {"0": seed | {k: None}}} for k in (UNIT, "seconds")
  ]
  damaged.append(good | {"seeds": {"0": {}}})
  damaged.append(good | {"seeds": {"0": seed | {"seconds": "12"}}})
  for text in ("{", "[]", *map(json.dumps, damaged)):
    path.write_text(text)
    assert reproduce.run(narrow, trained, console).rows[0] == row
    assert read(trained)["seeds"] == good["seeds"]
  # Another seed, which is not asked for and whole, is kept.
  both = good | {"seeds": {"0": {}, "7": seed}}
  path.write_text(json.dumps(both))
  reproduce.run(narrow, trained, console)
  assert read(trained)["seeds"] == {"0": seed, "7": seed}


def test_another_process_may_reproduce_another_seed(
  trained, console, monkeypatch
):
  """While this one evaluates its own."""
  path = Path(trained.run) / "reproduction.json"
  reproduce.run(ROW, trained, console)
  record = json.loads(path.read_text())
  path.unlink()
  original = evaluate.run

  def run(*args):
    seeds = {"1": record["seeds"]["0"]}
    path.write_text(json.dumps(record | {"seeds": seeds}))
    return original(*args)

  monkeypatch.setattr(evaluate, "run", run)
  reproduce.run(ROW, trained, console)
  assert read(trained)["seeds"].keys() == {"0", "1"}


def test_a_run_without_its_seconds_is_an_error_of_one_line(trained, console):
  result = Path(trained.run) / "seed0" / "result.json"
  result.write_text("{}")
  with pytest.raises(ValueError, match=f"{result} is damaged: it has no sec"):
    reproduce.run(ROW, trained, console)


def test_a_run_of_another_recipe_is_refused(trained, console):
  other = ROW._replace(flags=["--learning_rate=0.5"])
  message = "seed0 holds a finished run .*: learning_rate is .* 0.5 here; "
  with pytest.raises(ValueError, match=message):
    reproduce.run(other, trained, console)


def test_a_run_on_an_earlier_text_is_refused(trained, config, console):
  corpus = Path(config.data.corpus)
  corpus.write_text(corpus.read_text() + "more")
  message = "seed0 holds a finished run .*: the corpus has changed; another"
  with pytest.raises(ValueError, match=message):
    reproduce.run(ROW, trained, console)


@pytest.mark.exhaustive
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
  assert config.data.corpus in (row.corpus, "data/shakespeare.txt")
  options = parse(evaluate.EvaluateConfig(), job.evaluate_flags)
  assert config.job.run == f"runs/reproduce/{row.name}/seed0"
  assert options.run == (config.job.run,)
  for record in row.records[:1]:
    kept = json.loads((ROOT / record / "config.json").read_text())
    changed = {
      name
      for name, value in to_record(config).items()
      if kept[name] != value and name not in (*JOB_FLAGS, "corpus")
    }
    assert changed == set()


def test_the_published_mean_is_that_of_the_same_seeds():
  published = Result("cold", 2.0, 1.0, [0, 1, 2], [1.0, 2.0, 3.0])
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
  assert f"teacher {teacher}"[:60] in shown and "resumed     after" in shown
  forbid(monkeypatch, train)
  reproduce.run(pupil, recipe, console)


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
  flags = (
    f"--flagfile={ROOT}/experiments/recipes/tinyshakespeare-coupled.flags "
    "--seed=2"
  )
  command = reproduce.commands(teachers[2])[0]
  assert command.endswith(f"experiments.train {flags} --run={base}/seed2")
  monkeypatch.chdir(ROOT)
  flags = flags.replace(f"{ROOT}/", "")
  command = reproduce.commands(teachers[2])[0]
  assert command.endswith(f"experiments.train {flags} --run={base}/seed2")
  monkeypatch.chdir(tmp_path)
  (Path(base) / "seed1").mkdir(parents=True)
  (Path(base) / "seed1" / "result.json").write_text("{}")
  assert [*map(is_trained, plan_teachers(config))] == [False, True, False]
  for name in ("runs/mine", f"{base}/5", f"{base}/seed005"):
    with pytest.raises(ValueError, match=f"{name} must be a directory seedN"):
      plan_teachers(replace(config, teacher=(name,)))
  with pytest.raises(
    ValueError, match="teacher runs/mine/seed0: the name must"
  ):
    plan_teachers(replace(config, teacher=("runs/mine/seed0",)))


def test_a_run_that_was_trained_again_is_evaluated_again(
  trained, config, finished_config, console, monkeypatch
):
  """Also after an interruption between its training and its evaluation."""
  first = reproduce.run(ROW, trained, console).rows
  path = Path(trained.run) / "reproduction.json"
  record = read(trained)
  for name in record["seeds"]["0"][UNIT]:
    record["seeds"]["0"][UNIT][name] = 9.9
  path.write_text(json.dumps(record))
  shutil.rmtree(Path(trained.run) / "seed0")

  def train_again(single, console):
    made = copy_run(finished_config, replace(config, run=single.job.run))
    return SimpleNamespace(directory=made, stopped_by=None, signalled=None)

  def interrupted(job, console):
    raise KeyboardInterrupt

  monkeypatch.setattr(train, "run", train_again)
  with monkeypatch.context() as patched:
    patched.setattr(reproduce, "_evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
      reproduce.run(ROW, trained, console)
  assert reproduce.run(ROW, trained, console).rows == first


@pytest.mark.parametrize(("seed", "kept"), [(7, True), (1, False)])
def test_a_new_run_of_another_seed_leaves_the_result_of_all_together(
  trained, config, finished_config, console, monkeypatch, seed, kept
):
  reproduce.run(ROW, trained, console)
  path = Path(trained.run) / "reproduction.json"
  together = {"stateful": 1.25}
  path.write_text(json.dumps(read(trained) | {"together": together}))

  def train_seed(single, console):
    made = copy_run(finished_config, replace(config, run=single.job.run))
    record = json.loads((made / "config.json").read_text()) | {"seed": seed}
    (made / "config.json").write_text(json.dumps(record))
    return SimpleNamespace(directory=made, stopped_by=None, signalled=None)

  monkeypatch.setattr(train, "run", train_seed)
  reproduce.run(ROW, replace(trained, seeds=(seed,)), console)
  assert read(trained)["together"] == (together if kept else {})
  assert read(trained)["seeds"].keys() == {"0", f"{seed}"}


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


def test_a_row_without_published_seeds_needs_some():
  row = read_board().find("tinyshakespeare")
  row = row._replace(results=[r._replace(seeds=()) for r in row.results])
  with pytest.raises(ValueError, match="no seeds of tinyshakespeare were"):
    plan(row, ReproduceConfig())
  assert [job.seed for job in plan(row, ReproduceConfig(seeds=(3,)))] == [3]


def test_an_ensemble_is_evaluated_of_exactly_its_seeds():
  row = ROW._replace(evaluate=["--window=8"])

  def evaluated(*seeds):
    return ensemble_flags(row, plan(row, ReproduceConfig("r", seeds)))

  flags = ["--protocol=stateful", "--window=8"]
  assert evaluated(1, 0) == ["--run=r/seed1", "--run=r/seed0", *flags]
  assert evaluated(0) == evaluated(0, 1, 2) == []
  single = Result("cold", 2.0, None, [7], [2.0])
  row = row._replace(results=[*row.results, single])
  assert ensemble_seeds(row) == {0, 1}


def test_an_unknown_name_is_an_error_that_lists_the_known_ones():
  with pytest.raises(
    ValueError, match=r"one of .*tinyshakespeare, .*, got 'gpt'$"
  ):
    read_board().find("gpt")
