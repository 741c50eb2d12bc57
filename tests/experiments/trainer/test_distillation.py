"""With --teacher, a run learns from the predictions of other runs."""

import json
from pathlib import Path

import numpy as np
import optax
import pytest

from experiments import sweep, train
from experiments.trainer.distillation import (
  make_epochs,
  read_teachers,
  soft_targets,
)
from experiments.trainer.memory import dry_run
from experiments.trainer.records import replace
from experiments.trainer.setup import make_setup
from experiments.trainer.trained import load
from lstm_jax.language import make_batches
from tests.experiments.conftest import VERSE, copy_run
from tests.experiments.trainer.resuming import read_rows, stop_at

LIMIT = 10**9  # bytes that the teachers' predictions may take


@pytest.fixture
def config(config, finished):
  """A run that learns from `finished`, in another directory."""
  return replace(
    config, teacher=(str(finished),), run=f"{config.job.run}-next", seed=1
  )


@pytest.fixture
def two_teachers(config, finished, finished_config):
  """A run that learns from `finished` and a copy of it."""
  other = replace(config, run=f"{config.job.run}-other")
  copied = copy_run(finished_config, other)
  return replace(config, teacher=(str(finished), str(copied)))


def test_the_targets_mix_the_token_with_the_mean_of_the_teachers(config):
  config = replace(config, teacher_weight=0.25)
  setup = make_setup(config)
  (teacher,) = read_teachers(setup, LIMIT)
  shifted = teacher.params._replace(bias=teacher.params.bias[::-1])
  other = teacher._replace(params=shifted)
  targets = soft_targets(setup, [teacher, other])
  tokens = setup.corpus.train.tokens
  # One column of the batches (of 3 sequences of 8 tokens, as in `config`), read
  # in a single pass from the zero state.
  batches = make_batches(tokens, 3, 8)
  column = batches.tokens[:, 1]
  places = make_batches(np.arange(len(tokens)), 3, 8).tokens[1:, 1]
  probs = []
  for one in (teacher, other):
    _, logits = one.model.apply(
      one.params, one.model.initial_state((1,)), column[:-1, None]
    )
    y = np.asarray(logits[:, 0], np.float64)
    probs.append(np.exp(y) / np.exp(y).sum(-1, keepdims=True))
  assert np.abs(probs[0] - probs[1]).max() > 0.01
  onehot = np.eye(setup.corpus.tokenizer.size)[column[1:]]
  expected = 0.75 * onehot + 0.25 * np.mean(probs, axis=0)
  # The first place is left out: its target comes from the column before, which
  # ends there, and whose prediction follows more tokens.
  assert np.abs(targets[places] - expected)[1:].max() < 1e-5
  assert np.abs(targets.sum(axis=1) - 1).max() < 1e-5
  assert targets[0, tokens[0]] == 1  # it follows no token
  alone = make_setup(replace(config, teacher_weight=1.0))
  targets = soft_targets(alone, [teacher, other])
  assert np.abs(targets[places] - np.mean(probs, axis=0))[1:].max() < 1e-5


def test_batches_are_those_of_the_run_without_teachers(config, console):
  config = replace(
    config, num_epochs=2, random_offsets=True, short_seq_prob=0.3
  )
  setup = make_setup(config)
  teachers = read_teachers(setup, LIMIT)
  targets = soft_targets(setup, teachers)
  hard, soft = setup.epochs(), make_epochs(setup, teachers, console)
  count = 0
  for one, other in zip(hard, soft, strict=True):
    assert one.num_batches == other.num_batches
    for index in range(one.num_batches):
      tokens, predicted = one.batch(index)
      distilled_tokens, q = other.batch(index)
      assert np.array_equal(tokens, distilled_tokens)
      # Half of each target is the token's: no other token can have more.
      assert np.array_equal(q.argmax(axis=-1), predicted)
      assert q.shape == (*predicted.shape, targets.shape[1])
      count += 1
  assert count == setup.num_steps


def test_the_training_loss_is_the_cross_entropy_of_the_targets(config, console):
  setup = make_setup(replace(config, output_dropout=0.0, weight_drop=0.0))
  teachers = read_teachers(setup, LIMIT)
  tokens, q = next(make_epochs(setup, teachers, console)).batch(0)
  state = setup.make_state()
  _, logits = setup.model.apply(state.params, state.carry, tokens)
  expected = float(optax.softmax_cross_entropy(logits, q).mean())
  _, metrics = setup.train_step(state, tokens, q, setup.keys.noise)
  assert float(metrics.loss) == pytest.approx(expected, rel=1e-5)
  assert int(metrics.num_tokens) == tokens.size


@pytest.mark.exhaustive
def test_a_run_with_teachers_records_them_and_resumes_exactly(
  two_teachers, console
):
  config = replace(two_teachers, teacher_checkpoint="last")
  whole = train.run(config, console)
  record = json.loads((whole.directory / "config.json").read_text())
  step = load(Path(config.distillation.teacher[0]), "last").step
  assert record["teacher"] == list(config.distillation.teacher)
  one, other = record["teacher_sha256"]
  assert one == other and len(one) == 64  # copies of one run
  shown = console.file.getvalue()
  first, second = config.distillation.teacher
  assert f"teachers    {first} (step {step}), {second} (step {step}), " in shown
  again = replace(config, run=f"{config.job.run}-again")
  assert stop_at(33, again, console).stopped_by
  resumed = train.run(again, console)
  assert resumed.stopped_by is None
  losses = [
    [row["train_loss"] for row in read_rows(r.directory) if "train_loss" in row]
    for r in (whole, resumed)
  ]
  assert losses[0] == losses[1]
  assert resumed.val_loss == whole.val_loss


@pytest.mark.exhaustive
def test_a_run_whose_teacher_has_changed_is_not_resumed(
  config, finished, console
):
  """Not even where the teacher has made as many training steps as before."""
  stop_at(33, config, console)
  step = load(finished).step
  teacher = load(finished).config
  train.run(replace(teacher, learning_rate=0.03, overwrite=True), console)
  assert load(finished).step == step
  message = r"teachers had other weights when it started; --overwrite starts"
  with pytest.raises(ValueError, match=message):
    train.run(config, console)


def test_a_dry_run_counts_the_teachers_predictions(config, console):
  with_teacher = dry_run(config, console).bytes
  # 1,128 training tokens · 23 characters V · 4 bytes.
  assert "teachers    their predictions take 0.10 MB" in console.file.getvalue()
  plain = replace(config, teacher=())
  targets = 4 * 8 * 3 * 23  # 4 bytes · T · B · V, instead of 4 bytes · T · B
  assert with_teacher >= dry_run(plain, console).bytes + targets - 4 * 8 * 3
  with pytest.raises(ValueError, match="there is no run in nowhere"):
    dry_run(replace(config, teacher=("nowhere",)), console)


def test_the_last_weights_of_an_unfinished_teacher_are_refused(
  config, finished
):
  (finished / "result.json").unlink()
  setup = make_setup(config)
  assert read_teachers(setup, LIMIT)
  last = make_setup(replace(config, teacher_checkpoint="last"))
  with pytest.raises(ValueError, match=r"^--teacher: .* is not finished: "):
    read_teachers(last, LIMIT)


def test_with_a_development_split_a_teacher_reads_each_piece_by_itself(
  config, finished, console
):
  path = Path(config.data.corpus)
  path.write_text((VERSE + "\n") * 40)  # with the teacher's vocabulary
  setup = make_setup(replace(config, dev_fraction=0.3, random_offsets=True))
  teachers, (_, tokens, gap) = [load(finished)], setup.corpus.train
  targets = soft_targets(setup, teachers)
  known = np.flatnonzero(targets[np.arange(len(tokens)), tokens] == 1)
  assert known.tolist() == [0, gap]  # no token of the same piece is before them
  (hard,), (soft,) = setup.epochs(), make_epochs(setup, teachers, console)
  for index in range(hard.num_batches):
    assert np.array_equal(hard.batch(index)[0], soft.batch(index)[0])


@pytest.mark.parametrize(
  ("changes", "text", "message"),
  [
    ({"teacher": ("nowhere",)}, None, "there is no run in nowhere"),
    ({"val_fraction": 0.2}, None, "val_fraction must be 0.2, as in this run"),
    ({}, VERSE.replace("S", "Z"), r"has another vocabulary: .* \['S', 'Z'\]$"),
    ({}, VERSE + VERSE[::-1], "has another text"),
  ],
)
def test_an_unsuitable_teacher_is_refused(
  changes, text, message, config, console
):
  if text:
    Path(config.data.corpus).write_text(text * 20, encoding="utf-8")
  with pytest.raises(ValueError, match=rf"^--teacher.*{message}") as error:
    train.run(replace(config, **changes), console)
  assert "\n" not in str(error.value)
  assert not Path(config.job.run).exists()


def test_teachers_given_twice_too_large_or_for_a_sweep_are_refused(
  config, console, finished
):
  setup = make_setup(replace(config, teacher=(str(finished),) * 2))
  with pytest.raises(ValueError, match=r"^--teacher: .* is given twice"):
    read_teachers(setup, LIMIT)
  # The training split is 90 % of the 1,254 characters.
  with pytest.raises(ValueError, match=r"predictions of 1,128 tokens need"):
    read_teachers(make_setup(config), limit=1000)
  with pytest.raises(ValueError, match="--teacher"):
    sweep.run(replace(sweep.SweepConfig(), teacher=("runs/a",)), console)
