"""What the controls of the page that writes show and change, in a browser."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax.language.drawing import keep_top_p
from tests.experiments.pages import browser
from tests.experiments.pages.browser import text_of
from tests.experiments.pages.writer.listing import listed, percent

pytestmark = [pytest.mark.programs, browser.NEEDED]


def begin(chromium, prompt, length):
  """Have the page write a text of `length` tokens at once, and focus it."""
  chromium.run(
    "$('prompt').value = args[0]; $('again').click(); writing.pause();"
    "while (writing.track.length < args[1]) writing.advance();"
    "writing.show(); $('text').focus();",
    prompt,
    length,
  )


def choose(chromium, name, value, event="input"):
  """Set the value of a slider, or of a menu with the event "change"."""
  chromium.run(
    "$(args[0]).value = args[1]; $(args[0]).dispatchEvent(new Event(args[2]))",
    name,
    value,
    event,
  )


def outlined(chromium):
  """Return the cursor and the tokens that are outlined as the cursor."""
  return chromium.run(
    "return [writing.cursor, ...[...document.querySelectorAll('.cursor')].map("
    "(span) => writing.spans.indexOf(span) + writing.track.dropped)]"
  )


@pytest.mark.exhaustive
def test_the_list_has_the_probabilities_at_the_settings(opened):
  begin(opened, "Thou art", 12)
  choose(opened, "temperature", 0.4)
  choose(opened, "topP", 0.2)
  assert text_of(opened, "temperatureShown") == "0.40"
  assert text_of(opened, "topPShown") == "0.20"
  symbols, tokens, pending = opened.run(
    "return [data.symbols.map(visibleSymbol), writing.track.tokens,"
    " writing.pending]"
  )
  # At the end of the text, whose next token is pending, and within it.
  for t, actual in ((11, pending), (5, tokens[6])):
    if t < 11:
      opened.run("writing.moveTo(args[0])", t)
    y = opened.run(
      "const y = new Float64Array(data.symbols.length);"
      "writing.track.logitsAfter(args[0], y); return [...y];",
      t,
    )
    own = np.asarray(jax.nn.softmax(jnp.array(y)))
    drawn = np.asarray(jax.nn.softmax(keep_top_p(jnp.array(y) / 0.4, 0.2)))
    rows = listed(opened, "next")
    found = [symbols.index(row.symbol) for row in rows]
    likeliest = np.argsort(-own, kind="stable")[:8].tolist()
    assert found == [*likeliest, *({actual} - {*likeliest})]
    for row, token in zip(rows, found, strict=True):
      assert abs(row.own - own[token]) < 1e-5  # states in float32
      assert abs(row.drawn - drawn[token]) < 1e-4
      shown = percent(row.drawn) if drawn[token] else "–"
      assert row.figure == shown
      left_out = "" if drawn[token] else "left-out"
      assert row.kind == ("actual" if token == actual else left_out)
    assert {row.drawn > 0 for row in rows} == {True, False}
    status = text_of(opened, "status")
    assert f"‘{symbols[tokens[t]]}’, character {t + 1} of 12. " in status
    assert status.endswith(
      f"Next: ‘{symbols[actual]}’, which the model gives "
      f"{percent(own[actual])}."
    )


@pytest.mark.exhaustive
def test_each_token_is_drawn_at_the_settings_by_its_own_random_number(opened):
  choose(opened, "temperature", 0.9)
  choose(opened, "topP", 0.85)
  choose(opened, "seed", 5)
  begin(opened, "Thou", 44)
  expected = opened.run("""
    const track = new Track(model, data.start), random = makeRandom(5);
    const p = new Float64Array(track.y.length);
    for (const { token } of writing.tokens.encode("Thou")) track.push(token);
    return Array.from({ length: 40 }, () => {
      softmax(track.y, 0.9, p);
      keepTopP(p, 0.85);
      const token = drawFrom(p, random());
      track.push(token);
      return token;
    });
  """)
  assert opened.run("return writing.track.tokens.slice(4)") == expected
  bold = "return writing.spans.map((s) => s.classList.contains('given'))"
  assert opened.run(bold) == [True] * 4 + [False] * 40


@pytest.mark.exhaustive
def test_keys_and_clicks_move_the_cursor_of_the_text(opened):
  begin(opened, "more art\nmo\nmore art", 20)
  for keys, place in (
    (("left",), 18),
    (("up",), 11),  # the end of a shorter line
    (("up",), 2),
    (("up",), 2),
    (("down",), 11),
    (("home",), 0),
    (("left",), 0),
    (("end",), 19),
    (("right",), 19),
  ):
    opened.press(*keys)
    assert outlined(opened) == [place, place], keys
  opened.run("writing.spans[10].click()")
  assert outlined(opened) == [10, 10]
  assert text_of(opened, "status").startswith("‘o’, character 11 of 20.")
  # The page leaves Ctrl-R to the browser, which reloads it.
  ctrl = "{ key: 'r', ctrlKey: true, cancelable: true }"
  assert opened.run(
    f"return $('text').dispatchEvent(new KeyboardEvent('keydown', {ctrl}))"
  )
  # A text that is begun anew has no cursor.
  begin(opened, "more", 4)
  assert outlined(opened) == [None]


def test_the_oldest_tokens_are_forgotten_a_block_at_a_time(opened):
  """A block is 128 tokens: of 300, in room for two blocks, 172 are left."""
  written = opened.run("""
    $("prompt").value = ""; $("again").click(); writing.pause();
    writing.track.room = 2 * BLOCK;
    const written = [];
    while (written.length < 300) {
      written.push(writing.pending);
      writing.advance();
    }
    writing.show();
    $("text").focus();
    return written;
  """)
  symbols = opened.run("return data.symbols")
  kept = "".join(symbols[token] for token in written[128:])
  opened.press("home")
  assert outlined(opened) == [128, 128]
  assert "character 129 of 300." in text_of(opened, "status")
  found, lines = opened.run(
    "return [writing.track.tokens, [...$('text').children].map("
    "(line) => line.textContent)]"
  )
  assert found == written[128:] and lines == re.split("(?<=\n)", kept)
  opened.run("writing.spans[10].click()")
  assert outlined(opened) == [138, 138]
  status = text_of(opened, "status")
  shown = opened.run(
    "return args[0].map((token) => quoted(data.symbols[token]))",
    written[138:140],
  )
  assert status.startswith(f"{shown[0]}, character 139 of 300.")
  assert f"Next: {shown[1]}, which" in status
  # The states are those of the tokens that are left, and so are the colors.
  same, colors = opened.run(
    """
    const track = new Track(model, data.start), { units } = writing;
    for (const token of args[0]) track.push(token);
    const same = [128, 255, 256, 299].map((t) => track.stateAt(t).every(
      (v, k) => v === writing.track.stateAt(t)[k]));
    units.colorAll();
    const colors = writing.spans.map((span, k) => {
      const v = track.stateAt(128 + k)[units.offset + units.unit];
      return [span.style.background, units.colorOf(v, units.unit).fill];
    });
    return [same, colors];
    """,
    written,
  )
  assert same == [True] * 4
  assert all(a.replace(" ", "") == b.replace(" ", "") for a, b in colors)
  assert len({a for a, _ in colors}) > 5


def test_the_button_writes_at_the_speed_and_pauses(opened):
  opened.run("$('again').click(); writing.pause();")
  choose(opened, "speed", 8)
  assert text_of(opened, "speedShown") == "all it can"
  choose(opened, "speed", 3)
  assert text_of(opened, "speedShown") == "10"
  # A tenth of a second passes with each frame, so that each writes a token.
  frames, written, labels = opened.run("""
    let time = 0, frames = 0;
    performance.now = () => time;
    window.requestAnimationFrame = (done) => setTimeout(() => {
      time += 100, frames++;
      done(time);
    });
    const { track } = writing, labels = [$("play").textContent];
    $("play").click();
    labels.push($("play").textContent);
    while (frames < 12) await new Promise((done) => setTimeout(done));
    $("play").click();
    labels.push($("play").textContent);
    const now = frames, written = track.length;
    for (let k = 0; k < 5; k++) await new Promise((done) => setTimeout(done));
    return [now, [written, track.length], labels];
  """)
  assert written == [frames, frames]
  assert labels == ["Write", "Pause", "Write"]
  assert text_of(opened, "rate") == "10 a second"


def test_a_new_prompt_or_seed_begins_the_text_anew(opened):
  begin(opened, "Thou", 20)
  begun = """
    Math.random = () => 0.1234;
    if (args[0] === "click") $("newSeed").click();
    else {
      $("prompt").value = "art";
      $("prompt").dispatchEvent(new Event("change"));
    }
    const found = [writing.running, writing.track.length,
      data.symbols[writing.pending], $("seed").value];
    writing.pause();
    return found;
  """
  # The text is running and empty, before the prompt's "a". The seed is 1 until
  # the button replaces it by 10,000 times the random number, 0.1234.
  assert opened.run(begun, "change") == [True, 0, "a", "1"]
  opened.run("while (writing.track.length < 9) writing.advance()")
  assert opened.run(begun, "click") == [True, 0, "a", "1234"]


def test_the_button_writes_after_a_prompt_is_typed(opened):
  """A press on the button ends the change of the prompt, which also writes."""
  place = """
    const box = $(args[0]).getBoundingClientRect();
    return [box.left + 9, box.top + 9];
  """
  opened.run("$('again').click(); writing.pause(); scrollTo(0, 0);")
  for name, label in (
    ("prompt", "Write"),
    ("play", "Pause"),
    ("play", "Write"),
  ):
    opened.click(*opened.run(place, name))
    if name == "prompt":
      opened.press("m", "o")
    assert text_of(opened, "play") == label
  for label in "Pause", "Write":  # a screen reader's click, without a press
    opened.run("$('play').dispatchEvent(new MouseEvent('click', {detail: 1}))")
    assert text_of(opened, "play") == label
