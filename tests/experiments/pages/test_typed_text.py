"""A text typed into the page of `experiments.explore`, in a browser.

Its states, gates, predictions and gradients are those of the library, in
float64, with the 8-bit weights of the page, whose biases and gains are noise.
"""

import io
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from experiments import explore, pages
from experiments.analysis.gradient_flow import gradient_paths
from experiments.analysis.states import signals, trace_layers
from experiments.pages import packed_model
from experiments.trainer.trained import load
from tests.experiments.pages import browser
from tests.experiments.pages.browser import text_of
from tests.experiments.pages.explored import (
  PageData,
  exact_params,
  untrained_runs,
)

pytestmark = [pytest.mark.programs, browser.NEEDED]
TYPED = "Shall I compare§ thee\nto a lovely day" + " more lovely" * 7
WINDOW = 96


@pytest.fixture(scope="module")
def make_run(tmp_path_factory):
  """Return a function: name -> the run of an untrained model."""
  return untrained_runs(tmp_path_factory.mktemp("typed"))


def page_of(run):
  """Return the page of a run."""
  config = explore.ExploreConfig(str(run), length=300)
  return explore.run(config, Console(file=io.StringIO())).path


@pytest.fixture
def chromium(chromium):
  chromium.emulate(1100, 900)
  chromium.errors()
  yield chromium
  assert chromium.errors() == []


def type_text(chromium, *texts):
  """Put one text after another into the page's box, as if they were typed."""
  chromium.run(
    "$('typing').open = true; for (const text of args[0]) {"
    " $('own').value = text; $('own').dispatchEvent(new Event('input')); }",
    texts,
  )
  chromium.settle()


GRADIENTS = """
  moveTo(args[0]);
  while (text.path && text.path.back < text.path.steps) {
    await new Promise(requestAnimationFrame);
  }
  for (const _ of [1, 2]) await new Promise(requestAnimationFrame);
"""


def computed(run, text):
  """Return what the library computes with the page's weights, in float64."""
  trained = load(run)
  params = jax.tree.map(jnp.asarray, exact_params(trained))
  cell = trained.config.model.cell
  tokens = trained.tokenizer.encode(text)
  layers, logits = trace_layers(cell, params, jnp.asarray(tokens))
  assert logits.dtype == jnp.float64
  paths = gradient_paths(cell, params, layers, tokens, WINDOW)
  return cell, tokens, layers, jax.nn.softmax(logits), paths


@pytest.mark.everyday(1)
@pytest.mark.parametrize("name", packed_model.CELLS)
def test_a_typed_text_is_read_as_the_library_reads_it(chromium, make_run, name):
  run = make_run(name)
  cell, tokens, layers, p, paths = computed(run, TYPED.replace("§", ""))
  last = len(tokens) - 1
  chromium.open(page_of(run))
  type_text(chromium, TYPED)
  assert chromium.run("return [...tokens]") == tokens.tolist()
  assert chromium.run("return pieces.join('')") == TYPED.replace("§", "")
  assert f"character {last + 1} of {last + 1}." in text_of(chromium, "status")

  # Every signal, and its levels, to half of one.
  page_data = PageData(run / "explore.html")
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
        own = page_data.scale(number, signal)
        assert (
          np.abs(scale - np.maximum(own, np.abs(values).max(1))).max() < 1e-11
        )
        half = 0.5 / 127 * np.array(scale)[:, None]
        shown = (levels - 128) * 2 * half
      assert (np.abs(shown - values) < half + 1e-12).all(), signal
      assert np.ptp(values) > 0.01

  # The predictions, of all tokens, and what the text costs.
  found_nats, top = chromium.run("return [text.nats, text.top]")
  expected = -np.log(p[np.arange(last), tokens[1:]])
  assert np.abs(np.array(found_nats) - expected).max() < 1e-11
  for t in (0, 7, last):
    likeliest = np.argsort(-p[t], kind="stable")[:10]
    assert [token for token, _ in top[t]] == likeliest.tolist()
    found = np.array([q for _, q in top[t]])
    assert np.abs(found - p[t][likeliest]).max() < 1e-11
  assert text_of(chromium, "score") == (
    f"{last + 1} characters; {expected.mean():.3f} nats per character, from "
    "the second on; 1 not in the vocabulary, left out."
  )

  # The gradients, at cursors with and without a full window before them.
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

  # And in the table beside the text, once they are there.
  for number in (0, 1):
    chromium.run(
      "$('layer').value = args[0];"
      "$('layer').dispatchEvent(new Event('change'));",
      number,
    )
    chromium.settle()
    chromium.run(GRADIENTS, last - 1)
    rows = chromium.run(
      "return [...document.querySelectorAll('#norms tr')].map((row) =>"
      "[...row.children].slice(2).map((cell) => cell.textContent))"
    )
    norms = [np.asarray(n)[last - 1] for n in paths[number]]
    for back, row in zip((0, 1, 2, 4, 8, 16, 32, 64), rows, strict=True):
      for shown, norm in zip(row, norms, strict=True):
        value = 0 if shown == "–" else float(shown.replace("−", "-"))
        assert abs(value - norm[back]) <= 0.051 * 10 ** np.floor(
          np.log10(norm[back] or 1)
        )


def test_the_pages_text_comes_back_and_pins_follow_the_text(chromium, make_run):
  page = page_of(make_run("lstm"))
  data = PageData(page)
  chromium.open(page)
  chromium.press("i")
  before = chromium.run("return [cursor, unit, [...pins[0].levels]]")
  type_text(chromium, "Thou art")
  unit, pinned, scale = chromium.run(
    "return [unit, [...pins[0].levels], pins[0].signal.scale]"
  )
  own = chromium.run("return [...(await text.signalOf(1, 'c')).levels]")
  assert unit == before[1]  # the unit stays
  assert pinned == own[8 * unit : 8 * (unit + 1)] and len(scale) == 11
  assert chromium.run("return lineOf[cursor]") == 0

  # A passage is found in the text that is shown.
  chromium.run("$('pattern').value = 'art'; find();")
  assert chromium.run("return found.map((f) => f.first)") == [5]
  assert "a text of your own" in text_of(chromium, "about")
  chromium.run("$('swap').click()")
  chromium.settle()
  assert "300 characters of the validation split" in text_of(chromium, "about")
  assert chromium.run("return pieces.join('')") == data.text
  after = chromium.run("return [cursor, unit, [...pins[0].levels]]")
  assert after == before
  assert chromium.run("return found.length") == data.text.count("art")

  # Each text keeps its cursor, and the one that was typed is still there.
  chromium.run("moveTo(7); $('swap').click()")
  chromium.settle()
  assert chromium.run("return pieces.join('')") == "Thou art"
  chromium.run("moveTo(2); $('swap').click()")
  chromium.settle()
  assert chromium.run("return [pieces.length, cursor]") == [300, 7]
  chromium.run("$('swap').click()")
  chromium.settle()
  assert chromium.run("return [pieces.length, cursor]") == [8, 2]

  # Nothing that the model knows: the page's text, and the box as it was.
  type_text(chromium, "§")
  assert chromium.run("return pieces.join('')") == data.text
  assert chromium.run("return [$('own').value, $('swap').disabled]") == (
    ["§", True]
  )
  said = text_of(chromium, "score")
  assert said == "1 not in the vocabulary, left out."
  type_text(chromium, "")
  assert text_of(chromium, "score") == ""


@pytest.mark.exhaustive
def test_the_last_of_several_texts_is_shown_whatever_else_is_chosen(
  chromium, make_run
):
  chromium.open(page_of(make_run("lstm")))
  chromium.run(
    "window.unpacked = 0; const unpack = Model.unpack;"
    "Model.unpack = (packed) => { unpacked++; return unpack(packed); };"
  )
  type_text(chromium, "T", "Th", "Tho")  # unpacks the model, once
  # Long ones, each of which is read in many slices of no time at all.
  chromium.run(
    "const read = TypedText.prototype.read, now = performance.now;"
    "let t = 0; performance.now = () => t += 1000;"
    "window.reads = [];"
    "TypedText.prototype.read = function (isCurrent) {"
    " window.reads.push(this); return read.call(this, isCurrent); };"
    "anchor = 3;"
  )
  texts = ["Thou " * 60, "art more " * 40, "lovely" * 30]
  chromium.run(
    "$('typing').open = true; for (const text of args[0]) {"
    " $('own').value = text; $('own').dispatchEvent(new Event('input'));"
    " await new Promise(requestAnimationFrame);"
    " await new Promise(requestAnimationFrame);"
    " await new Promise(requestAnimationFrame); }"
    "stepUnit(1); $('signal').value = 'f';"
    "$('signal').dispatchEvent(new Event('change'));"
    "$('layer').value = 0; $('layer').dispatchEvent(new Event('change'));"
    "await new Promise((done) => setTimeout(done, 30));"
    "window.busy = document.querySelector('main').ariaBusy;",
    texts,
  )
  assert chromium.run("return busy") == "true"  # it is still being read
  chromium.settle()
  assert chromium.run("return pieces.join('')") == texts[-1]
  assert chromium.run("return [layer, signalName, anchor, unpacked]") == (
    [0, "f", None, 1]
  )
  assert chromium.run("return levels.length") == 11 * len(texts[-1])
  read = chromium.run("return reads.map((each) => each.top.length)")
  assert len(read) == 3 and read[2] == len(texts[-1])
  assert 0 < read[0] < len(texts[0]) and read[1] < len(texts[1])  # given up

  # A path that nobody waits for ends.
  chromium.run(
    "moveTo(100); window.first = text.path; moveTo(150);"
    "window.second = text.path;"
  )
  chromium.run(GRADIENTS, 150)
  first, second, steps = chromium.run(
    "return [first.back, second.back, second.steps]"
  )
  assert first < 5 and second == steps == WINDOW


@pytest.mark.exhaustive
def test_a_text_that_cannot_be_read_is_said_and_can_be_typed_again(
  chromium, make_run
):
  chromium.open(page_of(make_run("gru")))
  chromium.run(
    "window.unpack1 = Model.unpack;"
    "Model.unpack = async () => { throw new RangeError('no memory'); };"
  )
  type_text(chromium, "Thou")
  said = text_of(chromium, "score")
  assert said == "This text cannot be read: no memory"
  chromium.run("Model.unpack = unpack1;")
  type_text(chromium, "Thou art")
  assert chromium.run("return pieces.length") == 8


def test_a_text_too_long_and_one_letter_are_read(chromium, make_run):
  chromium.open(page_of(make_run("gru")))
  type_text(chromium, "art " * 600)
  assert chromium.run("return pieces.length") == 2000
  said = text_of(chromium, "score")
  assert said.startswith("2,000 characters; ")
  assert said.endswith("; 400 more are not read.")
  # 96 MiB are 512 tokens of a model that has 24 Ki numbers for each.
  room = chromium.run(
    "return TypedText.room({ hiddenSize: 4096, layers: [0], stateSize: 8192,"
    " cell: { gates: ['i', 'f', 'g', 'o'] } })"
  )
  assert room == 512
  type_text(chromium, "a")
  assert text_of(chromium, "score") == "1 character."
  assert "The text ends here." in text_of(chromium, "status")


@pytest.mark.exhaustive
def test_a_word_model_reads_typed_words(chromium, make_run):
  run = make_run("words")
  chromium.open(page_of(run))
  type_text(chromium, "Thou art more zebra\nlovely")
  pieces = chromium.run("return pieces")
  tokens = load(run).tokenizer.encode("Thou art more zebra\nlovely")
  assert chromium.run("return [...tokens]") == tokens.tolist()
  assert pieces == load(run).tokenizer.pieces(tokens)
  said = text_of(chromium, "score")
  assert said.startswith(f"{len(tokens)} words; ")
  assert said.endswith(
    " nats per word, from the second on; 1 not in the vocabulary."
  )


@pytest.mark.exhaustive
def test_a_page_that_cannot_read_says_why(chromium, make_run, monkeypatch):
  chromium.open(page_of(make_run("slstm")))
  assert chromium.run("return $('typing').hidden")
  assert text_of(chromium, "untyped") == (
    "You cannot type a text here: a page computes no slstm, only lstm, "
    "layernorm_lstm, coupled_lstm, peephole_lstm, gru, gru_reset_before, rnn, "
    "relu_rnn."
  )
  monkeypatch.setattr(packed_model, "MAX_WEIGHTS", 1_000)
  header = PageData(page_of(make_run("rnn"))).header
  assert header["model"] is None
  assert "at most 1,000 weights" in header["no_typing"]


# What a line of backward.js assigns to an array or a term, or returns.
RESULT = re.compile(
  r"^\s*(?:(?:for \(.*?\) |const (?=(?:s|dn|da) =))?\w+(?:\[.+?\])? [-+*]?="
  r"|.*\(y\) =>) (.+?)\)?[,;]$"
)
BLOCK = re.compile(r"^(?:function|  )(?: )?(\w+)(?:\(.*\{|: (?:\{|plain.*))$")
USERS = {  # of the functions above the cells
  "normaliseBackward": ("layernorm_lstm",),
  "gatesBackward": ("lstm", "peephole_lstm", "layernorm_lstm"),
  "plainRnnBackward": ("rnn", "relu_rnn"),
}


def planted(name):
  """Return (line, backward.js with an error there) for lines a cell runs."""
  source = pages.explore.TEMPLATE.with_name("backward.js").read_text("utf-8")
  lines = source[: source.index("const norm =")].splitlines()
  block, variants = "", []
  for number, line in enumerate(lines):
    if start := BLOCK.match(line):
      block = start[1]
    runs = name == block or name in USERS.get(block, ())
    result = RESULT.match(line)
    if runs and result and result[1] != "0":
      before, after = line[: result.start(1)], line[result.end(1) :]
      wrong = f"{before}1.01 * ({result[1]}){after}"
      code = "\n".join([*lines[1:number], wrong, *lines[number + 1 :]])
      variants.append((line.strip(), code))
  return variants


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", packed_model.CELLS)
def test_an_error_planted_in_a_backward_changes_the_gradient(
  chromium, make_run, name, tmp_path
):
  page = page_of(make_run(name)).read_text("utf-8")
  variants = planted(name)
  code = "".join(f"{{{code}\nWRONG.push(BACKWARD);}}\n" for _, code in variants)
  end = page.rindex("</body>")
  (tmp_path / "page.html").write_text(
    f"{page[:end]}<script>const WRONG = [];\n{code}</script>{page[end:]}"
  )
  chromium.open(tmp_path / "page.html")
  type_text(chromium, TYPED.replace("§", ""))
  own, *found = chromium.run("""
    const { cell } = data.model;
    return [BACKWARD, ...WRONG].map((backward) => {
      const path = new GradientPath(
        text.model, cell, text, 40, text.tokens[41], 9);
      path.backward = backward[cell];
      while (path.advance());
      return path.norms.map((fields) => Object.values(fields).map(
        (norms) => [...norms.slice(0, 9)]));
    });
  """)
  assert len(variants) >= (2 if name in USERS["plainRnnBackward"] else 4)
  for (line, _), norms in zip(variants, found, strict=True):
    # The gradient of the library is met to 1e-9.
    assert np.abs(np.subtract(norms, own)).max() > 1e-6, line
