"""Settings of dynamic evaluation, chosen on text before the evaluated part."""

import numpy as np
import pytest

from experiments import evaluate
from experiments.analysis import dynamic_eval
from experiments.trainer.records import replace
from experiments.trainer.trained import load
from lstm_jax.language import make_batches, read_text, split
from lstm_jax.language.dynamic_eval import (
  DynamicEvalConfig,
  dynamic_nats,
  gradient_scale,
)


def test_the_scale_is_estimated_on_at_least_one_batch(
  run, options, console, monkeypatch
):
  # One batch is longer than these 100 tokens: 32 segments of 4, and one token.
  monkeypatch.setattr(dynamic_eval, "SCALE_TOKENS", 100)
  one = replace(options, protocol=("dynamic",), rate=1e-4, decay=0.0)
  assert evaluate.run(one, console)["nats"]["dynamic"] > 0


@pytest.mark.exhaustive
def test_rate_and_decay_are_chosen_first_and_then_the_segment(
  run, options, console, monkeypatch
):
  """They are chosen on the last 300 tokens of the text before.

  The whole text before is too short for a batch of segments of 40 tokens: only
  10 and 20 are tried.
  """
  # The rate of 1e300 diverges.
  monkeypatch.setattr(dynamic_eval, "RATES", (1e-4, 3e-2, 1e300))
  monkeypatch.setattr(dynamic_eval, "DECAYS", (0.02,))
  monkeypatch.setattr(dynamic_eval, "TUNING", 300)
  free = replace(options, protocol=("dynamic",), segment=None)
  record = evaluate.run(free, console)
  trained = load(run)
  data = trained.config.data
  text, _ = split(read_text(data.corpus), data.val_fraction)
  before = trained.tokenizer.encode(text)

  def nats(rate, segment):
    model = trained.model, trained.params
    # 32 is `dynamic_eval.SCALE_BATCH`.
    scale = gradient_scale(*model, make_batches(before, 32, segment))
    config = DynamicEvalConfig(rate, 0.02, segment)
    return dynamic_nats(*model, before[-300:], scale, config).mean()

  rate = min((1e-4, 3e-2), key=lambda rate: nats(rate, 20))
  segment = min((10, 20), key=lambda segment: nats(rate, segment))
  chosen = {"rate": rate, "decay": 0.02, "segment": segment}
  assert record["dynamic"] == chosen
  printed = " ".join(console.file.getvalue().split())
  assert (
    f"rate {rate:g}, decay 0.02 and segments of {segment} are the best of 4 "
    "settings on the 300 tokens before: "
  ) in printed


def test_settings_are_chosen_on_the_end_of_the_text_before(monkeypatch):
  """The scale of the gradient comes from the start of that text.

  It is estimated in segments as long as those of the settings. A stand-in for
  `gradient_scale` returns the segment length. One for `dynamic_nats` diverges
  at a rate of 1e-4, and else returns the number of settings (of rate, decay and
  segment) that differ from `wanted`; on the evaluated part, it returns 5.
  """
  best, tried = DynamicEvalConfig(3e-5, 2e-3, 40), []
  wanted = best
  before, tokens = np.arange(300_000), np.arange(7)

  def scale(model, params, batches):
    inputs, _ = batches.batch(batches.num_batches - 1)
    # The last batch of the first 200,000 tokens, SCALE_TOKENS.
    assert inputs.shape == (len(inputs), 32) and 150_000 < inputs.max() < 2e5
    return len(batches.batch(0)[0])

  def nats(model, params, text, r, config):
    assert r == config.segment
    if len(text) == 7:  # `tokens`, the evaluated part
      return np.full(6, 5.0)
    assert (text[0], text[-1]) == (280_000, 299_999)
    tried.append(config)
    if config.rate == 1e-4:
      raise dynamic_eval.Divergence
    return np.full(3, sum(x != y for x, y in zip(config, wanted, strict=True)))

  monkeypatch.setattr(dynamic_eval, "gradient_scale", scale)
  monkeypatch.setattr(dynamic_eval, "dynamic_nats", nats)
  arguments = None, None, before, tokens

  def choose(**fixed):
    tried.clear()
    settings = dynamic_eval.FixedSettings(**fixed)
    choice, found = dynamic_eval.evaluate_dynamically(*arguments, settings)
    assert found.tolist() == [-5.0] * 6  # log probabilities
    return choice

  # A choice is (settings, their loss, number tried, tokens to try them on):
  # 4 rates × 3 decays in segments of 20, and then segments of 10 and 40.
  assert choose() == (best, 0.0, 14, 20_000)
  assert {config.segment for config in tried[:12]} == {20}
  assert choose(segment=10) == (best._replace(segment=10), 1.0, 12, 20_000)
  assert choose(rate=1e-6).config == best._replace(rate=1e-6)
  assert len(tried) == 5  # three decays, and two more segments
  assert choose(decay=2e-2).config == best._replace(decay=2e-2)
  assert choose(rate=0.5, decay=0.1, segment=3) == (
    (0.5, 0.1, 3),
    None,
    0,
    20_000,
  )
  wanted = best._replace(segment=20)  # with which the rates are tried
  assert choose().config == wanted


def test_the_text_before_must_hold_a_whole_batch_of_segments():
  # A batch has 32 segments, of 20 tokens by default, and one token to predict.
  for segment, needed in ((None, 641), (4, 129)):
    fixed = dynamic_eval.FixedSettings(segment=segment)
    dynamic_eval.check_text_before(needed, fixed)
    with pytest.raises(ValueError, match=f"at least {needed} tokens, got"):
      dynamic_eval.check_text_before(needed - 1, fixed)
  fixed = dynamic_eval.FixedSettings()
  assert dynamic_eval._segment_sizes(1281, fixed) == [20, 10, 40]
  assert dynamic_eval._segment_sizes(1280, fixed) == [20, 10]


@pytest.mark.exhaustive
def test_the_choice_on_several_cores_is_the_same_as_on_one(run):
  trained = load(run)
  data = trained.config.data
  texts = split(read_text(data.corpus), data.val_fraction)
  before, tokens = map(trained.tokenizer.encode, texts)

  def results(cores):
    fixed = dynamic_eval.FixedSettings()
    return dynamic_eval.evaluate_dynamically(
      trained.model, trained.params, before, tokens, fixed, threads=cores
    )

  (choice, nats), (expected, expected_nats) = results(4), results(1)
  assert choice == expected
  assert (nats == expected_nats).all()
