"""Texts of any kind are typed into the page of `experiments.explore`."""

import math

import pytest

from experiments.pages import packed_model
from experiments.trainer.trained import load
from tests.experiments.pages import browser
from tests.experiments.pages.browser import text_of
from tests.experiments.pages.explored import PageData
from tests.experiments.pages.typed.typing_texts import (
  GRADIENTS,
  LENGTH,
  WINDOW,
  page_of,
  type_text,
)

pytestmark = [pytest.mark.programs, browser.NEEDED]


def test_the_pages_text_comes_back_and_pins_follow_the_text(chromium, make_run):
  page = page_of(make_run("lstm"))
  data = PageData(page)
  chromium.open(page)
  chromium.press("i")
  before = chromium.run("return [cursor, unit, [...pins[0].levels]]")
  shown = "return [$('swap').textContent, $('note').hidden]"
  assert chromium.run(shown) == ["Show my text", True]
  type_text(chromium, "Thou art")
  assert chromium.run(shown) == ["Show the page’s text", False]
  assert text_of(chromium, "cost") == data.header["cost"]
  unit, pinned, scale = chromium.run(
    "return [unit, [...pins[0].levels], pins[0].signal.scale]"
  )
  own = chromium.run("return [...(await text.signalOf(1, 'c')).levels]")
  assert unit == before[1]  # the unit stays
  # "Thou art" has 8 characters, and the layer 11 units.
  assert pinned == own[8 * unit : 8 * (unit + 1)] and len(scale) == 11
  assert chromium.run("return lineOf[cursor]") == 0

  # A passage is found in the text that is shown.
  chromium.run("$('pattern').value = 'art'; find();")
  assert chromium.run("return found.map((f) => f.first)") == [5]
  assert "a text of your own" in text_of(chromium, "about")
  chromium.run("$('swap').click()")
  chromium.settle()
  about = f"{LENGTH} characters of the validation split"
  assert about in text_of(chromium, "about")
  assert chromium.run(shown) == ["Show my text", True]
  assert chromium.run("return data.layers") == data.header["layers"]
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
  assert chromium.run("return [pieces.length, cursor]") == [LENGTH, 7]
  chromium.run("$('swap').click()")
  chromium.settle()
  assert chromium.run("return [pieces.length, cursor]") == [8, 2]

  # If the model knows none of the text, the page shows its own, and leaves the
  # box as it is.
  type_text(chromium, "§")
  assert chromium.run("return pieces.join('')") == data.text
  assert chromium.run("return [$('own').value, $('swap').disabled]") == (
    ["§", True]
  )
  said = text_of(chromium, "score")
  assert said == "1 not in the vocabulary, left out."
  type_text(chromium, "")
  assert text_of(chromium, "score") == ""

  # A text is not read while an accent waits for its letter.
  compose = """
    $("own").value = "Thou";
    $("own").dispatchEvent(new InputEvent("input", { isComposing: true }));
    const before = numBusy;
    $("own").dispatchEvent(new CompositionEvent("compositionend"));
    return [before, numBusy];
  """
  assert chromium.run(compose) == [0, 1]
  chromium.settle()
  assert chromium.run("return pieces.join('')") == "Thou"


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
  # Long ones: 4 ms pass at each look at the clock, so that the page reads only
  # three tokens in a frame.
  chromium.run(
    "const read = TypedText.prototype.read, now = performance.now;"
    "let t = 0; performance.now = () => t += 4;"
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

  # Norms that are not computed yet are dots in the table.
  cells = chromium.run(
    "moveTo(90);"
    "const cells = [...document.querySelectorAll('#norms td:last-child')].map("
    "(cell) => cell.textContent);"
    "const [h] = await text.pathsOf(0);"
    "return [cells, h.norm(90, 0) > 0, h.norm(90, text.path.back)];"
  )
  assert cells == [["…"] * 8, True, None]
  # The axis has room for norms that are larger than the page's text has.
  chromium.run("data.layers[0].paths[0].high = -99; moveTo(91);")
  chromium.run(GRADIENTS, 91)
  high, norms = chromium.run(
    "const [h] = await text.pathsOf(0);"
    "return [h.high, Array.from({ length: 91 }, (_, k) => h.norm(91, k))]"
  )
  assert abs(high - math.log10(max(norms))) < 1e-9

  # A path is given up when another one is asked for.
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
def test_a_failure_to_unpack_the_model_is_said_and_the_next_text_is_read(
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


@pytest.mark.exhaustive
def test_a_text_too_long_is_cut_and_one_letter_is_read(chromium, make_run):
  chromium.open(page_of(make_run("gru")))
  # The model knows 2,400 of these 3,000 characters, and reads 2,000 at most.
  type_text(chromium, "art§ " * 600)
  assert chromium.run("return pieces.length") == 2000
  said = text_of(chromium, "score")
  assert said.startswith("2,000 characters; ")
  assert said.endswith(
    "; 400 more are not read; 600 not in the vocabulary, left out."
  )
  # A token of this model has 24 Ki numbers of 8 bytes: 96 MiB hold 512 tokens.
  room = chromium.run(
    "return TypedText.room({ hiddenSize: 4096, layers: [0], stateSize: 8192,"
    " cell: { gates: ['i', 'f', 'g', 'o'] } })"
  )
  assert room == 512
  type_text(chromium, "a")
  assert text_of(chromium, "score") == "1 character."
  assert "The text ends here." in text_of(chromium, "status")


def test_a_unit_that_is_always_0_has_the_level_of_0(chromium, make_run):
  chromium.open(page_of(make_run("lstm")))
  type_text(chromium, "Thou")
  levels = chromium.run(
    "text.states.fill(0);"
    "const h = { ...headerOf(data, 1, 'h'), scale: Array(11).fill(0) };"
    "return [...text.quantize(h, 1).levels];"
  )
  assert levels == [128] * 44  # of 11 units after four characters


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
  assert text_of(chromium, "reach").endswith(
    ": of each array with the others held fixed."
  )
  assert chromium.run("return $('typing').hidden")
  assert text_of(chromium, "untyped") == (
    "You cannot type a text here: a page cannot run slstm, only lstm, "
    "layernorm_lstm, coupled_lstm, peephole_lstm, gru, gru_reset_before, rnn, "
    "relu_rnn."
  )
  monkeypatch.setattr(packed_model, "MAX_WEIGHTS", 1_000)
  header = PageData(page_of(make_run("rnn"))).header
  assert header["model"] is None
  assert "at most 1,000 weights" in header["no_typing"]
