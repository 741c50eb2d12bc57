"""What a run shows: its bar, TensorBoard's events, pictures and tables."""

import io
import math
import re
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure
from rich.console import Console

from experiments import cli, train
from experiments.analysis.states import signals, trace_layers
from experiments.cli import make_console
from experiments.trainer import display
from experiments.trainer.display import TAGS, TensorBoard, TrainingBar
from experiments.trainer.figures import (
  End,
  draw_losses,
  label_ends,
  save,
  tidy,
  zoom_on_tail,
)
from experiments.trainer.format import (
  CONTROLS,
  format_losses,
  number_table,
  print_sample,
  print_table,
  print_title,
)
from experiments.trainer.records import replace
from experiments.trainer.trained import load
from lstm_jax import Autodiff, gru, lstm, rnn
from lstm_jax.language import (
  CharTokenizer,
  ModelConfig,
  WordTokenizer,
  language_model,
)
from lstm_jax.training import part_norms
from tests.experiments.trainer.resuming import (
  PROCESS_METRICS,
  outcome,
  read_rows,
  signal_at,
)
from tests.training.test_matrix_state import cell as matrix_cell

GATES = {lstm: "ifo", gru: "rz", rnn: ""}  # letters of their gates


START = 1  # session_log.status of the event with which a process starts


def read_events(path):
  """Return the events of a file of records.

  A record has a length and its CRC, then a protocol buffer and its CRC
  (TensorFlow, tensorflow/core/lib/io/record_writer.h).
  """
  proto = pytest.importorskip("tensorboardX.proto.event_pb2")
  data, events = path.read_bytes(), []
  while data:
    end = 12 + int.from_bytes(data[:8], "little")
    events.append(proto.Event.FromString(data[12:end]))
    data = data[end + 4 :]
  return events


def shown_events(directory):
  """Return what TensorBoard shows of a run: {tag: [(step, value), ...]}.

  Where a process starts or resumes a run, it writes a START event: TensorBoard
  then drops the earlier events of its step and of later steps.
  """
  shown = []
  for path in sorted((directory / "tensorboard").iterdir()):
    for event in read_events(path):
      if event.session_log.status == START:
        shown = [(s, value) for s, value in shown if s < event.step]
      shown += [(event.step, value) for value in event.summary.value]
  by_tag = {}
  for step, value in shown:
    kind = value.WhichOneof("value")
    content = getattr(value, kind)
    if kind == "tensor":
      (content,) = (text.decode() for text in content.string_val)
    elif kind == "histo":
      content = tuple(content.bucket_limit), tuple(content.bucket)
    by_tag.setdefault(value.tag, []).append((step, content))
  return by_tag


def stored(value):
  """Return a number as an event stores it, in float32."""
  return float(np.float32(value))


@pytest.fixture
def config(trained_runs):
  return trained_runs["lstm"]


def evaluated(directory):
  """Return the steps at which a run was evaluated."""
  return [row["step"] for row in read_rows(directory) if "val_loss" in row]


def saturated(gate):
  """Return how many values of a gate are below 0.1, and above 0.9."""
  return [np.count_nonzero(gate < 0.1), np.count_nonzero(gate > 0.9)]


@pytest.mark.exhaustive
@pytest.mark.parametrize("cell", GATES, ids=lambda cell: cell.__name__[-4:])
def test_the_gates_of_an_lstm_a_gru_and_an_rnn_are_counted(cell, tmp_path, key):
  model = language_model(ModelConfig(cell, hidden_size=9, num_layers=2), 7)
  params = jax.tree.map(lambda leaf: 4 * leaf, model.init(key))  # saturated
  tokens = np.arange(40) % 7
  writer = TensorBoard(tmp_path / "tensorboard", cell, tokens, 0)
  writer.evaluation(30, params)
  shown = shown_events(tmp_path)
  layers, _ = trace_layers(cell, params, jnp.asarray(tokens))
  gates = {
    f"layer{number}_{letter}": np.asarray(signals(cell, layer)[letter])
    for number, layer in enumerate(layers, start=1)
    for letter in GATES[cell]
  }
  assert {f"gates/{name}" for name in gates} == {
    tag for tag in shown if tag.startswith("gates/")
  }
  for name, gate in gates.items():
    ((_, (limits, counts)),) = shown[f"gates/{name}"]
    bins = dict(zip(np.round(limits, 3), counts, strict=True))
    below = sum(n for limit, n in bins.items() if limit <= 0.1)
    above = sum(n for limit, n in bins.items() if limit > 0.9)
    assert [below, above] == saturated(gate)
    assert sum(counts) == gate.size


def test_a_sample_is_shown_as_code_and_not_as_markup(config):
  directory = Path(config.job.run)
  shown = shown_events(directory)["samples/text_summary"]
  steps = evaluated(directory)
  # Untrained, at each evaluation, and at the end from the best checkpoint.
  assert [step for step, _ in shown] == [0, *steps, steps[-1]]
  samples = ""
  for _, text in shown:
    title, empty, *lines = text.split("\n")
    assert empty == "" and all(line.startswith("    ") for line in lines)
    samples += f"=== {title} ===\n" + "".join(f"{x[4:]}\n" for x in lines)
    samples += "\n"
  assert samples == (directory / "samples.txt").read_text(encoding="utf-8")
  assert "<" in samples


@pytest.mark.exhaustive
def test_a_resumed_run_shows_each_step_once(config, console, tmp_path):
  whole = Path(config.job.run)
  again = replace(config, run=str(tmp_path / "run"))
  with pytest.MonkeyPatch.context() as monkeypatch:
    signal_at(monkeypatch, 33)
    directory = train.run(again, console).directory
  # A row after the last checkpoint, as a kill leaves it: resuming drops it.
  late = TensorBoard(directory / "tensorboard", lstm, np.zeros(2, int), 34)
  late.row({"step": 40, "train_loss": 9.0}, {})
  train.run(again, console)
  shown, expected = shown_events(directory), shown_events(whole)
  for name in PROCESS_METRICS:
    shown.pop(TAGS[name], None), expected.pop(TAGS[name], None)
  assert shown == expected
  assert outcome(directory) == outcome(whole)


def test_without_tensorboardx_a_new_run_is_the_same_and_has_no_events(
  config, console, monkeypatch, tmp_path
):
  directory = tmp_path / "run"
  shutil.copytree(config.job.run, directory)
  assert (directory / "tensorboard").exists()  # of the run that is replaced
  monkeypatch.setattr(display, "summary", None)
  again = replace(config, run=str(directory), overwrite=True)
  train.run(again, console)
  assert not (directory / "tensorboard").exists()
  assert outcome(directory) == outcome(Path(config.job.run))


def test_a_bar_has_the_remaining_time_if_updates_are_minutes_apart():
  now, sent = 0.0, io.StringIO()
  console = Console(
    file=sent, width=80, force_terminal=True, get_time=lambda: now
  )
  with TrainingBar(console, 100, "character") as bar:
    for step in range(10, 40, 10):
      bar.update(step, 3.0, 5.0)
      now += 100.0
    bar.advance(35)
  text = re.sub(r"\x1b\[[0-9]+m", "", sent.getvalue())
  # Steps 11 to 35 took 300 s, so that the last 65 take 780.
  assert " 35/100 3.000 nats/char  5 chars/s 13:00 left\n" in text


def test_a_run_of_one_row_has_one_line_and_a_longer_one_no_first(capsys):
  for total in (10, 20):
    bar = TrainingBar(make_console(), total, "character")
    bar.update(10, 3.0, 5.0)
    line = "10/10  3.000 nats/char  5 chars/s  0:00:00 left\n"
    assert capsys.readouterr().out == (line if total == 10 else "")


@pytest.fixture
def drawn(monkeypatch):
  """The figures that are saved, which are not drawn."""
  figures = []
  monkeypatch.setattr(
    Figure, "savefig", lambda figure, path, **options: figures.append(figure)
  )
  return figures


def test_the_picture_of_a_run_shows_its_best_and_its_test_loss(tmp_path, drawn):
  """Both are of step 10, which is too early to set the limits otherwise."""
  rows = [{"step": 10, "val_loss": 0.5}, {"step": 10, "test_loss": 7.0}]
  rows += [{"step": s, "train_loss": 1.0} for s in (900, 1000)]
  rows += [{"step": 1000, "val_loss": 5.5}]
  draw_losses(rows, "character", tmp_path / "loss.png")
  draw_losses([{"step": 10, "train_loss": 3.5}], "word", tmp_path / "loss.png")
  (panel,), (untested,) = drawn[0].axes, drawn[1].axes
  bottom, top = panel.get_ylim()
  assert bottom < 0.5 and top > 7
  title = "Best validation loss 0.5000 nats per character, at step 10"
  assert panel.get_title("left") == title
  assert [(text.get_text(), text.get_color()) for text in panel.texts] == [
    ("training", "tab:gray"),
    ("validation", "tab:blue"),
    ("test", "tab:red"),
  ]
  assert untested.get_title("left") == "Training loss, nats per word"


def test_a_picture_that_cannot_be_written_is_named_and_the_old_one_kept(
  tmp_path, no_room
):
  path = tmp_path / "loss.png"
  path.write_text("old")
  with no_room(), pytest.raises(OSError, match="File too large") as error:
    save(Figure(), path)
  assert error.value.filename == str(path)
  assert path.read_text() == "old"
  assert [*tmp_path.iterdir()] == [path]


def test_labels_are_beside_the_panel_and_do_not_overlap():
  figure = Figure(figsize=(4, 2), dpi=100)
  panel = figure.subplots()
  panel.set_ylim(0, 1)
  tidy(panel, "title", "x", "y", "a note")
  label_ends(panel, [End(0.5, "a", "red"), End(0.51, "b", "blue")])
  figure.draw_without_rendering()
  extents = {t.get_text(): t.get_window_extent() for t in panel.texts}
  assert [*extents] == ["a note", "a", "b"]
  note, low, high = extents.values()
  assert note.y0 > panel.get_window_extent().y1
  assert low.y1 <= high.y0 + 1  # pixels
  assert low.x0 > panel.get_window_extent().x1
  # Their distance is 1.15 font sizes of 9 points, at 100 pixels per inch.
  apart = (high.y0 + high.y1 - low.y0 - low.y1) / 2
  assert abs(apart - 1.15 * 9 * 100 / 72) < 2
  beside = panel.transData.transform((0, 0.5))[1]  # the lower is not moved
  assert abs((low.y0 + low.y1) / 2 - beside) < 2


@pytest.mark.parametrize("width", [20, 37, 80])
def test_a_narrow_console_cuts_off_no_number_and_no_label(width):
  table = number_table("protocol", "nats/char", "perplexity")
  table.add_row("cold windows of 256", "1.9465", "1,072.179")
  console = Console(file=io.StringIO(), width=width)
  print_table(table, console)
  text = console.file.getvalue()
  for whole in ("cold windows of 256", "1.9465", "1,072.179"):
    assert whole in text


def test_what_a_file_says_cannot_act_on_a_terminal(capsys, monkeypatch):
  """In an error, in a line and in a table."""
  # `_fail` replaces it.
  monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
  text = "\x1b]0;title\x07\x9b31m"
  table = number_table(text)
  table.add_row(text)
  cli.make_console().print(text, table)
  assert cli._fail(ValueError(text), 2) == 2
  out, err = capsys.readouterr()
  assert "\\x1b]0;title\\x07\\x9b31m" in out and "\\x1b]0;title" in err
  assert not CONTROLS.search(out + err)


@pytest.mark.exhaustive
def test_events_hold_the_rows_and_the_norms_of_evaluations(config):
  directory = Path(config.job.run)
  shown, rows = shown_events(directory), read_rows(directory)
  for name, tag in TAGS.items():
    expected = [(r["step"], stored(r[name])) for r in rows if name in r]
    assert shown.get(tag, []) == expected
  assert len(shown["lr"]) == len(shown["loss/train"])
  assert len(shown["loss/train"]) >= len(shown["loss/val"]) > 3
  # The weights that the run has saved are those of one of its evaluations.
  trained = load(directory)
  at = evaluated(directory).index(trained.step)
  squares = sum(np.square(leaf).sum() for leaf in trained.params.layers[1])
  for part in part_norms(trained.params):
    assert {f"weight_norm/{part}", f"grad_norm/{part}"} <= set(shown)
  norms = [norm for _, norm in shown["weight_norm/layer2"]]
  assert norms[at] == pytest.approx(float(squares) ** 0.5, rel=1e-6)


def test_each_entry_of_a_row_is_shown(tmp_path):
  writer = TensorBoard(tmp_path / "tensorboard", lstm, np.zeros(2, int), 0)
  values = {name: float(n) for n, name in enumerate(TAGS)}
  writer.row({"step": 3} | values, {"layer1": np.float32(12)})
  expected = {TAGS[name]: [(3, value)] for name, value in values.items()}
  expected["grad_norm/layer1"] = [(3, 12.0)]
  assert shown_events(tmp_path) == expected
  assert {"loss/train", "loss/val", "loss/test", "lr"} <= set(expected)


def test_a_cell_whose_state_has_a_matrix_has_no_gates(tmp_path, key):
  config = ModelConfig(matrix_cell, embedding_size=3, hidden_size=4)
  params = language_model(config, 7, adjoint=Autodiff()).init(key)
  directory = tmp_path / "tensorboard"
  TensorBoard(directory, matrix_cell, np.arange(7), 0).evaluation(30, params)
  tags = {tag.partition("/")[0] for tag in shown_events(tmp_path)}
  assert tags == {"weight_norm"}


EARLY = [(1, 9.0), (2, 8.0), (50, 2.0), (100, 1.0)]


@pytest.mark.parametrize(
  ("points", "important", "low", "high"),
  [
    (EARLY, [], 1.0, 2.0),
    (EARLY, [8.0], 1.0, 8.0),
    ([(1, 9.0), (50, math.nan), (100, 1.0)], [], 1.0, 1.0),
    ([(1, 9e20)], [], 9e20, 9e20),
    ([(1, math.nan)], [], 0.5, 0.5),  # the limits stay 0 and 1
  ],
)
def test_a_loss_is_shown_without_its_beginning(points, important, low, high):
  panel = Figure().subplots()
  zoom_on_tail(panel, points, important)
  # For equal losses, the margin is a thousandth of the loss, and at least 0.1.
  margin = 0.05 * (high - low) or (0.1 if high < 10 else 9e17)
  margin = 0.5 if low == 0.5 else margin
  assert panel.get_ylim() == pytest.approx((low - margin, high + margin))


def test_an_unknown_word_that_comes_again_costs_less_than_the_first():
  """As in a pass over the whole text, which is what the loss is of."""
  tokenizer = WordTokenizer.from_text("a b a b c\n", 2)
  text = "a thee b thee a thee"  # 6 tokens and 20 characters
  spelling = tokenizer.spelling_nats(text, cached=True).sum()
  assert spelling < tokenizer.spelling_nats(text).sum() - 1
  # The loss is of all tokens but the first, which is the one character "a".
  each = (5 * 2.0 + spelling) / 19
  shown = format_losses(2.0, tokenizer, text)
  assert shown.startswith("2.0000 nats per word, perplexity 7.4, ")
  *_, nats, bits = map(float, re.findall(r"\d+\.\d+", shown))
  assert (nats, bits) == (round(each, 4), round(each / math.log(2), 4))


def test_a_loss_of_characters_keeps_its_first_digits():
  for nats, shown in (
    (math.log(2), "0.6931 nats per character (1.0000 bits)"),
    (1.1575e-5, "1.16e-05 nats per character (1.67e-05 bits)"),
    (9.9e-4, "0.00099 nats per character (0.0014 bits)"),
    (12345.6, "1.23e+04 nats per character (1.78e+04 bits)"),
  ):
    assert format_losses(nats, CharTokenizer("ab"), "abba") == shown


def test_no_title_is_cut_off_and_a_sample_is_printed_as_it_is():
  console = Console(file=io.StringIO(), width=20)
  for title in ("x" * 16, "x" * 17, "x" * 70):
    print_title(title, console)
  shown = f"─ {'x' * 16} ─\n{'x' * 17}\n{'x' * 70}\n"
  text = "\tif x:\x0c\n\x00\x07\x08\x0b\x1b[31m\u2028 " + "long " * 40
  print_sample(text, console)
  assert console.file.getvalue() == f"{shown}{text}\n"
