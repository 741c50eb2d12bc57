"""The board: its numbers are those of the records, and the page shows it."""

import json
import statistics
from types import SimpleNamespace

import jax
import pytest
from PIL import Image  # which matplotlib requires

from experiments import board, evaluate
from experiments.board import CORPUS
from experiments.comparison.board import (
  CHARTS,
  ENSEMBLE,
  KEYWORD,
  Board,
  Point,
  Result,
  Row,
  Source,
  Training,
  draw,
  draw_chart,
  points,
  read_board,
  table,
)
from experiments.comparison.reproduction import ReproduceConfig, parse, plan
from experiments.trainer.setup import make_model
from tests.experiments.test_recipes import RECIPES
from tests.experiments.trainer.resuming import read_rows
from tests.processes import ROOT

PAGE = ROOT / "docs" / "results" / "tinyshakespeare.md"
SHOWN = read_board().of_corpus(CORPUS)
OURS = [row for row in read_board().rows if row.recipe]
# Sizes of vocabularies, by the name of a row or else by that of its corpus.
VOCABULARY = {"tinyshakespeare": 65, "poems": 64, "tinyshakespeare-words": 7128}
ROUNDING = 6e-5  # losses on the board are rounded to four decimals


def points_of(path):
  """Return the points that a chart shows, from its file."""
  with Image.open(path) as image:
    return [Point(*point) for point in json.loads(image.info[KEYWORD])]


def test_the_page_holds_the_table_and_links_the_charts():
  page = PAGE.read_text("utf-8")
  assert f"\n\n{table(SHOWN)}\n\n" in page
  assert all(f"]({chart.file})" in page for chart in CHARTS)


def test_the_program_prints_the_table_and_draws_the_charts(
  tmp_path, capsys, monkeypatch
):
  flag, drawn = SimpleNamespace(value=str(tmp_path)), []
  # DIRECTORY is the flag --out, defined only where the program is started.
  monkeypatch.setattr(board, "DIRECTORY", flag, raising=False)
  monkeypatch.setattr(board, "draw", lambda *given: drawn.append(given))
  board.main()
  assert capsys.readouterr().out == f"{table(SHOWN)}\n"
  assert drawn == [(SHOWN, tmp_path)]
  flag.value = str(tmp_path / "nowhere")
  with pytest.raises(ValueError, match="cannot be written: no such dir"):
    board.main()
  assert capsys.readouterr().out == "" and len(drawn) == 1


@pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: chart.file)
def test_the_charts_show_the_rows_of_the_board(chart):
  """If not, `python -m experiments.board --out=docs/results` draws them."""
  assert points_of(PAGE.parent / chart.file) == points(SHOWN, chart)


@pytest.mark.parametrize("row", OURS, ids=lambda row: row.name)
def test_a_row_of_ours_has_the_losses_of_its_records(row):
  assert (RECIPES / f"{row.recipe}.flags").is_file()
  for result in row.results:
    if result.is_ensemble:
      record = json.loads((ROOT / row.records[0] / "ensemble.json").read_text())
      assert len(record["runs"]) == len(result.seeds)
      loss = record["nats_per_character"][result.evaluated_by]
      assert abs(loss - result.mean) < ROUNDING
      continue
    assert len(result.values) == len(result.seeds)
    assert abs(statistics.mean(result.values) - result.mean) < 1e-4
    if result.std is not None:
      assert abs(statistics.stdev(result.values) - result.std) < 1e-4
    else:
      assert len(result.seeds) == 1
  assert row.records
  for record in row.records:
    directory = ROOT / record
    config = json.loads((directory / "config.json").read_text("utf-8"))
    if row.name == "poems":  # its result is the best val_loss, not evaluated
      logged = read_rows(directory)
      best = min(r["val_loss"] for r in logged if "val_loss" in r)
      (result,) = row.results
      published = result.values[result.seeds.index(config["seed"])]
      assert abs(best - published) < ROUNDING
      continue
    text = (directory / "evaluation.json").read_text("utf-8")
    evaluation, job = json.loads(text), plan(row, ReproduceConfig())[0]
    options = parse(evaluate.EvaluateConfig(), job.evaluate_flags)
    for name in ("checkpoint", "window"):  # as `reproduce` evaluates the row
      assert evaluation[name] == getattr(options, name), name
    losses = evaluation["nats_per_character"]
    single = [r for r in row.results if r.protocol in evaluate.PROTOCOLS]
    assert losses.keys() == {result.protocol for result in single}
    for result in single:
      published = result.values[result.seeds.index(config["seed"])]
      assert abs(losses[result.protocol] - published) < ROUNDING


@pytest.mark.parametrize("row", OURS, ids=lambda row: row.name)
def test_a_row_of_ours_has_the_parameters_of_its_recipe(row):
  job = plan(row, ReproduceConfig())[0]  # with the row's own flags
  config = job.config
  size = VOCABULARY.get(row.name) or VOCABULARY.get(row.corpus)
  assert size, f"VOCABULARY lacks {row.name} and its corpus {row.corpus}"
  model = make_model(config, size, None)
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  assert sum(x.size for x in jax.tree.leaves(shapes)) == row.parameters


def test_every_row_has_a_name_of_its_own_known_protocols_and_a_source():
  rows, protocols = read_board().rows, read_board().protocols
  assert {p.removeprefix(ENSEMBLE) for p in protocols} == {*evaluate.PROTOCOLS}
  assert len({row.name for row in rows}) == len(rows) > len(OURS)
  for row in rows:
    assert row.results
    assert {result.protocol for result in row.results} <= protocols.keys()
    if not row.is_ours:
      assert row.source.url.startswith("https://") and row.source.title
      assert not (row.records or row.commits)


LSTM = Row(
  name="small",
  corpus="verse",
  model="LSTM",
  results=[
    Result("cold", 1.5, std=0.25, seeds=[0, 1], values=[1.25, 1.75]),
    Result("late", 1.25),
  ],
  settings="by hand",
  parameters=1_500_000,
  training=Training(minutes=[2, 4.5], machine="a core"),
  recipe="verse",
  date="2026-01-01",
  commits=["abc"],
  records=["runs/a"],
)
GPT = Row(
  "GPT",
  "verse",
  "Transformer",
  [Result("cold", 1.75, note="of 8")],
  "not said",
  source=Source("a page", "https://x.y"),
)
OTHER = GPT._replace(corpus="prose")
PROTOCOLS = {"cold": "windows", "none": "not used", "late": "later"}


def test_a_protocol_is_a_column_once_a_row_has_a_result_by_it():
  late_first = LSTM._replace(results=LSTM.results[::-1])
  board = Board(PROTOCOLS, [GPT, OTHER, late_first]).of_corpus("verse")
  header, _, *rows = (line.split(" | ") for line in table(board).splitlines())
  assert header[3:6] == ["windows", "later", "seeds"]
  recipe = "[recipe](../../experiments/recipes/verse.flags)"
  assert [cell.strip("| ") for cell in rows[0]] == [
    "1",
    "**small**: LSTM",
    "1.5 M",
    "**1.5000 ± 0.2500**",
    "**1.25**",
    "2",
    "2 to 4.5 min, a core",
    "by hand",
    f"`experiments.reproduce small` ({recipe})",
    "[abc](../../runs/a) (2026-01-01)",
  ]
  assert rows[1][1:6] == ["Transformer", "–", "1.75 (of 8)", "–", "–"]
  assert rows[1][8] == "GPT ([a page](https://x.y))"
  assert len(rows) == 2


def test_rows_are_in_the_order_of_their_first_protocol_then_of_their_loss():
  late = LSTM._replace(name="late", results=[Result("late", 1.0)])
  rows = Board(PROTOCOLS, [late, GPT, LSTM]).of_corpus("verse").rows
  assert rows == [LSTM, GPT, late]


def test_a_chart_has_a_point_with_a_bar_for_each_result(tmp_path):
  board = Board(PROTOCOLS, [LSTM, GPT._replace(parameters=10)])
  draw(board, tmp_path)
  parameters, time = (points_of(tmp_path / chart.file) for chart in CHARTS)
  # (row, protocol, x, loss, deviation, whether ours); 3.25 = (2 + 4.5) / 2.
  assert time == [
    (1, "cold", 3.25, 1.5, 0.25, True),
    (1, "late", 3.25, 1.25, 0.0, True),
  ]
  assert parameters[2] == (2, "cold", 1e-5, 1.75, 0.0, False)
  (panel,), found = draw_chart(board, CHARTS[0]).axes, {}
  for series in panel.containers:
    marks, _, (bars,) = series.lines
    ends = [segment[:, 1].tolist() for segment in bars.get_segments()]
    found[series.get_label()] = marks.get_xydata().tolist(), ends
  assert found == {
    "ours, windows": ([[1.5, 1.5]], [[1.25, 1.75]]),
    "others’, windows": ([[1e-5, 1.75]], [[1.75, 1.75]]),
    "ours, later": ([[1.5, 1.25]], [[1.25, 1.25]]),
  }


def test_a_row_has_a_label_at_its_first_result_and_near_ones_share_it():
  def other(millions, loss):
    results = [Result("cold", loss), Result("late", 3.0)]
    return LSTM._replace(parameters=int(millions * 1e6), results=results)

  # In order: the first, near it, above it, and to the right of it.
  near = [other(3.25, 1.5), other(3.3, 1.51), other(3.3, 1.6), other(5.0, 1.51)]
  (panel,) = draw_chart(Board(PROTOCOLS, near), CHARTS[0]).axes
  assert [(*text.xy, text.get_text()) for text in panel.texts] == [
    (3.25, 1.5, "1, 2"),
    (3.3, 1.6, "3"),
    (5.0, 1.51, "4"),
  ]


def test_an_ensemble_costs_what_its_members_cost():
  ensemble = Result("ensemble_stateful", 1.25, seeds=(0, 1, 2))
  row = LSTM._replace(parameters=1_000_000, results=[*LSTM.results, ensemble])
  found = points(Board(PROTOCOLS, [row]), CHARTS[0])
  assert [p.x for p in found if p.protocol == "ensemble_stateful"] == [3.0]
  assert {p.x for p in found if p.protocol != "ensemble_stateful"} == {1.0}
  shared = row._replace(training=Training([2, 4], "a core", shared=1.0))
  found = points(Board(PROTOCOLS, [shared]), CHARTS[1])
  # 1 minute for all seeds, and (2 + 4) / 2 − 1 = 2 more for each of the three.
  assert [p.x for p in found if p.protocol == "ensemble_stateful"] == [7.0]
  unknown = row._replace(results=[ensemble._replace(seeds=())])
  assert points(Board(PROTOCOLS, [unknown]), CHARTS[0]) == []


def test_a_mistake_in_the_file_is_an_error_that_names_the_field(tmp_path):
  path, result = tmp_path / "board.json", {"protocol": "cold", "mean": 1.0}
  row = {"name": "a", "corpus": "b", "modle": "LSTM", "results": [result]}
  path.write_text(json.dumps({"protocols": {"cold": "c"}, "rows": [row]}))
  with pytest.raises(TypeError, match="'modle'"):
    read_board(path)
