"""A run directory: locked, new, resumed, extended, replaced or refused."""

import fcntl
import json
import os
import re
import shutil
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments import train
from experiments.trainer import run_dir
from experiments.trainer.data import text_sha256
from experiments.trainer.environment import environment
from experiments.trainer.history import read_run_history
from experiments.trainer.records import replace, to_record
from experiments.trainer.run_dir import (
  INIT_FROM,
  JOB_FLAGS,
  LOCK,
  SHA256,
  TEACHERS,
  changed_flags,
  lock,
  open_run_dir,
  read_config,
  read_result,
  recorded_flags,
)
from lstm_jax.training.checkpoint import STATE
from tests.experiments.conftest import edit_config
from tests.experiments.trainer.resuming import (
  last_checksums,
  outcome,
  read_rows,
)
from tests.patterns import exact
from tests.power import tree


def opened(config, *, may_extend=True, **facts):
  """Open and close the directory of a run; return its `OpenedRun`."""
  text = Path(config.data.corpus).read_text(encoding="utf-8")
  facts = {SHA256: text_sha256(text)} | facts
  flags = recorded_flags(config)
  with open_run_dir(flags, facts, may_extend=may_extend) as found:
    return found


def unfinish(directory):
  (directory / "result.json").unlink()


def end_early(directory):
  edit_config(directory, patience=2)
  (directory / "result.json").write_text('{"stopped_early": true}')


def lose_states(directory):
  for state in directory.glob(f"checkpoints/*/{STATE}"):
    shutil.rmtree(state)


def unfinish_without_states(directory):
  unfinish(directory)
  lose_states(directory)


def no_change(directory):
  del directory


def late_batches(directory):
  edit_config(directory, num_epochs=3, late_batch_size=4)


# What was done to the finished run of `config`, which has 1 epoch and no
# patience; the flags that change; and what becomes of the run: "resumed", the
# epochs before it is extended, or the words of the error.
ANSWERS = [
  (unfinish, {}, "resumed"),
  (unfinish, {"quiet": True}, "resumed"),
  (unfinish, {"num_epochs": 3}, 1),
  (unfinish, {"patience": 7}, 1),
  (unfinish, {"seed": 1, "num_epochs": 3}, "seed is 0 there and 1 here"),
  (unfinish, {"resume": False}, "an unfinished run; --resume continues it"),
  (unfinish_without_states, {}, "without a checkpoint to continue from"),
  (no_change, {"num_epochs": 2}, 1),
  (no_change, {}, "a finished run; .* --num_epochs above 1 extends it$"),
  (
    lambda directory: edit_config(directory, num_epochs="1"),
    {"num_epochs": 2},
    "config.json lacks num_epochs, as that of another version",
  ),
  (no_change, {"patience": 3}, "a finished run of another .*: patience is 0"),
  (no_change, {"num_epochs": 2, "seed": 1}, "seed is 0 there and 1 here"),
  (no_change, {"num_epochs": 2, "resume": False}, "already holds a finished r"),
  (lose_states, {"num_epochs": 2}, "without a checkpoint to continue from"),
  (end_early, {"patience": 2}, "a larger --patience, or 0, extends it$"),
  (end_early, {"patience": 2, "num_epochs": 2}, "a larger --patience, or 0, e"),
  (end_early, {"patience": 1}, "a larger --patience, or 0, extends it$"),
  (end_early, {"patience": 3}, 1),
  (end_early, {"patience": 0, "num_epochs": 2}, 1),
  (
    lambda directory: edit_config(directory, num_epochs=3),
    {"num_epochs": 2},
    "num_epochs is 3 there and 2 here",
  ),
  (
    lambda directory: edit_config(directory, patience=5),
    {"num_epochs": 2, "patience": 4},
    "patience is 5 there and 4 here",
  ),
  (
    late_batches,
    {"num_epochs": 4, "late_batch_size": 4},
    "--late_batch_size=4 applies to the last third of its 3 epochs",
  ),
  (
    lambda directory: edit_config(directory, num_seeds=2),
    {},
    "holds a sweep; --overwrite replaces it, another --run keeps it$",
  ),
]


@pytest.mark.parametrize(("before", "changes", "expected"), ANSWERS)
def test_a_run_is_resumed_extended_or_refused(
  before, changes, expected, finished, config
):
  before(finished)
  files, config = tree(finished), replace(config, **changes)
  if expected == "resumed":
    assert opened(config) == (finished, True, None)
    assert tree(finished) == files
  elif isinstance(expected, int):
    assert opened(config) == (finished, True, expected)
    assert not (finished / "result.json").exists()
    assert opened(config) == (finished, True, None)
  else:
    with pytest.raises(ValueError, match=expected) as error:
      opened(config)
    assert str(finished) in str(error.value)
    assert tree(finished) == files


def test_only_where_it_may_a_run_is_extended(finished, config):
  """A sweep never is: its members are not told of it."""
  with pytest.raises(ValueError, match=r"num_epochs is 1 there and 2 here"):
    opened(replace(config, num_epochs=2), may_extend=False)


def test_a_run_without_any_checkpoint_starts_again(finished, config):
  unfinish(finished)
  shutil.rmtree(finished / "checkpoints")
  assert opened(config, **{INIT_FROM: "1a2b"}).resuming
  assert read_config(finished)[INIT_FROM] == "1a2b"  # as it is now


def test_a_run_is_neither_resumed_nor_extended_on_another_corpus(
  finished, config
):
  path = Path(config.data.corpus)
  path.write_text(path.read_text().replace("lovely", "lively"))
  for epochs in (2, 1):
    with pytest.raises(ValueError, match=r"has changed; .* --init_from in ano"):
      opened(replace(config, num_epochs=epochs))
    (finished / "result.json").unlink(missing_ok=True)


def test_a_corpus_that_was_moved_is_recorded_where_it_is(
  finished, config, tmp_path
):
  unfinish(finished)
  moved = Path(config.data.corpus).rename(tmp_path / "moved.txt")
  assert opened(replace(config, corpus=str(moved))).resuming
  assert read_run_history(finished).config.data.corpus == str(moved)


@pytest.mark.parametrize(
  ("flag", "paths", "entry"),
  [  # `entry`: what config.json has of the weights, here a short SHA-256
    ("teacher", [("a",), ("b",)], {TEACHERS: ["1a2b"]}),
    ("init_from", ["a", "b"], {INIT_FROM: "1a2b"}),
  ],
)
def test_weights_that_were_moved_are_no_other_configuration(
  flag, paths, entry, config
):
  first, moved = (replace(config, **{flag: path}) for path in paths)
  opened(first, **entry)
  assert opened(moved, **entry).resuming
  with pytest.raises(ValueError, match=f"{flag} is .* there and .* here"):
    opened(moved, **dict.fromkeys(entry, "other"))


def test_teachers_that_were_trained_again_are_refused(config):
  config = replace(config, teacher=("a",))
  opened(config, **{TEACHERS: ["1a2b"]})
  with pytest.raises(ValueError, match="teachers had other weights"):
    opened(config, **{TEACHERS: ["3c4d"]})


def test_every_flag_but_those_of_the_job_must_be_the_same(finished, config):
  placing = {"mesh", "devices"}
  assert set(JOB_FLAGS) == {"run", "overwrite", "resume", "quiet"} | placing
  record, flags = read_config(finished), recorded_flags(config)
  assert changed_flags(record, flags, {}) == {}
  for name in to_record(config).keys() - {*JOB_FLAGS}:
    other = record | {name: "another"}
    assert [*changed_flags(other, flags, {})] == [name]


def test_an_extension_is_recorded_with_what_was_before(finished, config):
  before = read_result(finished)
  opened(replace(config, num_epochs=3))
  opened(replace(config, num_epochs=4, patience=7))
  first, second = read_config(finished)["extensions"]
  assert first["before"] == {"num_epochs": 1, "patience": 0, "result": before}
  assert second["before"] == {"num_epochs": 3, "patience": 0, "result": None}
  assert (first["num_epochs"], first["patience"]) == (3, 0)
  assert (second["num_epochs"], second["patience"]) == (4, 7)
  assert environment().items() <= second.items()


def test_a_kill_leaves_no_finished_run_with_epochs_that_it_has_not_made(
  finished, config, monkeypatch
):
  def killed(path, record):
    raise KeyboardInterrupt

  before = (finished / "config.json").read_bytes()
  monkeypatch.setattr(run_dir, "write_json", killed)
  with pytest.raises(KeyboardInterrupt):
    opened(replace(config, num_epochs=2))
  assert not (finished / "result.json").exists()
  assert (finished / "config.json").read_bytes() == before


def test_a_finished_run_goes_on_to_more_epochs(finished, config, console):
  before, rows = read_result(finished), read_rows(finished)
  result = train.run(replace(config, num_epochs=2), console)
  assert "extended    from 1 epoch to 2" in console.file.getvalue()
  after = read_rows(finished)
  assert after[: len(rows)] == rows
  steps = [row["step"] for row in after if "train_loss" in row]
  # A row ends after LOG_EVERY = 10 steps, or before, at an evaluation.
  assert steps == [10, 20, 30, 40, 47, 57, 60, 70, 80, 90, 94]
  seconds = [row["seconds"] for row in after if "seconds" in row]
  assert seconds == sorted(seconds)
  samples = (finished / "samples.txt").read_text()
  assert samples.count("=== best checkpoint") == 1
  assert samples.count("=== untrained") == 1
  assert result.val_loss <= before["val_loss"]
  assert (finished / "result.json").exists()


@pytest.mark.exhaustive
def test_an_extension_at_a_constant_rate_ends_as_a_run_of_all_epochs(
  config, console
):
  config = replace(config, schedule="constant", ema_decay=0.9, eval_every=99)
  train.run(config, console)
  train.run(replace(config, num_epochs=2), console)
  whole = replace(config, num_epochs=2, run=config.job.run + "2")
  train.run(whole, console)
  (step, extended), (same, at_once) = (
    last_checksums(Path(run)) for run in (config.job.run, whole.job.run)
  )
  assert step == same == 94
  assert extended == at_once and len(extended) > 20


def test_overwrite_replaces_a_run_and_keeps_what_is_no_part_of_it(
  finished, config, console
):
  named = set(re.findall(r"^([\w.]+)/?  ", run_dir.__doc__, re.MULTILINE))
  assert {"config.json", "ensemble.json", "profile"} < named
  expected = outcome(finished)
  for name in named - {LOCK} - {path.name for path in finished.iterdir()}:
    (finished / name).mkdir()
  (finished / "notes.txt").touch()
  assert not opened(replace(config, overwrite=True, seed=1)).resuming
  left = {path.name for path in finished.iterdir()}
  assert left == {"config.json", "notes.txt"}
  train.run(replace(config, overwrite=True), console)
  assert outcome(finished) == expected


def test_a_text_in_a_run_is_not_replaced_by_one_that_trains_on_it(
  finished, config
):
  before, text = tree(finished), finished / "samples.txt"
  again = replace(config, overwrite=True, corpus=str(text))
  with pytest.raises(
    ValueError, match=f"replace --corpus={exact(text)}, a fil"
  ):
    opened(again)
  assert tree(finished) == before


@pytest.mark.parametrize("flag", ["teacher", "init_from"])
def test_a_run_is_not_replaced_by_one_that_reads_it(
  flag, finished, config, tmp_path
):
  (tmp_path / "link").symlink_to(finished)
  source, before = str(tmp_path / "link"), tree(finished)
  value = (source,) if flag == "teacher" else source
  message = f"--overwrite would replace the run of --{flag}={source}: pass ano"
  with pytest.raises(ValueError, match=exact(message)):
    opened(replace(config, overwrite=True, **{flag: value}))
  assert tree(finished) == before


def test_a_directory_with_other_files_is_refused(config):
  directory = Path(config.job.run)
  directory.mkdir()
  (directory / "result.json.0a1b2c3d.part").touch()  # left by a kill
  (directory / LOCK).touch()
  opened(config)
  assert [path.name for path in directory.iterdir()] == ["config.json"]
  record = read_config(directory)
  for name, text, message in [
    ("notes.txt", "", "it holds notes.txt"),
    ("movie.tar.0a1b2c3d.part", "", "it holds movie.tar"),
    ("config.json", "{", "it holds config.json"),
    ("config.json", json.dumps(record | {"x": 1})[:-1], "it holds config.json"),
    ("config.json", json.dumps({"seed": 0}), "lacks"),
  ]:
    shutil.rmtree(directory)
    directory.mkdir()
    (directory / name).write_text(text)
    with pytest.raises(ValueError, match=f"not empty: .*{message}"):
      opened(replace(config, overwrite=True))


def test_a_file_in_place_of_the_directory_of_all_runs_is_refused(
  config, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "runs").touch()
  with pytest.raises(ValueError, match="runs is not a directory: pass --run"):
    opened(replace(config, run=""))


def test_new_runs_of_one_second_have_directories_of_their_own(
  config, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  clock = SimpleNamespace(now=lambda: datetime(2026, 2, 3, 4, 5, 6))
  monkeypatch.setattr(run_dir, "datetime", clock)
  monkeypatch.setattr(run_dir, "time_now", lambda: "now")
  found = [opened(replace(config, run="")) for _ in range(3)]
  name = "runs/2026-02-03-040506"
  assert [(str(d), r) for d, r, _ in found] == [
    (f"{name}{end}", False) for end in ("", "-2", "-3")
  ]


def test_a_run_whose_result_is_damaged_is_finished(tmp_path):
  assert read_result(tmp_path) is None
  (tmp_path / "result.json").write_text('{"step": 2')
  assert read_result(tmp_path) == {}


def test_a_config_without_permission_is_named(finished, config, monkeypatch):
  def refuse(path, **options):
    raise PermissionError(13, "Permission denied", str(path))

  monkeypatch.setattr(Path, "read_bytes", refuse)
  named = exact(repr(str(finished / "config.json")))
  with pytest.raises(PermissionError, match=named):
    read_config(finished)


def test_a_directory_that_is_locked_names_the_process(tmp_path):
  message = f"^{exact(tmp_path)} is in use by process {os.getpid()}$"
  with (
    lock(tmp_path),
    pytest.raises(ValueError, match=message),
    lock(tmp_path),
  ):
    pass
  (tmp_path / LOCK).write_text("1234567890")  # as a crash leaves it
  with lock(tmp_path):
    assert (tmp_path / LOCK).read_text() == str(os.getpid())
  assert not (tmp_path / LOCK).exists()


def test_a_lock_is_not_taken_from_another_process(tmp_path):
  """Not even where the directory was moved while it was locked."""
  directory = tmp_path / "run"
  directory.mkdir()
  with lock(directory):
    directory.rename(tmp_path / "moved")
    directory.mkdir()
    (directory / LOCK).write_text("12345")
    (directory / "mine.tar.gz.part").touch()
  assert (directory / LOCK).read_text() == "12345"
  assert (directory / "mine.tar.gz.part").exists()


def test_a_lock_whose_file_was_deleted_is_taken_again(tmp_path, monkeypatch):
  """The previous holder deletes its file once another process has opened it."""
  path, flock, calls = tmp_path / LOCK, fcntl.flock, []

  def delete_once(file, operation):
    flock(file, operation)
    calls.append(operation)
    if len(calls) == 1:
      path.unlink()

  monkeypatch.setattr(fcntl, "flock", delete_once)
  with lock(tmp_path):
    assert path.read_text() == str(os.getpid())
    with pytest.raises(ValueError, match="is in use"), lock(tmp_path):
      pass
  assert not path.exists()
