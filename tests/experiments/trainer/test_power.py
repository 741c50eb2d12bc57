"""What a run says it has saved outlives a power failure."""

import pytest

from experiments import train
from experiments.trainer import logger
from experiments.trainer.records import replace
from tests.experiments.trainer.resuming import signal_at
from tests.power import Disk, tree

# The lock, and what only shows the metrics: a run does without them.
NOT_PROMISED = "loss.png", "lock", "tensorboard"


def promised(directory):
  """Return the contents of a run's files, by path, without NOT_PROMISED."""
  files = tree(directory).items()
  return {n: b for n, b in files if n.split("/")[0] not in NOT_PROMISED}


def test_a_run_is_on_the_disk_when_it_says_so(
  config, console, monkeypatch, tmp_path
):
  """It says so when it stops or ends; rows are on the disk once written."""
  (tmp_path / "disk").mkdir()
  directory = tmp_path / "disk" / "runs" / "one"
  config = replace(config, run=str(directory))
  disk, rows, left = Disk(monkeypatch), [], []
  append, show = logger.append, console.print

  def appended(path, text):
    append(path, text)
    assert disk.contents(path) == path.read_bytes()
    rows.append(path.name)

  def shown(*objects, **options):
    # The line of a stopped run, and the one that names the files of a run.
    if any(line in f"{objects}" for line in ("SIGTERM: stopped", " holds ")):
      copy = tmp_path / f"left{len(left)}"
      disk.after_failure(tmp_path / "disk", copy)
      left.append(promised(copy / "runs" / "one"))
      assert left[-1] == promised(directory)
    show(*objects, **options)

  monkeypatch.setattr(logger, "append", appended)
  monkeypatch.setattr(console, "print", shown)
  with pytest.MonkeyPatch.context() as patch:
    signal_at(patch, 33)
    train.run(config, console)
  train.run(config, console)
  # Of 47 training steps a row for each 10 and the last, and for evaluations at
  # steps 10, 20, 30, 40 and the last.
  assert rows.count("metrics.jsonl") == 5 + 5
  stopped, *_, finished = left
  assert {"config.json", "metrics.jsonl", "samples.txt"} <= stopped.keys()
  assert any(name.startswith("checkpoints/33/state/") for name in stopped)
  assert finished.keys() - stopped.keys() >= {"result.json"}
