"""What `experiments.sample` writes, and which flags exclude each other."""

import io
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from experiments import sample
from experiments.trainer.trained import load
from lstm_jax.language import beam_search
from lstm_jax.language.drawing import DrawingRules
from lstm_jax.language.search import continuation_nats
from tests.experiments.sampled import DEFAULTS, sample_texts
from tests.processes import ROOT


@pytest.mark.exhaustive
def test_one_sample_comes_in_parts_and_several_differ(explored_run):
  (parts,) = sample.run(str(explored_run), **DEFAULTS | {"length": 70})
  # The first part is the prompt, here empty; the others have 32 characters or,
  # at the end, fewer.
  assert len([*parts]) == 1 + 3
  for prompt in (None, "Thou art"):
    (one,) = sample_texts(explored_run, prompt=prompt, length=70)
    assert len(one) == 70 + len(prompt or "")
    several = sample_texts(explored_run, prompt=prompt, num_samples=3)
    assert len({*several}) == 3
    length = DEFAULTS["length"] + len(prompt or "")
    assert {len(text) for text in several} == {length}


def test_min_p_of_one_is_greedy(explored_run):
  greedy = sample_texts(explored_run, prompt="T", temperature=0.0)
  assert sample_texts(explored_run, prompt="T", min_p=1.0) == greedy


def test_every_way_to_draw_follows_the_flags(monkeypatch):
  """Stand-ins for the library's functions record their arguments."""
  tokenizer = SimpleNamespace(
    unknown_tokens=(5,),
    unit="word",
    symbols=("a", "\n"),
    encode_known=lambda text: np.array([3, 4]),
    decode=lambda tokens: str(tokens.tolist()),
    pieces=lambda tokens: [
      f"{token} at {n};" for n, token in enumerate(tokens)
    ],
  )
  trained = SimpleNamespace(model=1, params=2, tokenizer=tokenizer)
  rules = {"temperature": 0.5, "top_k": 3, "top_p": 0.9, "min_p": 0.1}
  rules, given = DrawingRules(**rules, suppress_tokens=(5,)), {}
  assert None not in rules  # a rule that is added must be given here, too

  def draw(model, params, key, tokens, length, **options):
    given[draw] = key, tokens.tolist(), length, options
    return np.array([[6], [7]])

  def draw_best(*arguments, **options):
    return draw(*arguments, **options)[0], 1.5

  def search(model, params, tokens, length, **options):
    given["beam"] = tokens.tolist(), length, options
    return np.array([[6], [7]]), np.array([1.0, 2.0])

  def stream(model, params, tokenizer, rules):
    def write(key, length):
      given["stream"] = key, rules, length
      yield "6"

    def read_tokens(tokens):
      given["read"] = tokens.tolist()

    return SimpleNamespace(write=write, read_tokens=read_tokens)

  stand_ins = {"load": lambda path: trained, "TextStream": stream}
  stand_ins |= {"sample": draw, "sample_best": draw_best, "beam_search": search}
  for name, stand_in in stand_ins.items():
    monkeypatch.setattr(sample, name, stand_in)
  key = jax.random.key(7)
  flags = rules._asdict() | {"seed": 7, "length": 9}
  del flags["suppress_tokens"]
  asked = key, [3, 4], 9
  for name in ("num_samples", "best_of"):
    texts = sample_texts("run", prompt="a a", **flags | {name: 2})
    expected = ["3 at 0;4 at 1;6 at 2;", "3 at 0;4 at 1;7 at 2;"]
    assert texts == expected[: 2 if name == "num_samples" else 1]
    assert given[draw] == (*asked, rules._asdict() | {name: 2})
  assert sample_texts("run", prompt="a a", **flags) == ["[3, 4]6"]
  assert given["stream"] == (key, rules, 9) and given["read"] == [3, 4]
  assert sample_texts("run", **flags) == ["[]6"]
  # Token 6 is spelled as it follows the hidden token, as in a stream.
  assert sample_texts("run", **flags | {"beam": 2}) == ["6 at 1;"]
  beam = {"beam_size": 2, "suppress_tokens": (5,)}
  # Without a prompt, the text follows a line break (1), which is not shown.
  assert given["beam"] == ([1], 9, beam)
  unrestricted = {
    "temperature": 0.8,
    "top_k": None,
    "top_p": None,
    "min_p": None,
  }
  sample_texts("run", num_samples=2)
  expected = unrestricted | {"suppress_tokens": (5,), "num_samples": 2}
  assert given[draw][3] == expected


def test_every_rule_is_documented_and_listed_as_idle_in_a_greedy_draw():
  rules = {*DrawingRules._fields} - {"temperature", "suppress_tokens"}
  assert rules == {*sample.DRAWING} - {"seed"}
  page = (ROOT / "docs" / "running.md").read_text("utf-8")
  assert {rule for rule in rules if f"| `--{rule}=" not in page} == set()


@pytest.mark.exhaustive
def test_the_best_sample_and_the_beam_are_the_likeliest(explored_run):
  trained = load(explored_run)
  encode = trained.tokenizer.encode

  def nats(text):
    tokens = encode(text.removeprefix("Thou"))[None]
    prompt = encode("Thou")
    return continuation_nats(trained.model, trained.params, prompt, tokens)[0]

  several = sample_texts(explored_run, prompt="Thou", num_samples=5)
  (best,) = sample_texts(explored_run, prompt="Thou", best_of=5)
  assert best == min(several, key=nats) and best != several[0]
  (found,) = sample_texts(explored_run, prompt="Thou", beam=3)
  assert nats(found) < nats(best)
  tokens, _ = beam_search(
    trained.model, trained.params, encode("Thou"), 30, beam_size=3
  )
  assert encode(found)[4:].tolist() == tokens[0].tolist()


@pytest.mark.exhaustive
def test_an_interactive_text_goes_on_from_each_line(
  explored_run, monkeypatch, capsys
):
  # An empty line stands for a line break. The third line is refused.
  typed = "Thou\n\na¤b\nart\n"
  monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
  (text,) = sample_texts(explored_run, interactive=True)
  # Each part has DEFAULTS["length"], 30, characters; a line break follows it.
  written = [text[start : start + 30] for start in (0, 31, 62)]
  assert text == "".join(part + "\n" for part in written)
  assert "character '¤' at position 1 is not in" in capsys.readouterr().err
  # The last part follows all that was typed and written before it.
  trained = load(explored_run)
  before = f"Thou{written[0]}\n{written[1]}art"
  tokens = trained.tokenizer.encode(before + written[2])
  key = jax.random.key(0)
  for _ in range(3):  # one key for each of the three parts
    key, drawn = jax.random.split(key)
  keys = jax.random.split(drawn, 30)
  _, logits = trained.model.apply(
    trained.params, trained.model.initial_state((1,)), tokens[:, None]
  )
  for k, at in enumerate(range(len(before), len(tokens))):
    scaled = logits[at - 1] / np.float32(0.8)
    assert jax.random.categorical(keys[k], scaled)[0] == tokens[at]


def test_a_prompt_is_the_first_line_of_an_interactive_text(
  explored_run, monkeypatch
):
  monkeypatch.setattr(sys, "stdin", io.StringIO(""))
  (first,) = sample_texts(explored_run, interactive=True, prompt="Thou")
  for line in ("Thou", "Thou\r\n"):
    monkeypatch.setattr(sys, "stdin", io.StringIO(line))
    assert sample_texts(explored_run, interactive=True) == [first]


def test_a_typed_line_that_is_refused_is_a_short_error(monkeypatch, capsys):
  """A stand-in refuses what is not ASCII; its message lists many symbols."""

  def read(line):
    if not line.isascii():
      raise ValueError(f"{line!r} is not in: {'x' * 10_000}")

  stream = SimpleNamespace(read=read, write=lambda key, length: ["yes"])
  typed = io.TextIOWrapper(io.BytesIO(b"a\n\xff\nb\n"), encoding="utf-8")
  monkeypatch.setattr(sys, "stdin", typed)
  parts = sample.converse(stream, None, jax.random.key(0), 3)
  assert [*parts] == ["yes", "\n"] * 2
  error = capsys.readouterr().err
  assert error.startswith(r"error: '\udcff' is not in: xx")
  assert len(error) == 501  # cut to 500 characters, and a line break


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (
      {"beam": 4, "temperature": 0.5},
      "--beam=4 and --temperature=0.5 exclude each other",
    ),
    ({"beam": 4, "seed": 3}, "--beam=4 and --seed=3 exclude"),
    ({"beam": 4, "best_of": 2}, "--beam=4 and --best_of=2 exclude"),
    (
      {"beam": 4, "interactive": True},
      "--beam=4 and --interactive=True exclude",
    ),
    (
      {"best_of": 2, "num_samples": 3},
      "--best_of=2 and --num_samples=3 exclude",
    ),
    (
      {"best_of": 2, "temperature": 0.0},
      "--best_of=2 and --temperature=0.0 exclude each other: all samples would "
      "be equal",
    ),
    (
      {"num_samples": 3, "temperature": 0.0},
      "--num_samples=3 and --temperature=0.0 exclude",
    ),
    (
      {"interactive": True, "num_samples": 2},
      "--interactive=True and --num_samples=2 exclude",
    ),
  ],
)
def test_options_that_exclude_each_other_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    sample.check_combination(DEFAULTS | options, DEFAULTS)


def test_options_that_go_together_pass():
  for options in (
    {"beam": 4, "prompt": "a", "length": 3},
    {"best_of": 4, "min_p": 0.1, "top_p": 0.9, "top_k": 3, "seed": 1},
    {"interactive": True, "temperature": 0.0},
  ):
    sample.check_combination(DEFAULTS | options, DEFAULTS)
