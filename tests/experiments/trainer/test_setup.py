"""What a run is made of: its random keys, and the kernels of a GPU.

Scans replace the kernels of --implementation here.
"""

import json
from pathlib import Path

import jax
import pytest

from experiments import evaluate, train
from experiments.comparison.training import sample_keys
from experiments.evaluate import EvaluateConfig
from experiments.trainer import history
from experiments.trainer.checkpoint import describe
from experiments.trainer.memory import dry_run
from experiments.trainer.records import replace
from experiments.trainer.setup import make_keys, make_setup
from experiments.trainer.trained import load
from lstm_jax import peephole_lstm
from lstm_jax.training import list_checkpoints, read_checkpoint
from tests.draws import worst
from tests.experiments.sampled import sample_texts
from tests.experiments.trainer.resuming import read_rows
from tests.interpreting import as_if_on_an_h100, count_kernels


@pytest.fixture
def fused(config):
  return replace(config, implementation="mosaic_gpu")


@pytest.mark.exhaustive
def test_a_run_with_kernels_is_evaluated_and_sampled_on_a_cpu(
  fused, finished_config, console, monkeypatch
):
  with as_if_on_an_h100(monkeypatch), monkeypatch.context() as stand_in:
    calls = count_kernels(stand_in)
    result = train.run(fused, console)
  assert {call[2] for call in calls} >= {8}  # time steps, of --seq_len
  made = Path(finished_config.job.run)
  other = json.loads((made / "result.json").read_text())
  assert abs(result.val_loss - other["val_loss"]) < 1e-4  # after 47 Adam steps
  record = json.loads((result.directory / "config.json").read_text())
  assert record["implementation"] == "mosaic_gpu"
  # From here on a kernel would be refused.
  trained, same = load(result.directory), load(made)
  assert trained.config.model.implementation == "mosaic_gpu"
  assert trained.model == same.model
  assert worst(trained.params, same.params) < 1e-3
  options = EvaluateConfig((str(result.directory),), window=16, segment=4)
  losses = evaluate.run(options, console)["nats"]
  assert set(losses) == {"cold", "stateful", "dynamic"}
  assert abs(losses["stateful"] - result.val_loss) < 1e-6
  (text,) = sample_texts(result.directory, prompt="Shall I", length=25)
  assert text.startswith("Shall I") and len(text) == 7 + 25
  assert history.derive(history.read_run_history(result.directory))


def test_the_implementation_is_no_part_of_the_model_in_a_checkpoint(
  finished, fused
):
  checkpoints = finished / "checkpoints"
  _, description = read_checkpoint(
    checkpoints, list_checkpoints(checkpoints)[0]
  )
  tokenizer = load(finished).tokenizer
  assert describe(fused, tokenizer)["model"] == description["model"]
  assert not {"implementation", "compute_dtype"} & set(description["model"])


def test_an_unfinished_run_is_not_resumed_with_another_implementation(
  finished, fused, console, monkeypatch
):
  (finished / "result.json").unlink()
  rows = read_rows(finished)
  with as_if_on_an_h100(monkeypatch):
    count_kernels(monkeypatch)
    with pytest.raises(
      ValueError, match="implementation is None there and 'mosaic_gpu' here"
    ):
      train.run(fused, console)
  assert read_rows(finished) == rows


@pytest.mark.parametrize("start", [train.run, dry_run])
@pytest.mark.parametrize("seq_len", [8, 1])
def test_a_cpu_is_refused_before_anything_is_written(
  start, seq_len, fused, console
):
  with pytest.raises(
    ValueError, match=r"^implementation='mosaic_gpu' needs .* got a cpu: leave"
  ) as error:
    # No other test has this size: what JAX has traced is not traced again, and
    # the refusal comes while tracing.
    start(replace(fused, seq_len=seq_len, hidden_size=13), console)
  assert "\n" not in str(error.value)
  assert not Path(fused.job.run).exists()
  assert console.file.getvalue() == ""


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"zoneout_h": 0.1}, "takes no zoneout"),
    ({"cell": peephole_lstm}, "takes the cells lstm, gru and rnn, got peep"),
    ({"hidden_size": 500}, "takes H up to 192 .* float32, got 500"),
  ],
)
def test_what_the_kernels_do_not_take_is_refused_before_anything_is_written(
  changes, message, fused, console, monkeypatch
):
  with (
    as_if_on_an_h100(monkeypatch),
    pytest.raises(ValueError, match=f"^implementation='mosaic_gpu' {message}"),
  ):
    train.run(replace(fused, **changes), console)
  assert not Path(fused.job.run).exists()
  assert console.file.getvalue() == ""


WEIGHT_KEYS = 4  # that `init_params` makes of its key; some are split again


def data(*keys):
  """Return the set of the data of some keys."""
  return {tuple(jax.random.key_data(key).tolist()) for key in keys}


def children(key, count):
  """Return the keys that `split` makes of a key: `fold_in` makes them too."""
  keys = [jax.random.fold_in(key, k) for k in range(count)]
  assert data(*keys) == data(*jax.random.split(key, count))
  return keys


def test_noise_is_not_drawn_by_the_keys_of_weights_or_samples():
  """Nor by keys made of them: by `split` or, in `sample`, by `fold_in`."""
  for seed in (0, 1, 7):
    init, samples, noise = make_keys(seed)
    drawn = data(*children(init, 64), *children(samples, 64))
    firsts = children(init, WEIGHT_KEYS)
    layers = data(*(k for c in firsts for k in children(c, 64)))
    steps = data(noise, *children(noise, 64))
    assert len(steps) == 65
    assert not steps & (drawn | layers | data(init, samples))


def test_initial_weights_are_drawn_by_the_key_of_weights(config):
  setup = make_setup(config)
  expected = setup.model.init(setup.keys.init)
  assert worst(setup.make_state().params, expected) == 0


def test_samples_of_a_comparison_are_not_drawn_by_the_keys_of_weights():
  keys = jax.random.split(jax.random.key(3), 2)
  for key, samples in zip(keys, sample_keys(keys), strict=True):
    firsts = children(key, WEIGHT_KEYS)
    weights = data(*firsts)
    layers = data(*(k for c in firsts for k in children(c, 64)))
    drawn = data(samples, *children(samples, 64))
    assert len(drawn) == 65 and not drawn & (weights | layers)
