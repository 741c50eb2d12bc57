"""A run is extended in its directory by more epochs."""

import json
import math
import shutil
from pathlib import Path

import pytest

from experiments import train
from experiments.pages.report import make_header
from experiments.trainer import opening
from experiments.trainer.checkpoint import Progress
from experiments.trainer.data import read_corpus
from experiments.trainer.environment import environment
from experiments.trainer.history import read_run_history
from experiments.trainer.opening import open_run_dir
from experiments.trainer.records import replace
from experiments.trainer.run_dir import SHA256
from experiments.trainer.setup import make_setup
from experiments.trainer.start import describe_extension
from tests.experiments.conftest import VERSE, edit_config
from tests.experiments.trainer.resuming import last_checksums, read_rows
from tests.power import tree


def cosine(updates, num_steps):
  """Return the learning rate of `config` after `updates` updates.

  After 5 steps of warmup it falls from 0.02, by a cosine, to 1 % of that after
  `num_steps` updates.
  """
  share = (updates - 5) / (num_steps - 5)
  return 0.02 * (0.01 + 0.99 * (1 + math.cos(math.pi * share)) / 2)


def opened(config):
  """Open and close the directory of a run; return its `OpenedRun`."""
  facts = {SHA256: read_corpus(config.data).sha256}
  with open_run_dir(config, facts, may_extend=True) as found:
    return found


@pytest.mark.exhaustive
def test_an_extension_counts_steps_with_a_development_split(config, console):
  """The number depends on the gap that the split leaves in the text."""
  text = (VERSE + "\n") * 40
  Path(config.data.corpus).write_text(text, encoding="utf-8")
  config = replace(config, dev_fraction=0.3, batch_size=5)
  steps = make_setup(config).num_steps
  tokens = make_setup(config).corpus.train.tokens
  assert steps != config.batching.num_steps(tokens, seed=0)  # without the gap
  train.run(config, console)
  train.run(replace(config, num_epochs=2), console)
  assert f"at step {steps} of {steps}; it is " in console.file.getvalue()


@pytest.mark.exhaustive
def test_a_finished_run_goes_on_and_says_what_the_learning_rate_does(
  finished, config, console
):
  before = json.loads((finished / "result.json").read_text())
  rows = read_rows(finished)
  result = train.run(replace(config, num_epochs=2), console)
  reached, here = cosine(46, 47), cosine(47, 94)
  assert 20 * reached < here
  assert (
    f"extended    from 1 epoch to 2: the learning rate was {reached:.3g} at "
    f"step 47 of 47; it is {here:.3g} at step 48 of 94, and "
    f"{cosine(93, 94):.3g} at the last\n"
  ) in console.file.getvalue()

  after = read_rows(finished)
  assert after[: len(rows)] == rows
  steps = [row["step"] for row in after if "train_loss" in row]
  # A row ends after LOG_EVERY = 10 steps, or before, at an evaluation.
  assert steps == [10, 20, 30, 40, 47, 57, 60, 70, 80, 90, 94]
  rates = {r["step"]: r["lr"] for r in after if "lr" in r}
  assert rates[57] == pytest.approx(cosine(56, 94), rel=1e-5)
  seconds = [row["seconds"] for row in after if "seconds" in row]
  assert seconds == sorted(seconds)
  samples = (finished / "samples.txt").read_text()
  assert samples.count("=== best checkpoint") == 1
  assert samples.count("=== untrained") == 1
  assert result.val_loss <= before["val_loss"]

  record = json.loads((finished / "config.json").read_text())
  assert record["num_epochs"] == 2
  (extension,) = record["extensions"]
  assert extension["num_epochs"] == 2
  assert environment().items() <= extension.items()
  assert extension["before"] == {
    "num_epochs": 1,
    "patience": 0,
    "result": before,
  }
  history = read_run_history(finished)
  results = make_header([history])["results"]
  shown = dict(zip(results["head"], results["rows"][0], strict=True))
  assert (shown["training steps"], shown["finished"]) == ("94 of 94", "yes")
  assert history.samples[-2].title.startswith("step 94, epoch 2.0: ")


def test_skipped_steps_do_not_advance_the_rate_of_an_extension(config):
  setup = make_setup(replace(config, num_epochs=2, nonfinite="skip"))
  # 47 steps of 1 epoch, which made 44 updates.
  assert describe_extension(setup, 47, 1, skipped=3).endswith(
    f"the learning rate was {cosine(43, 47):.3g} at step 47 of 47; it is "
    f"{cosine(44, 94):.3g} at step 48 of 94, and {cosine(90, 94):.3g} at the "
    "last"
  )


def test_skipped_steps_that_wait_for_a_row_are_counted():
  # (loss, gradient norm, tokens) of three steps, two of them not finite.
  pending = [[2.0, 1.0, 64.0], [math.nan, 1.0, 64.0], [2.0, math.inf, 64.0]]
  progress = Progress(
    4, [], None, pending, 0.0, 0.0, skipped=(3, 0), log_bytes={}
  )
  assert progress.num_skipped == 5


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


def test_an_unfinished_run_is_extended(finished, config):
  """Also after a kill in an extension that had only deleted result.json."""
  (finished / "result.json").unlink()
  assert opened(replace(config, num_epochs=3)).extended_from == 1
  again = opened(replace(config, num_epochs=3))
  assert (again.resuming, again.extended_from) == (True, None)
  assert opened(replace(config, num_epochs=4, patience=7)).extended_from == 3
  record = json.loads((finished / "config.json").read_text())
  first, second = record["extensions"]
  assert first["before"]["result"] is second["before"]["result"] is None
  assert (second["num_epochs"], second["patience"]) == (4, 7)
  for patience in (9, 0):  # more patience, and no limit, extend it as well
    more = replace(config, num_epochs=4, patience=patience)
    assert opened(more).extended_from == 4


def test_a_finished_run_that_is_extended_is_unfinished(finished, config):
  assert opened(replace(config, num_epochs=2)).extended_from == 1
  assert not (finished / "result.json").exists()


def test_a_kill_leaves_no_finished_run_with_epochs_that_it_has_not_made(
  finished, config, monkeypatch
):
  def killed(path, record):
    raise KeyboardInterrupt

  before = (finished / "config.json").read_bytes()
  monkeypatch.setattr(opening, "write_json", killed)
  with pytest.raises(KeyboardInterrupt):
    opened(replace(config, num_epochs=2))
  assert not (finished / "result.json").exists()
  assert (finished / "config.json").read_bytes() == before


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (
      {"num_epochs": 2, "seed": 1},
      "holds a finished run of another configuration: seed is 0 there and 1 "
      "here; --overwrite replaces it, another --run keeps it$",
    ),
    ({}, "already holds a finished run; .* --num_epochs above 1 extends it$"),
    ({"patience": 3}, "already holds a finished run; --overwrite replaces it"),
    (
      {"num_epochs": 2, "resume": False},
      "already holds a finished run; --overwrite replaces it",
    ),
  ],
)
def test_a_finished_run_is_extended_only_by_more_epochs(
  changes, message, finished, config
):
  before = tree(finished)
  with pytest.raises(ValueError, match=message):
    opened(replace(config, **changes))
  assert tree(finished) == before


@pytest.mark.parametrize("num_epochs", [1, 2])
def test_a_finished_run_without_checkpoints_is_not_extended(
  num_epochs, finished, config
):
  """They were deleted, for example to free space on the disk."""
  shutil.rmtree(finished / "checkpoints")
  message = (
    "holds a finished run without a checkpoint to continue from; --overwrite "
    "replaces it, another --run keeps it$"
  )
  with pytest.raises(ValueError, match=message):
    opened(replace(config, num_epochs=num_epochs))


def test_a_finished_run_is_not_extended_with_less_patience(finished, config):
  path = finished / "config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | {"patience": 5}))
  before, more = tree(finished), replace(config, num_epochs=2)
  with pytest.raises(
    ValueError,
    match=r"has finished: .*, --patience must be at least 5, or 0, got 4$",
  ):
    opened(replace(more, patience=4))
  assert tree(finished) == before
  assert opened(replace(more, patience=5)).extended_from == 1
  assert opened(replace(more, patience=0, num_epochs=3)).extended_from == 2


def test_a_run_is_not_given_fewer_epochs(finished, config):
  path = finished / "config.json"
  record = json.loads(path.read_text()) | {"num_epochs": 3}
  path.write_text(json.dumps(record))
  fewer = replace(config, num_epochs=2)
  with pytest.raises(ValueError, match="already holds a finished run; "):
    opened(fewer)
  (finished / "result.json").unlink()
  with pytest.raises(ValueError, match="num_epochs is 3 there and 2 here"):
    opened(fewer)


def test_a_run_is_not_extended_on_a_corpus_that_has_changed(finished, config):
  path, before = Path(config.data.corpus), tree(finished)
  path.write_text(path.read_text().replace("lovely", "lively"))
  message = "has changed since the run in .*, --init_from=.* starts another"
  with pytest.raises(ValueError, match=message):
    opened(replace(config, num_epochs=2))
  assert tree(finished) == before


def test_a_run_whose_late_batches_would_change_is_not_extended(
  finished, config
):
  path = finished / "config.json"
  record = json.loads(path.read_text())
  late = replace(config, late_batch_size=4, num_epochs=6)
  for epochs in (2, 3):  # with 2 epochs, no batches are late
    path.write_text(
      json.dumps(record | {"num_epochs": epochs, "late_batch_size": 4})
    )
    if epochs == 2:
      assert opened(late).extended_from == 2
    else:
      # The extension above has deleted it: the run is finished again.
      (finished / "result.json").write_text("{}")
      with pytest.raises(ValueError, match="=4 applies to the last third of i"):
        opened(late)
  # More patience leaves the late batches where they are.
  (finished / "result.json").write_text('{"stopped_early": true}')
  more = replace(late, num_epochs=3, patience=2)
  edit_config(finished, patience=1)
  assert opened(more).extended_from == 3


def test_a_run_that_resumes_with_a_moved_corpus_records_where_it_is_now(
  finished, config, tmp_path, monkeypatch
):
  def recorded():
    return read_run_history(finished).config.data.corpus

  monkeypatch.chdir(finished)
  copy = shutil.copy(config.data.corpus, tmp_path / "text.md")
  longer = replace(config, corpus=str(copy), num_epochs=2)
  opened(longer)
  assert recorded() == config.data.corpus  # which is still there
  Path(config.data.corpus).unlink()
  opened(longer)  # resumed, not extended
  assert recorded() == str(copy)
  renamed = copy.rename(tmp_path / "renamed.md")
  opened(replace(longer, corpus=str(renamed), num_epochs=3))
  assert recorded() == str(renamed)
