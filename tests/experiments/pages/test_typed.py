"""A text typed into the page of `experiments.explore`, in a browser.

Its states, gates, predictions and gradients are those of the library, in
float64, with the 8-bit weights of the page. The biases and gains have noise.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.analysis.context import gradient_paths
from experiments.analysis.states import signals, trace_layers
from experiments.pages import packed_model
from experiments.pages.explore import WINDOW
from experiments.trainer.trained import load
from tests.experiments.pages import browser
from tests.experiments.pages.explored import PageData, exact_params

pytestmark = [pytest.mark.programs, browser.NEEDED]
# The vocabulary of the poems lacks §.
TYPED = "Shall I compare§ thee\nto a lovely day" + " more lovely" * 7
# Moves the cursor to a character and waits for its gradients.
GRADIENTS = """
  moveTo(args[0]);
  while (text.path && text.path.back < text.path.steps) await nextFrame();
  for (const _ of [1, 2]) await nextFrame();  // until it is drawn
"""


@pytest.fixture
def typing(chromium, typed_page):
  """Return a function that opens the page of a model in a wide window."""
  chromium.emulate(1100, 900)
  chromium.errors()

  def opened(name):
    run, page = typed_page(name)
    chromium.open(page)
    return run, PageData(page)

  yield opened
  assert chromium.errors() == []


def type_text(chromium, *texts):
  """Put one text after another into the page's box, as if they were typed."""
  chromium.run(
    "$('typing').open = true; for (const text of args[0]) {"
    " $('own').value = text; $('own').dispatchEvent(new Event('input')); }",
    texts,
  )
  chromium.settle()


@pytest.mark.everyday(1)
@pytest.mark.parametrize("name", packed_model.CELLS)
def test_a_typed_text_is_read_as_the_library_reads_it(chromium, typing, name):
  run, data = typing(name)
  trained, known = load(run), TYPED.replace("§", "")
  params = jax.tree.map(jnp.asarray, exact_params(trained))
  cell = trained.config.model.cell
  tokens = trained.tokenizer.encode(known)
  layers, logits = trace_layers(cell, params, jnp.asarray(tokens))
  assert logits.dtype == jnp.float64
  p, last = jax.nn.softmax(logits), len(tokens) - 1
  type_text(chromium, TYPED)
  assert chromium.run("return [...tokens]") == tokens.tolist()
  assert chromium.run("return pieces.join('')") == known
  assert f"character {last + 1} of {last + 1}." in chromium.text("status")

  # Every signal, and its levels, to half a level.
  for number, layer in enumerate(layers):
    for signal, values in signals(cell, layer).items():
      values = np.asarray(values).T
      scale, is_signed, levels, exact = chromium.run(
        """
        const [layer, name] = args, { cell, hiddenSize: H } = text.model;
        const s = await text.signalOf(layer, name);
        const gate = cell.gates.indexOf(name) * H;
        const exact = text.tokens.map((_, t) => [...(
          cell.state.includes(name) ? text.stateAt(t).layers[layer][name]
          : text.gatesAt(t, layer).subarray(gate, gate + H))]);
        return [s.scale, s.signed, [...s.levels], exact];
        """,
        number,
        signal,
      )
      assert np.abs(np.array(exact).T - values).max() < 1e-11
      levels = np.array(levels).reshape(values.shape).astype(float)
      shown, half = levels / 255, 0.5 / 255
      if is_signed:
        largest = np.maximum(data.scale(number, signal), np.abs(values).max(1))
        assert np.abs(scale - largest).max() < 1e-11
        half = 0.5 / 127 * np.array(scale)[:, None]
        shown = (levels - 128) * 2 * half
      assert (np.abs(shown - values) < half + 1e-12).all(), signal
      assert np.ptp(values) > 0.01

  # The nats of all tokens, the predictions, and the score of the text.
  found_nats, top = chromium.run("return [text.nats, text.top]")
  expected = -np.log(p[np.arange(last), tokens[1:]])
  assert np.abs(np.array(found_nats) - expected).max() < 1e-11
  for t in (0, 7, last):
    likeliest = np.argsort(-p[t], kind="stable")[:10]
    assert [token for token, _ in top[t]] == likeliest.tolist()
    found = np.array([q for _, q in top[t]])
    assert np.abs(found - p[t][likeliest]).max() < 1e-11
  assert chromium.text("score") == (
    f"{last + 1} characters; {expected.mean():.3f} nats per character, from "
    "the second on; 1 not in the vocabulary, left out."
  )

  # The gradients, at cursors with and without a full window before them.
  paths = gradient_paths(cell, params, layers, tokens, WINDOW)
  for at in (0, 30, last - 1, last):
    chromium.run(GRADIENTS, at)
    for number, path in enumerate(paths):
      found = chromium.run(
        "const paths = await text.pathsOf(args[0]);"
        "return Object.fromEntries(paths.map((path) => [path.name,"
        " Array.from({ length: data.window }, (_, k) => path.norm(args[1], k))"
        "]));",
        number,
        at,
      )
      assert set(found) == set(path._asdict())
      for field, norms in path._asdict().items():
        shown, norms = np.array(found[field]), np.asarray(norms[at])
        inside = norms > 0
        assert (np.abs(shown - norms)[inside] < 1e-9 * norms[inside]).all()
        assert (shown[~inside] == 0).all()
  assert (paths[0].h[last - 1] > 0).all()


def test_the_button_goes_back_and_forth_between_the_texts(chromium, typing):
  _, data = typing("lstm")
  chromium.press("i")
  before = chromium.run("return [cursor, unit, [...pins[0].levels]]")
  shown = "return [$('swap').textContent, $('note').hidden]"
  assert chromium.run(shown) == ["Show my text", True]
  type_text(chromium, "Thou art")
  assert chromium.run(shown) == ["Show the page’s text", False]
  assert chromium.text("cost") == data.header["cost"]
  assert "a text of your own" in chromium.text("about")
  # The unit stays; pins and passages are those of the text that is shown.
  chromium.choose("pattern", "art")
  unit, pinned, own, found = chromium.run(
    "return [unit, [...pins[0].levels], [...levels], found.map((f) => f.first)]"
  )
  assert unit == before[1] and found == [5]
  assert pinned == own[8 * unit : 8 * (unit + 1)]
  # Each text keeps its cursor, and the one that was typed is still there.
  for cursor, pieces, there in ((2, data.text, before[0]), (7, "Thou art", 2)):
    chromium.run("moveTo(args[0])", cursor)
    chromium.push("#swap")
    assert chromium.run("return [pieces.join(''), cursor]") == [pieces, there]
  chromium.push("#swap")
  after = chromium.run("return [cursor, unit, [...pins[0].levels]]")
  assert after == [7, *before[1:]] and chromium.run(shown)[1]
  assert chromium.run("return found.length") == data.text.count("art")
  # If the model knows none of the text, the page shows its own.
  type_text(chromium, "§")
  assert chromium.run("return pieces.join('')") == data.text
  assert chromium.value("own") == "§"
  assert chromium.run("return $('swap').disabled")
  assert chromium.text("score") == "1 not in the vocabulary, left out."


def test_the_last_of_several_texts_is_shown_whatever_else_is_chosen(
  chromium, typing
):
  typing("lstm")
  # 4 ms pass at each look at the clock: the page reads three tokens in a frame.
  chromium.run("let t = 0; performance.now = () => t += 4; anchor = 3;")
  texts = ["Thou " * 60, "art more " * 40, "lovely" * 30]
  busy = chromium.run(
    "$('typing').open = true; for (const text of args[0]) {"
    " $('own').value = text; $('own').dispatchEvent(new Event('input'));"
    " for (const _ of [1, 2, 3]) await nextFrame(); }"
    "for (const [name, value] of [['signal', 'f'], ['layer', 0]]) {"
    " $(name).value = value; $(name).dispatchEvent(new Event('change')); }"
    "await new Promise((done) => setTimeout(done, 30));"
    "return document.querySelector('main').ariaBusy;",
    texts,
  )
  assert busy == "true"  # it is still being read
  chromium.settle()
  assert chromium.run("return pieces.join('')") == texts[-1]
  assert chromium.run("return [layer, signalName, anchor]") == [0, "f", None]
  assert chromium.run("return levels.length") == 11 * len(texts[-1])


def test_a_text_too_long_is_cut(chromium, typing):
  typing("gru")
  # The model knows 2,400 of these 3,000 characters, and reads 2,000 at most.
  type_text(chromium, "art§ " * 600)
  assert chromium.run("return pieces.length") == 2000
  assert chromium.text("score").endswith(
    "; 400 more are not read; 600 not in the vocabulary, left out."
  )
  # A token of this model has 24 Ki numbers of 8 bytes: 96 MiB hold 512 tokens.
  room = chromium.run(
    "return TypedText.room({ hiddenSize: 4096, layers: [0], stateSize: 8192,"
    " cell: { gates: ['i', 'f', 'g', 'o'] } })"
  )
  assert room == 512


def test_a_word_model_reads_typed_words(chromium, typing):
  run, _ = typing("words")
  text, tokenizer = "Thou art more zebra\nlovely", load(run).tokenizer
  type_text(chromium, text)
  tokens = tokenizer.encode(text)
  assert chromium.run("return [...tokens]") == tokens.tolist()
  assert chromium.run("return pieces") == tokenizer.pieces(tokens)
  said = chromium.text("score")
  assert said.startswith(f"{len(tokens)} words; ")
  assert said.endswith("; 1 not in the vocabulary.")


def test_a_page_that_cannot_read_says_why(chromium, typing):
  typing("slstm")
  reach = chromium.text("reach")
  assert reach.endswith(": of each array with the others held fixed.")
  assert chromium.run("return $('typing').hidden")
  assert chromium.text("untyped") == (
    "You cannot type a text here: a page cannot run slstm, only "
    f"{', '.join(packed_model.CELLS)}."
  )
