import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax.language import ModelConfig, language_model, sample, sampling
from lstm_jax.language.drawing import (
  HUGE,
  DrawingRules,
  checked_rules,
  draw,
  keep_min_p,
  keep_top_k,
  keep_top_p,
)
from lstm_jax.language.sampling import filled
from tests.compiling import count_programs
from tests.draws import worst

V = 9
MODEL = language_model(
  ModelConfig(embedding_size=3, hidden_size=5, dtype=jnp.float64), V
)
PROMPT = np.array([1, 4, 2])


@pytest.fixture
def params(key):
  """Return weights three times as large, for less even probabilities."""
  return jax.tree.map(lambda leaf: 3 * leaf, MODEL.init(key))


def test_there_are_as_many_tokens_and_samples_as_asked_for(params, key):
  tokens = sample(MODEL, params, key, PROMPT, 17, num_samples=4)
  assert tokens.shape == (4, 17)
  assert tokens.dtype == np.int32
  assert ((tokens >= 0) & (tokens < V)).all()
  assert len({tuple(row) for row in tokens}) == 4


def test_the_same_key_gives_the_same_text(params, key):
  first, again = (sample(MODEL, params, key, PROMPT, 30) for _ in range(2))
  assert (first == again).all()
  other = sample(MODEL, params, jax.random.key(1), PROMPT, 30)
  assert (first != other).any()


def test_the_strictest_rules_take_the_likeliest_tokens(params, key):
  state, expected, tokens = MODEL.initial_state(()), [], list(PROMPT)
  for _ in range(12):
    state, logits = MODEL.apply(params, state, jnp.array(tokens))
    tokens = [int(logits[-1].argmax())]
    expected += tokens
  for options in (
    {"temperature": 0.0},
    {"temperature": 1e-37},
    {"top_k": 1},
    {"top_p": 1e-300},
    {"min_p": 1.0},
  ):
    found = sample(MODEL, params, key, PROMPT, 12, **options)
    assert list(found[0]) == expected and found.dtype == np.int32


def test_draws_have_the_probabilities_of_the_softmax(params, key):
  _, logits = MODEL.apply(params, MODEL.initial_state(()), PROMPT)
  for temperature in (1.0, 2.0):
    p = jax.nn.softmax(logits[-1] / temperature)
    drawn = sample(
      MODEL, params, key, PROMPT, 1, num_samples=20_000, temperature=temperature
    )
    found = np.bincount(drawn[:, 0], minlength=V) / len(drawn)
    # Five standard deviations of a binomial share, for each token.
    assert (np.abs(found - p) < 5 * np.sqrt(p * (1 - p) / 20_000) + 1e-4).all()


def test_top_k_keeps_the_k_likeliest():
  logits = jnp.array([[0.0, 3.0, 1.0, 2.0]])
  kept = np.isfinite(keep_top_k(logits, 2))
  assert kept.tolist() == [[False, True, False, True]]
  assert np.isfinite(keep_top_k(logits, 99)).all()


@pytest.mark.parametrize(
  ("p", "kept"), [(0.1, 1), (0.4, 1), (0.5, 2), (0.75, 3), (1.0, 4)]
)
def test_top_p_keeps_the_fewest_tokens_whose_probabilities_sum_to_p(p, kept):
  logits = jnp.log(jnp.array([[0.1, 0.45, 0.25, 0.2]]))
  found = np.isfinite(keep_top_p(logits, p))[0]
  order = [1, 2, 3, 0]  # the likeliest first
  assert found[order].tolist() == [True] * kept + [False] * (4 - kept)


def test_tokens_as_likely_as_the_last_one_kept_are_kept_too():
  logits = jnp.array([1.0, 2.0, 0.0, 1.0])  # probabilities 0.2, 0.53, 0.07, 0.2
  for kept in (keep_top_k(logits, 2), keep_top_p(logits, 0.6)):
    assert np.isfinite(kept).tolist() == [True, True, False, True]


@pytest.mark.exhaustive
def test_a_nucleus_sums_to_p_exactly_or_is_the_likeliest_token():
  logits = jnp.log(jnp.array([0.25, 0.5, 0.25], jnp.float32))
  for p in (0.5, 1e-60):  # 1e-60 is 0 in float32
    found = np.isfinite(keep_top_p(logits, p))
    assert found.tolist() == [False, True, False]


def reference(logits, temperature, top_k, top_p, min_p):
  """Return which tokens may be drawn, by a loop over sorted tokens, [V]."""
  p = np.exp((logits - logits.max()) / temperature)
  order = [*np.argsort(-p)][:top_k]
  kept, total = [], 0.0
  for token in order:
    if total >= top_p * p[order].sum():
      break
    kept.append(token)
    total += p[token]
  kept = [token for token in kept if p[token] >= min_p * p[kept[0]]]
  return np.isin(np.arange(len(p)), kept)


@pytest.mark.everyday(1)
@pytest.mark.parametrize(
  ("temperature", "top_k", "top_p", "min_p"),
  [(0.6, 40, 0.7, 0.0), (2.5, 12, 0.8, 0.3)],
)
def test_the_rules_keep_the_tokens_of_a_loop_in_numpy(
  temperature, top_k, top_p, min_p, key
):
  logits = 2 * np.random.default_rng(0).standard_normal((30, 40))
  expected = np.array(
    [reference(row, temperature, top_k, top_p, min_p) for row in logits]
  )
  rules = DrawingRules(temperature, top_k, top_p, min_p)
  keys = jax.random.split(key, 3000)
  draws = jax.jit(lambda keys: jax.vmap(lambda k: draw(rules, k, logits))(keys))
  drawn = np.asarray(draws(keys))
  counts = (drawn[..., None] == np.arange(40)).sum(axis=0)
  assert (counts[~expected] == 0).all()
  p = np.where(expected, np.exp(logits / temperature), 0)
  p /= p.sum(axis=1, keepdims=True)
  # Five standard deviations of a binomial share, for each token.
  tolerance = 5 * np.sqrt(p * (1 - p) / 3000) + 1e-3
  assert (np.abs(counts / 3000 - p) < tolerance).all()
  assert not expected.all() and (counts[expected] > 0).mean() > 0.9


@pytest.mark.parametrize("temperature", [0.0, 1e-39, 1e-37])
def test_a_temperature_near_zero_takes_the_likeliest_token(temperature, key):
  """Logits divided by it would overflow, and XLA may treat it as 0."""
  logits = jnp.array([35, 40, 10], jnp.float32)
  for top_k in (None, 2):
    assert draw(DrawingRules(temperature, top_k), key, logits) == 1


def test_min_p_is_a_share_of_the_largest_probability():
  logits = jnp.log(jnp.array([[0.1, 0.4, 0.3, 0.2]]))
  for p, kept in ((0.0, 4), (0.2, 4), (0.3, 3), (0.6, 2), (1.0, 1)):
    found = np.isfinite(keep_min_p(logits, p))[0]
    assert found[[1, 2, 3, 0]].tolist() == [True] * kept + [False] * (4 - kept)


@pytest.mark.exhaustive
def test_suppressed_tokens_are_not_drawn_and_the_others_keep_their_shares(
  params, key
):
  _, logits = MODEL.apply(params, MODEL.initial_state(()), PROMPT)
  likeliest = int(logits[-1].argmax())
  suppressed = (likeliest, 2)
  p = np.asarray(jax.nn.softmax(logits[-1])).copy()
  p[list(suppressed)] = 0
  p /= p.sum()
  options = {"num_samples": 20_000, "suppress_tokens": suppressed}
  drawn = sample(MODEL, params, key, PROMPT, 1, **options)
  found = np.bincount(drawn[:, 0], minlength=V) / len(drawn)
  assert found[list(suppressed)].tolist() == [0, 0]
  assert (np.abs(found - p) < 5 * np.sqrt(p * (1 - p) / 20_000) + 1e-4).all()
  for options in (
    {"temperature": 0.0},
    {"temperature": HUGE},
    {"top_k": 2},
    {"top_p": 1e-9},
  ):
    options |= {"suppress_tokens": suppressed * V}  # each V times
    drawn = sample(MODEL, params, key, PROMPT, 40, **options)
    assert not np.isin(drawn, suppressed).any()


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"prompt": np.array([], int)}, r"prompt must be \[P\] with P ≥ 1, got"),
    ({"prompt": np.array([1, V])}, r"in \[0, 9\), got int64 from 1 to 9"),
    ({"prompt": np.array([-1])}, r"integers in \[0, 9\), got int64 from -1"),
    ({"prompt": np.array([3.7])}, r"integers in \[0, 9\), got float64 from"),
    ({"length": 0}, "length must be an integer ≥ 1, got 0$"),
    ({"length": 2.7}, "length must be an integer ≥ 1, got 2.7$"),
    ({"num_samples": 0}, "num_samples must be an integer ≥ 1, got 0$"),
    ({"temperature": -1.0}, r"must be in \[0, 8.5e\+37\], got -1"),
    (
      {"temperature": float("nan")},
      r"temperature must be in \[0, 8.5e\+37\], got nan",
    ),
    ({"temperature": 9e37}, r"must be in \[0, 8.5e\+37\], got 9e\+37"),
    ({"top_k": 0}, "top_k must be an integer ≥ 1, got 0$"),
    ({"top_k": 2.5}, "top_k must be an integer ≥ 1, got 2.5$"),
    ({"suppress_tokens": [0.5]}, r"must be integers, got \[0.5\]$"),
    ({"temperature": None}, "^temperature must be a number, got None$"),
    ({"top_p": "a"}, "^top_p must be a number, got 'a'$"),
    ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0"),
    ({"min_p": 1.1}, r"min_p must be in \[0, 1\], got 1.1"),
    (
      {"suppress_tokens": tuple(range(V))},
      "leave at least one of 9 tokens, got all of them",
    ),
    ({"suppress_tokens": (3, V)}, r"must be in \[0, 9\), got 3, 9"),
    ({"suppress_tokens": (-1,)}, r"must be in \[0, 9\), got -1"),
  ],
)
def test_options_out_of_range_are_refused(options, message, params, key):
  arguments = {"prompt": PROMPT, "length": 5} | options
  with pytest.raises(ValueError, match=message):
    sample(MODEL, params, key, **arguments)


def test_numpy_numbers_of_rules_become_python_numbers():
  one, half = np.int8(1), np.float32(0.5)
  rules = checked_rules(DrawingRules(half, one, half, half, [one]), V)
  assert [*map(type, rules)] == [float, int, float, float, tuple]
  assert type(rules.suppress_tokens[0]) is int


def test_other_numbers_of_rules_share_one_program(params, key):
  def written(temperature, top_p, min_p):
    rules = {"temperature": temperature, "top_p": top_p, "min_p": min_p}
    text = sample(MODEL, params, key, PROMPT, 30, **rules)
    return text[0].tolist()

  first = written(1.0, 0.9, 0.0)
  with count_programs() as programs:
    others = [written(1e-9, 0.9, 0.0), written(1, 1e-9, 0), written(1, 0.9, 1)]
  assert not programs
  greedy = sample(MODEL, params, key, PROMPT, 30, temperature=0)[0].tolist()
  assert others == [greedy] * 3 and first != greedy


@pytest.mark.exhaustive
def test_a_nucleus_of_1_keeps_every_token(key):
  """The sum of the probabilities may round to 1 before the last token."""
  logits = 2 * jax.random.normal(key, (40, 2000), jnp.float32)
  almost = float(jnp.nextafter(jnp.float32(1), jnp.float32(0)))
  assert not jnp.isfinite(keep_top_p(logits, almost)).all()
  assert jnp.isfinite(keep_top_p(logits, 1.0)).all()


@pytest.mark.exhaustive
def test_a_long_prompt_takes_no_memory_for_its_logits(key):
  vocabulary_size, length = 5000, 400
  model = language_model(ModelConfig(hidden_size=4), vocabulary_size)
  prompt = filled(np.zeros(length, np.int32))
  program = (  # which draws 3 tokens of each of 2 texts
    sampling._sample(model)
    .lower((3, 2, DrawingRules()), {}, model.init(key), key, prompt)
    .compile()
  )
  logits = 4 * length * vocabulary_size  # bytes of all, 8 MB
  assert program.memory_analysis().temp_size_in_bytes < logits / 4


def test_a_prompt_is_read_once_for_all_samples(key):
  params = jax.eval_shape(MODEL.init, key)
  prompt = filled(np.zeros(7, np.int32))
  options = 3, 5, DrawingRules()  # 3 tokens of each of 5 texts
  program = sampling._sample(MODEL).lower(options, {}, params, key, prompt)
  text = program.as_text()
  # The outputs of a part of the prompt: of one text, and not of 5.
  assert "tensor<64x1x" in text and "tensor<64x5" not in text


def test_prompts_of_other_lengths_share_one_program(params, key):
  """Up to 64 tokens, then up to 128, and so on."""
  tokens = np.arange(128) % V
  for size in (64, 65):
    sample(MODEL, params, key, tokens[:size], 3)
  with count_programs() as programs:
    for size in (1, 2, 33, 66, 127, 128):
      sample(MODEL, params, key, tokens[:size], 3)
  assert not programs


def test_a_prompt_read_in_parts_has_the_state_and_logits_of_one_call(params):
  tokens = np.arange(200) % V
  read = jax.jit(sampling.read_prompt, static_argnums=(0, 3))
  for size in (1, 2, 64, 65, 66, 128, 129, 130, 200):
    prompt = tokens[:size]
    state, logits = MODEL.apply(params, None, np.stack([prompt] * 2, axis=1))
    expected = sampling.Carry(state, logits[-1])
    found = read(MODEL, params, filled(prompt), 2)
    assert worst(found, expected) < 1e-12
