import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax.language import (
  CharTokenizer,
  DrawingRules,
  ModelConfig,
  TextStream,
  WordTokenizer,
  beam_search,
  continuation_nats,
  dynamic_eval,
  evaluate,
  language_model,
  make_batches,
  sample,
)
from lstm_jax.language.dynamic_eval import (
  Divergence,
  dynamic_log_probs,
  dynamic_nats,
  gradient_scale,
)
from lstm_jax.language.evaluate import (
  batch_log_probs,
  cold_nats,
  nats_per_character,
  stateful_log_probs,
  stateful_nats,
)
from lstm_jax.language.spelling import spelling_nats
from tests.draws import worst
from tests.language.evaluate.evaluated import CONFIG, MODEL, TOKENS, N, V

COMPILED = (
  evaluate._nats,
  dynamic_eval._scan_segments,
  dynamic_eval._add_squares,
)


def programs():
  """Return how many programs of MODEL each function of COMPILED has."""
  return [function(MODEL)._cache_size() for function in COMPILED]


def protocols(params, scale):
  """Return functions of a text [N] that return its losses [N − 1].

  "cold" reads windows of 8 tokens, each from the zero state; "stateful" all of
  the text in one pass; "dynamic" also trains on each segment that it has read.
  """
  return {
    "cold": lambda tokens: cold_nats(MODEL, params, tokens, 8),
    "stateful": lambda tokens: stateful_nats(MODEL, params, tokens),
    "dynamic": lambda tokens: dynamic_nats(
      MODEL, params, tokens, scale, CONFIG
    ),
  }


@pytest.mark.everyday(1)
@pytest.mark.parametrize("name", ["cold", "stateful", "dynamic"])
def test_a_later_token_changes_no_earlier_loss(name, params, scale):
  protocol = protocols(params, scale)[name]
  before = protocol(TOKENS)
  assert before.shape == (N - 1,)
  for position in (1, 20, N - 1):
    changed = TOKENS.copy()
    changed[position] = (changed[position] + 1) % V
    after = protocol(changed)
    # Loss position − 1 is that of the token at this position.
    assert (after[: position - 1] == before[: position - 1]).all()
    assert after[position - 1] != before[position - 1]


def test_the_losses_of_a_float32_model_are_float64(key):
  """Else their mean over a long text would be summed in float32."""
  model = language_model(ModelConfig(embedding_size=3, hidden_size=5), V)
  params = model.init(key)
  scale = jax.tree.map(jnp.ones_like, params)
  for nats in (
    cold_nats(model, params, TOKENS, 8),
    stateful_nats(model, params, TOKENS),
    dynamic_nats(model, params, TOKENS, scale, CONFIG),
  ):
    assert nats.dtype == np.float64


@pytest.mark.exhaustive
def test_windows_and_segments_in_int8_do_not_overflow(params, scale):
  text = np.tile(TOKENS, 3)

  def dynamic(size):
    config = CONFIG._replace(segment=size)
    return dynamic_nats(MODEL, params, text, scale, config)

  def cold(size):
    return cold_nats(MODEL, params, text, size)

  for protocol in (cold, dynamic):
    assert worst(protocol(np.int8(8)), protocol(8)) == 0


def test_distributions_sum_to_1_and_agree_with_the_losses(params, scale):
  stateful = stateful_log_probs(MODEL, params, TOKENS)
  dynamic = dynamic_log_probs(MODEL, params, TOKENS, scale, CONFIG)
  for log_probs, nats in (
    (stateful, stateful_nats(MODEL, params, TOKENS)),
    (dynamic, dynamic_nats(MODEL, params, TOKENS, scale, CONFIG)),
  ):
    assert log_probs.shape == (N - 1, V)
    assert worst(np.exp(log_probs).sum(axis=1), np.ones(N - 1)) < 1e-12
    assert worst(-log_probs[np.arange(N - 1), TOKENS[1:]], nats) < 1e-12
  wild = CONFIG._replace(rate=1e300, decay=0.0)
  with pytest.raises(Divergence, match=rf"diverges at token \d+ of {N}: try"):
    dynamic_log_probs(MODEL, params, TOKENS, scale, wild)


def test_the_distributions_of_batches_are_those_of_one_pass(params):
  batches = make_batches(TOKENS, 2, 5)
  assert batches.cuts[-1] % 5  # the last batch is shorter
  found = [*batch_log_probs(MODEL, params, batches)]
  assert [len(part) for part in found] == np.diff(batches.cuts).tolist()
  _, logits = MODEL.apply(params, None, batches.tokens[:-1])
  expected = jax.nn.log_softmax(logits)
  assert worst(np.concatenate(found), expected) < 1e-12


def test_each_cold_window_is_a_sequence_by_itself(params):
  found = cold_nats(MODEL, params, TOKENS, 8)
  for k in range(0, N - 1, 8):
    window = TOKENS[k : k + 9]
    assert worst(found[k : k + 8], stateful_nats(MODEL, params, window)) < 1e-12
  text = np.tile(TOKENS, 10)
  by_default = cold_nats(MODEL, params, text)
  assert (by_default == cold_nats(MODEL, params, text, 256)).all()
  whole = cold_nats(MODEL, params, TOKENS, N)
  assert worst(whole, stateful_nats(MODEL, params, TOKENS)) < 1e-12


def test_cold_windows_in_smaller_batches_have_the_same_losses(
  params, monkeypatch
):
  expected = cold_nats(MODEL, params, TOKENS, 8)
  # `windows` of the 7 windows fit into a batch. With 0, one alone has too many
  # logits, and is a batch by itself.
  for windows in (0, 1, 3):  # with 3, the last batch is padded
    monkeypatch.setattr(evaluate, "MAX_LOGITS", windows * 8 * V + 1)
    assert worst(cold_nats(MODEL, params, TOKENS, 8), expected) < 1e-12


def test_one_pass_too_reads_at_most_max_logits_at_once(params, monkeypatch):
  expected = stateful_nats(MODEL, params, TOKENS)
  monkeypatch.setattr(evaluate, "MAX_LOGITS", 5 * V)
  evaluate._nats(MODEL).clear_cache()
  assert worst(stateful_nats(MODEL, params, TOKENS), expected) < 1e-12
  read = evaluate._nats(MODEL)
  read(params, MODEL.initial_state((1,)), TOKENS[:6, None])
  assert read._cache_size() == 1  # it had read 5 tokens at a time


@pytest.mark.parametrize("name", ["stateful", "dynamic"])
def test_short_texts_of_many_lengths_share_a_program(name, params, scale):
  protocol = protocols(params, scale)[name]
  expected = protocol(TOKENS[:33])
  before = programs()
  for length in (18, 25, 32):  # between 16 and 32 predictions
    assert worst(protocol(TOKENS[:length]), expected[: length - 1]) < 1e-12
  assert programs() == before


@pytest.mark.exhaustive
def test_a_shorter_last_chunk_or_window_compiles_no_second_program(
  params, scale, monkeypatch
):
  """The last chunk, window, segment and batch are padded to full length."""
  expected = {n: f(TOKENS) for n, f in protocols(params, scale).items()}
  for module in (evaluate, dynamic_eval):
    monkeypatch.setattr(module, "CHUNK", 12)
  for function in COMPILED:
    function(MODEL).clear_cache()
  for name, protocol in protocols(params, scale).items():
    assert worst(protocol(TOKENS), expected[name]) < 1e-12
    before = programs()
    shorter = protocol(TOKENS[:-3])
    assert worst(shorter, expected[name][:-3]) < 1e-12
    assert programs() == before
  # `_nats` of a cold window and of a chunk, and one dynamic evaluation.
  assert programs() == [2, 1, 0]
  gradient_scale(MODEL, params, make_batches(TOKENS, 2, 5))
  assert programs() == [2, 1, 1]


def test_nats_per_character_include_the_spelling_of_unknown_words():
  text = "a rose is a rose"
  characters = CharTokenizer.from_text(text)
  assert nats_per_character(characters, text, 30.0) == 30 / 15
  known = WordTokenizer.from_text(text, 1)
  assert nats_per_character(known, text, 30.0) == 30 / 15
  fewer = WordTokenizer.from_text(text, 2)
  (spelt,) = spelling_nats(fewer.rare, ["is"])
  assert nats_per_character(fewer, text, 30.0) == (30 + spelt) / 15
  # The first token is not predicted, so it is not spelled out either.
  assert nats_per_character(fewer, "is a rose", 30.0) == 30 / 8
  twice = text + " is"  # with a cache, the second "is" is a fifth cheaper
  costs = spelling_nats(fewer.rare, ["is", "is"], cached=True)
  assert nats_per_character(fewer, twice, 30.0) == (30 + 2 * spelt) / 18
  cached = nats_per_character(fewer, twice, 30.0, cached=True)
  assert cached == (30 + costs.sum()) / 18 < (30 + 1.8 * spelt) / 18
  with pytest.raises(ValueError, match="at least 2 characters, got 1"):
    nats_per_character(fewer, "a", 0.0)


def test_an_argument_out_of_range_is_named_in_the_error(params, scale):
  message = r"^a loss needs at least 2 tokens, \[N\], got "
  with pytest.raises(ValueError, match=message + "1$"):
    cold_nats(MODEL, params, TOKENS[:1])
  with pytest.raises(ValueError, match=message + r"\(2, 1\)$"):
    stateful_nats(MODEL, params, [[1], [2]])
  for tokens in ([0, 1, -1, 2], [0, V], [0.5, 1.0]):
    with pytest.raises(ValueError, match=r"^tokens must be integers in \[0, "):
      stateful_nats(MODEL, params, tokens)
    with pytest.raises(ValueError, match=r"^tokens must be integers in \[0, "):
      dynamic_nats(MODEL, params, np.array(tokens), scale, CONFIG)
  for window in (0, 2.5):
    with pytest.raises(
      ValueError, match=rf"^window must be an integer ≥ 1, got {window}$"
    ):
      cold_nats(MODEL, params, TOKENS, window)
  batches = make_batches(TOKENS + 1, 2, 5)  # some are V
  message = r"^tokens must be integers in \[0, 7\), got int32 from 1 "
  with pytest.raises(ValueError, match=message):
    next(batch_log_probs(MODEL, params, batches))
  with pytest.raises(ValueError, match=message):
    gradient_scale(MODEL, params, batches)
  bounds = r"^rate must be in \[0, inf\) and decay in \[0, 1\], got "
  for wrong, message in (
    ({"rate": -1.0}, bounds + "-1.0 and "),
    ({"rate": math.inf}, bounds + "inf and "),
    ({"rate": "1e-3"}, "^rate must be a number, got '1e-3'$"),
    ({"decay": None}, "^decay must be a number, got None$"),
    ({"decay": 2.0}, bounds + ".* and 2.0$"),
    ({"segment": 0}, "^segment must be an integer ≥ 1, got 0$"),
    ({"segment": 2.0}, "^segment must be an integer ≥ 1, got 2.0$"),
  ):
    with pytest.raises(ValueError, match=message):
      dynamic_nats(MODEL, params, TOKENS, scale, CONFIG._replace(**wrong))
  for wrong in (None, tuple(scale), scale._replace(bias=scale.bias[:1])):
    with pytest.raises(ValueError, match=r"^scale must be from gradient_s"):
      dynamic_nats(MODEL, params, TOKENS, wrong, CONFIG)
  # After the first segment, which predicts the tokens 2 to 5.
  with pytest.raises(Divergence, match="at token 6 of 53: try a rate below 1e"):
    config = CONFIG._replace(rate=1e300)
    dynamic_nats(MODEL, params, TOKENS, scale, config)
  with pytest.raises(Divergence, match="at token 2 of 53: even at a rate of 0"):
    broken = params._replace(bias=params.bias * jnp.nan)
    dynamic_nats(MODEL, broken, TOKENS, scale, CONFIG._replace(rate=0.0))


def test_weights_in_a_dict_are_refused_before_they_are_read(params, scale):
  """As a checkpoint is read without the type of its tree."""
  weights, prompt = params._asdict(), np.array([1, 2])
  batches = make_batches(TOKENS, 2, 5)
  for call in (
    lambda: cold_nats(MODEL, weights, TOKENS),
    lambda: stateful_nats(MODEL, weights, TOKENS),
    lambda: next(batch_log_probs(MODEL, weights, batches)),
    lambda: dynamic_nats(MODEL, weights, TOKENS, scale, CONFIG),
    lambda: gradient_scale(MODEL, weights, batches),
    lambda: sample(MODEL, weights, jax.random.key(0), prompt, 1),
    lambda: continuation_nats(MODEL, weights, prompt, prompt[None]),
    lambda: beam_search(MODEL, weights, prompt, 1, beam_size=1),
    lambda: TextStream(MODEL, weights, CharTokenizer("ab"), DrawingRules()),
  ):
    with pytest.raises(
      ValueError, match=r"^params must be \w+Params, got dict$"
    ):
      call()
