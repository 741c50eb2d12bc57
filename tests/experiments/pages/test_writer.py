"""The page that writes, in a browser: it computes what the library computes."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.pages.packed_model import CELLS, word_rules
from experiments.trainer.trained import load
from lstm_jax.language import CharTokenizer, WordTokenizer, language_model
from lstm_jax.language.drawing import keep_top_p
from lstm_jax.language.evaluate import stateful_nats
from tests.experiments.pages import browser
from tests.experiments.pages.browser import mixed, number, rgb
from tests.experiments.pages.explored import (
  VERSE,
  PageData,
  exact_params,
)

pytestmark = [pytest.mark.programs, browser.NEEDED]
TEXT = (VERSE * 4).partition("\n")[2]  # begins as the text of the page does
NATS = """
  const track = new Track(model, data.start);
  return tokens.map((token) => track.push(token));
"""


def begin(chromium, prompt, length):
  """Have the page write a text of `length` tokens at once, and focus it."""
  chromium.run(
    "$('prompt').value = args[0]; $('again').click(); writing.pause();"
    "while (writing.track.length < args[1]) writing.advance();"
    "writing.show(); $('text').focus();",
    prompt,
    length,
  )


def read(chromium, text):
  """Put a text into the box, and wait until it is read."""
  chromium.run("$('own').value = args[0]; await reading.read();", text)


@pytest.mark.everyday(1)
@pytest.mark.parametrize("name", CELLS)
def test_the_nats_of_a_text_are_those_of_the_quantized_model(
  chromium, writer_page, name
):
  run, page = writer_page(name)
  trained = load(run)
  tokens = trained.tokenizer.encode("\n" + TEXT)  # a text starts after a break
  config = dataclasses.replace(trained.config.model, dtype=jnp.float64)
  model = language_model(config, trained.tokenizer.size)
  expected = stateful_nats(model, exact_params(trained), tokens)
  chromium.open(page)
  found = chromium.run("const tokens = args[0];" + NATS, tokens[1:].tolist())
  assert np.abs(np.array(found) - expected).max() < 1e-9  # both in doubles
  assert np.ptp(expected) > 0.1
  # So they are if there is no room to keep the tokens' products with W_x.
  again = chromium.run(
    "model.table.clear();"
    "for (let k = 0; k < TABLE_ROWS; k++) model.table.set(-1 - k, null);"
    "const tokens = args[0];" + NATS,
    tokens[1:].tolist(),
  )
  assert again == found
  # What the page shows of the text that it opens with.
  pattern = r"([\d,]+) characters, ([\d.]+) nats"
  length, mean = map(
    number, re.search(pattern, chromium.text("score")).groups()
  )
  assert TEXT.startswith(chromium.value("own")[: int(length)])
  assert abs(mean - expected[: int(length)].mean()) < 1e-3  # three decimals


def test_a_token_is_drawn_as_the_library_draws_it(opened_writer):
  y = np.random.default_rng(0).standard_normal(40) * 3
  for temperature, top_p in ((1.0, 1.0), (0.7, 0.8), (1.5, 0.05)):
    p = jax.nn.softmax(keep_top_p(jnp.array(y) / temperature, top_p))
    found = opened_writer.run(
      "const [y, temperature, topP] = args, p = new Float64Array(y.length);"
      "softmax(y, temperature, p); keepTopP(p, topP); return [...p];",
      y.tolist(),
      temperature,
      top_p,
    )
    assert np.abs(np.array(found) - p).max() < 1e-12
  greedy, drawn = opened_writer.run(
    "const [y] = args, p = new Float64Array(y.length);"
    "softmax(y, 0, p, []); const greedy = drawFrom(p, 0.999);"
    "softmax(y, 1, p, [greedy]); const random = makeRandom(3);"
    "const drawn = new Array(y.length).fill(0);"
    "for (let k = 0; k < 20000; k++) drawn[drawFrom(p, random())]++;"
    "return [greedy, drawn];",
    y.tolist(),
  )
  assert greedy == y.argmax() and drawn[greedy] == 0
  p = np.exp(y - y.max())
  p[greedy] = 0
  p /= p.sum()
  # Five standard deviations of a binomial share, for each token.
  tolerance = 5 * np.sqrt(p * (1 - p) / 20_000) + 1e-4
  assert (np.abs(np.array(drawn) / 20_000 - p) < tolerance).all()


WORDY = (
  "'Tis th' o'er \t thy feel'st--self-love,love , 'quoted' (and) “such”\n"
  "  Thou’rt\x85unknown! $5 été\n\n   \nend 't 'Twas \U0001d49c--- 'tIs TH' "
)


def test_the_page_has_the_tokens_and_the_texts_of_both_tokenizers(
  opened_writer,
):
  # The vocabulary of words lacks "unknown".
  words = WordTokenizer.from_text(WORDY.replace("unknown", "end"), 1)
  for tokenizer in (words, CharTokenizer.from_text(WORDY)):
    tokens = tokenizer.encode(WORDY)
    items, pieces = opened_writer.run(
      "const [symbols, rules, text] = args;"
      "const tokens = rules ? new WordTokens(symbols, rules)"
      "  : new CharTokens(symbols), items = tokens.encode(text);"
      "const spell = tokens.spell();"
      "return [items, items.map(({ token }) => spell(token))];",
      list(tokenizer.symbols),
      word_rules() if tokenizer is words else None,
      WORDY,
    )
    assert [item["token"] for item in items] == tokens.tolist()
    assert pieces == tokenizer.pieces(tokens)
    # The places of the tokens follow one another.
    ends = [0, *(item["to"] for item in items)]
    for end, item in zip(ends, items, strict=False):
      assert end <= item["from"] < item["to"]
  units = WORDY.encode("utf-16-le")  # in which JavaScript counts
  cut = [units[2 * item["from"] : 2 * item["to"]] for item in items]
  assert [part.decode("utf-16-le") for part in cut] == [*WORDY]


def test_the_same_seed_and_settings_write_the_same_text_after_the_prompt(
  opened_writer,
):
  written = """
    const [seed] = args;
    $("temperature").value = 0.9, $("topP").value = 0.85;
    $("speed").value = 8, $("seed").value = seed, $("prompt").value = "Thou";
    $("again").click();
    while (writing.track.length < 44) {
      await new Promise((done) => setTimeout(done, 5));
    }
    writing.pause();
    const track = new Track(model, data.start), random = makeRandom(seed);
    const p = new Float64Array(track.y.length);
    for (const { token } of writing.tokens.encode("Thou")) track.push(token);
    const expected = Array.from({ length: 40 }, () => {
      softmax(track.y, 0.9, p), keepTopP(p, 0.85);
      const token = drawFrom(p, random());
      track.push(token);
      return token;
    });
    const bold = writing.spans.filter((s) => s.classList.contains("given"));
    return [writing.track.tokens.slice(4, 44), expected,
      bold.map((span) => span.textContent).join("")];
  """
  found = [opened_writer.run(written, seed) for seed in (7, 7, 8)]
  first, again, other = (tokens for tokens, *_ in found)
  assert first == again != other
  assert all(tokens == expected for tokens, expected, _ in found)
  assert [bold for *_, bold in found] == ["Thou"] * 3


def test_the_cursor_shows_a_unit_and_what_the_model_expected(
  opened_writer, writer_page
):
  """The list has the probabilities at the settings beside the model's own."""
  begin(opened_writer, "Thou\nart", 80)
  for name, value in (("temperature", 0.4), ("topP", 0.2)):
    opened_writer.choose(name, value)
    assert opened_writer.text(f"{name}Shown") == f"{value:.2f}"
  opened_writer.run("writing.moveTo(30)")
  opened_writer.press("right", "n")
  tokens = opened_writer.run("return writing.track.tokens")
  layer, signal, unit = map(opened_writer.value, ("layer", "signal", "unit"))
  trained = load(writer_page("lstm")[0])
  start = trained.tokenizer.encode("\n")
  run = np.concatenate([start, tokens[:32]]).astype(np.int32)
  params, model = exact_params(trained), trained.model
  state, logits = model.apply(params, model.initial_state(()), run)
  status = opened_writer.text("status")
  value = getattr(state[int(layer)], signal)[int(unit)]
  shown = re.search(rf"Unit {unit} of {signal} is ([−\d.]+)\.", status)
  assert abs(number(shown[1]) - value) < 6e-4
  assert "character 32 of 80" in status
  own = np.asarray(jax.nn.softmax(logits[-1]))
  drawn = np.asarray(jax.nn.softmax(keep_top_p(logits[-1] / 0.4, 0.2)))
  rows = opened_writer.run(
    "return [...$('next').children].map((row) => [row.className,"
    " data.symbols.map(visibleSymbol).indexOf(row.children[0].textContent),"
    " ...['--own', '--drawn'].map((name) =>"
    "  +row.children[1].style.getPropertyValue(name))])"
  )
  likeliest = np.argsort(-own, kind="stable")[:8].tolist()
  shown = [token for _, token, *_ in rows]
  assert shown == [*likeliest, *({tokens[32]} - {*likeliest})]
  for kind, token, p, q in rows:
    assert abs(p - own[token]) < 1e-5 and abs(q - drawn[token]) < 1e-4
    left_out = "" if drawn[token] else "left-out"
    assert kind == ("actual" if token == tokens[32] else left_out)
  # Keys and clicks move the cursor.
  begin(opened_writer, "more art\nmo\nmore art", 20)
  for keys, place in (
    ("left", 18),
    ("up", 11),  # the end of a shorter line
    ("down", 14),
    ("home", 0),
    ("end", 19),
  ):
    opened_writer.press(keys)
    assert opened_writer.run("return writing.cursor") == place, keys
  opened_writer.run("writing.spans[10].click()")
  assert opened_writer.run("return writing.cursor") == 10


def test_the_text_and_all_units_have_the_colors_of_their_values(
  opened_writer, writer_page
):
  header = PageData(writer_page("lstm")[1]).header
  begin(opened_writer, "Thou", 60)

  def check(layer, signal, unit):
    state = next(s for s in header["layers"][layer] if s["name"] == signal)
    shown = [opened_writer.value(n) for n in ("layer", "signal", "unit")]
    assert shown == [str(layer), signal, str(unit)]
    assert opened_writer.text("unitTitle") == (
      f"Unit {unit} of {signal}, {state['meaning']}, layer {layer + 1}"
    )
    scale = state["scale"][unit]
    assert abs(number(opened_writer.text("high")) - scale) < 6e-4
    values, colors = opened_writer.run(
      "const { track, spans } = writing, [layer, signal, unit] = args;"
      "return [spans.map((_, t) => model.viewsOf(Float64Array.from("
      "track.stateAt(t))).layers[layer][signal][unit]),"
      "spans.map((span) => span.style.background)]",
      layer,
      signal,
      unit,
    )
    for value, color in zip(values, colors, strict=True):
      end = "#1f5fa8" if value < 0 else "#b3261e"
      assert rgb(color) == mixed(end, abs(value) / scale)

  # The units that follow a feature, as the menu describes them.
  assert len(header["follows"]) > 2
  for k, best in enumerate(header["follows"]):
    opened_writer.choose("follows", k)
    check(best["layer"], best["signal"], best["unit"])
  for name, value in (("layer", 0), ("signal", "h"), ("unit", 3)):
    opened_writer.choose(name, value)
  opened_writer.run("$('text').focus()")
  for keys, place in (("n", (0, "h", 4)), ("pps", (0, "c", 2))):
    opened_writer.press(*keys)
    check(*place)
  opened_writer.press("l", "s")
  opened_writer.push("#previous")
  check(1, "h", 1)
  left, top = opened_writer.corner("units")  # a square is 14 pixels wide
  opened_writer.click(left + 7 + 14 * 5, top + 7)
  check(1, "h", 5)


def test_a_text_without_end_keeps_its_newest_tokens(opened_writer):
  """A block is 128 tokens: of 300, in room for two blocks, 172 are left."""
  written, tokens, text, same = opened_writer.run("""
    $("prompt").value = ""; $("again").click(); writing.pause();
    writing.track.room = 2 * BLOCK;
    const written = [], track = new Track(model, data.start);
    while (written.length < 300) {
      written.push(writing.pending);
      track.push(writing.pending);
      writing.advance();
    }
    writing.show();
    $("text").focus();
    const same = [128, 255, 256, 299].map((t) => track.stateAt(t).every(
      (v, k) => v === writing.track.stateAt(t)[k]));
    return [written, writing.track.tokens.map((token) => data.symbols[token]),
      $("text").textContent, same];
  """)
  symbols = opened_writer.run("return data.symbols")
  assert tokens == [symbols[token] for token in written[128:]]
  assert text == "".join(tokens) and same == [True] * 4
  opened_writer.press("home")
  assert "character 129 of 300." in opened_writer.text("status")


def test_the_buttons_write_pause_and_begin_anew(opened_writer):
  placeholder = "Empty: it starts after a line break"
  assert opened_writer.run("return $('prompt').placeholder") == placeholder
  opened_writer.run("$('prompt').value = 'mo'; $('again').click();")
  opened_writer.run("writing.pause()")
  for speed, said in ((8, "all it can"), (3, "10")):
    opened_writer.choose("speed", speed)
    assert opened_writer.text("speedShown") == said
  # A tenth of a second passes with each frame, so that each writes a token.
  written = opened_writer.run("""
    let time = 0, frames = 0;
    const own = [performance.now, window.requestAnimationFrame];
    performance.now = () => time;
    window.requestAnimationFrame = (done) => setTimeout(() => {
      time += 100, frames++;
      done(time);
    });
    const { track } = writing, labels = [$("play").textContent];
    const before = track.length;
    $("play").click();
    labels.push($("play").textContent);
    while (frames < 12) await new Promise((done) => setTimeout(done));
    $("play").click();
    labels.push($("play").textContent);
    const written = [frames, track.length - before];
    for (let k = 0; k < 5; k++) await new Promise((done) => setTimeout(done));
    [performance.now, window.requestAnimationFrame] = own;
    return [...written, track.length - before, labels];
  """)
  frames, *lengths, labels = written
  assert lengths == [frames, frames]
  assert labels == ["Write", "Pause", "Write"]
  assert opened_writer.text("text").startswith("mo")
  before = opened_writer.value("seed")
  opened_writer.run("Math.random = () => 0.1234; $('newSeed').click()")
  assert before != opened_writer.value("seed") == "1234"
  assert opened_writer.text("play") == "Pause"
  opened_writer.run("$('prompt').value = 'a§b'; $('again').click();")
  assert "does not know ‘§’ of the prompt" in opened_writer.text("status")
  assert opened_writer.text("play") == "Write"


def test_a_typed_text_is_scored_marked_and_continued(opened_writer):
  read(opened_writer, "")
  assert opened_writer.text("score") == "No text yet."
  opened_writer.run("$('own').focus()")
  opened_writer.press(*"Thou§ art")
  opened_writer.run("await reading.read();")
  nats = np.array(opened_writer.run("return reading.track.nats"))
  size = opened_writer.run("return data.symbols.length")
  assert opened_writer.text("score") == (
    f"8 characters, {nats.mean():.3f} nats each "
    f"({nats.mean() / np.log(2):.3f} bits); a guess among all {size} would "
    f"cost {np.log(size):.2f}. 1 outside the vocabulary, outlined, not read."
  )
  # A character is surprising above log 100 = 4.61 nats; the color is strongest
  # from 8 nats on.
  nats = np.array([0.1, 4.7, 4.5, 9.0, 1.0, 6.0, 2.0, 5.5])
  marks = opened_writer.run(
    "reading.track.nats = args[0]; reading.showMarked(); reading.showScore();"
    "return [...$('marked').querySelectorAll('span:not(.ghost)')].map((span) =>"
    "[span.textContent, span.className, span.style.background])",
    nats.tolist(),
  )
  assert "".join(text for text, *_ in marks) == "Thou§ art"
  assert marks.pop(4)[1] == "unknown"
  kinds = ["surprising" if v > np.log(100) else "" for v in nats]
  assert [kind for _, kind, _ in marks] == kinds
  assert [rgb(color) for *_, color in marks] == mixed("#a1450c", nats / 8)
  most = "return [...$('most').children].map((button) => button.textContent)"
  assert opened_writer.run(most) == [
    "Tho[u]§  9.0 nats",
    "Thou§ [a]rt  6.0 nats",
    "ar[t]  5.5 nats",
  ]
  # An edit in the middle, or after an unknown character, gives what reading the
  # text anew gives.
  read(opened_writer, "")
  for text in ("Thou§ are", "Thee art", "Thou art"):
    read(opened_writer, text)
    edited, fresh = opened_writer.run(
      "const tokens = reading.known.map((item) => item.token);"
      f"return [reading.track.nats, (() => {{{NATS}}})()];"
    )
    assert np.abs(np.array(edited) - fresh).max() < 1e-5  # states in float32
  opened_writer.run("reading.setCaret(3)")
  caret = opened_writer.text("caret")
  assert caret.startswith("After ‘o’ stands ‘u’: ")
  assert caret.endswith(f" %, {fresh[3]:.2f} nats.")
  # In grey are the likeliest characters, up to the end of a word. A key at the
  # end of the text takes them.
  ghost, likeliest = opened_writer.run("""
    const track = new Track(model, data.start);
    for (const { token } of reading.known) track.push(token);
    return [reading.ghost.textContent,
      data.symbols[largestOf(track.y, 1)[0]]];
  """)
  assert ghost.startswith(likeliest)
  opened_writer.press("right")
  assert opened_writer.value("own") == "Thou art"
  opened_writer.press("end", "right")
  assert opened_writer.value("own") == "Thou art" + ghost


def test_the_box_and_the_marked_text_behind_it_break_lines_alike(opened_writer):
  opened_writer.emulate(375, 800)
  read(opened_writer, "Thou art " * 60)
  lines = opened_writer.run("""
    reading.ghost.remove();
    return ["own", "marked"].map((name) => {
      $(name).style = "height: 0; min-height: 0; padding-bottom: 0";
      return $(name).scrollHeight;
    });
  """)
  assert lines[0] == lines[1] > 100


def test_a_word_model_writes_scores_and_completes_words(chromium, writer_page):
  with browser.viewing(chromium, writer_page("words")[1]):
    begin(chromium, "", 30)
    assert "<unk>" not in chromium.text("text")
    # An unknown word is read as <unk>: it has a loss, and counts.
    read(chromium, "Thou art mo")
    assert "3 words" in chromium.text("score")
    marks = "return [...$('marked').querySelectorAll('.unknown')]"
    assert chromium.run(f"{marks}.map((span) => span.textContent)") == ["mo"]
    suggestions = "return reading.suggestions"
    assert chromium.run(suggestions) == ["re"]
    read(chromium, "Thou art ")
    words = chromium.run(suggestions)
    assert len(words) == 3 and "<unk>" not in words
    read(chromium, "Thou art")  # "art" is the beginning of no other word
    assert chromium.run(suggestions) == []
    chromium.run("$('prompt').value = 'Thou zebra'; $('again').click();")
    assert "does not know ‘zebra’ of the" in chromium.text("status")
