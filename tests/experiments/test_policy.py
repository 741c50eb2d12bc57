"""The program that trains policies: its record, tables and figure."""

import json

import jax
import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments import policy
from experiments.policies.ppo import PPOConfig
from experiments.policies.training import LAST, PolicyConfig, draw, tables
from experiments.trainer.loop import Diverged
from experiments.trainer.records import replace, to_record
from tests.patterns import exact
from tests.processes import ROOT, as_flags, run_program

RESULTS = ROOT / "experiments/results/policy"
# For each kept run: the networks of which all seeds solve the task at the end.
SOLVED = {
  "tmaze-10": {"gru", "lstm", "min_gru"},
  "tmaze-100": {"min_gru"},
  "tmaze-100-3e-3": {"gru"},
  "repeat-4": {"gru", "lstm"},
}
SMALL = PolicyConfig(
  task="repeat_previous",
  size=1,
  network=("gru", "feed_forward"),
  hidden_size=5,
  num_seeds=2,
  ppo=PPOConfig(
    num_envs=4,
    rollout_steps=8,
    num_updates=6,
    num_epochs=1,
    num_minibatches=2,
  ),
)


def example(num_updates=3):
  """Return a record with values that are easy to recognise."""

  def trained(*returns):
    rest = {"num_parameters": 1904, "compile_s": 1.0, "seconds": 20.4}
    return rest | {"returns": [[None, None], *returns]}

  def timed(peer, median):
    return {
      "peer": peer,
      "median_ms": median,
      "quartiles_ms": [0.31, median + 2],
      "ratio_to_ours": median / 100,
      "compile_s": 3.25,
      "bytes": 1,
    }

  sizes = {"num_seeds": 2, "num_envs": 8, "rollout_steps": 16}
  sizes |= {"hidden_size": 32, "timing_rounds": 11, "num_updates": num_updates}
  return {
    "config": sizes,
    "task": "T-maze, a corridor of length 10",
    "guessing": -0.5,
    "steps_per_update": 128,
    "networks": {
      "gru": trained([-0.5, 0.0], [1.0, 0.9]),
      "feed_forward": trained([0.0, None], [0.1, None]),
    },
    "race": {
      "gru": [timed(*x) for x in [("unroll", 4), ("scanned", 5), ("flax", 125)]]
    },
  }


def test_the_tables_have_the_returns_of_the_last_updates_and_the_times():
  (returns, rows), (times, timed) = tables(example()).items()
  assert returns == (
    "T-maze, a corridor of length 10: mean return over the last 1 of 3 "
    "updates, by seed"
  )
  assert rows.splitlines() == [
    "| network | parameters | return | mean | training of all seeds, s (384 "
    "steps each) |",
    "| --- | --: | --: | --: | --: |",
    "| gru | 1,904 | 1.00, 0.90 | 0.95 | 20 |",
    "| feed_forward | 1,904 | 0.10, – | – | 20 |",
  ]
  assert times == (
    "Time of an update of 2 seeds, B 8, T 16, H 32: 11 interleaved rounds"
  )
  assert timed.splitlines() == [
    "| network | median, ms | quartiles | ratio | compiling, s |",
    "| --- | --: | --: | --: | --: |",
    "| gru: unroll, pure functions | 4 | 0.31 – 6 | 0.04 | 3.2 |",
    "| gru: Flax, `scanned` | 5 | 0.31 – 7 | 0.05 | 3.2 |",
    "| gru: Flax, ScannedRNN by hand | 125 | 0.31 – 127 | 1.25 | 3.2 |",
  ]


def test_the_mean_return_is_that_of_all_episodes_of_the_last_updates():
  record = example(num_updates=20)  # the last 10 % are two
  run = record["networks"]["gru"]
  run["returns"] = [[9.0, 9.0], [1.0, None], [-1.0, 0.5]]
  run["episodes"] = [[5, 5], [1, 0], [3, 2]]
  title, table = next(iter(tables(record).items()))
  assert title.endswith("mean return over the last 2 of 20 updates, by seed")
  assert table.splitlines()[2] == "| gru | 1,904 | -0.50, 0.50 | 0.00 | 20 |"


@pytest.fixture
def drawn(tmp_path, monkeypatch):
  """Return a function: returns [U, 2] -> the panel of the figure."""
  found, save = [], Figure.savefig

  def kept(figure, *args, **kwargs):
    found.append(figure.axes[0])
    save(figure, *args, **kwargs)

  monkeypatch.setattr(Figure, "savefig", kept)

  def run(returns):
    networks = {"gru": {"returns": returns}}
    draw(example() | {"networks": networks}, tmp_path / "policy.png")
    assert (tmp_path / "policy.png").read_bytes()[:4] == b"\x89PNG"
    return found.pop()

  return run


def test_a_line_is_the_mean_of_the_seeds_and_its_shade_their_range(drawn):
  panel = drawn([[0.0, 0.5], [None, 0.5], [0.25, 1.0]])
  line, guessing = panel.lines  # without the update in which a seed ended none
  assert line.get_xydata().tolist() == [[128, 0.25], [384, 0.625]]
  assert [*guessing.get_ydata()] == [-0.5, -0.5]
  (shade,) = panel.collections
  assert {*map(tuple, shade.get_paths()[0].vertices)} == {
    (128, 0),
    (128, 0.5),
    (384, 0.25),
    (384, 1),
  }
  labels = [(text.get_text(), text.xy[1]) for text in panel.texts]
  assert labels == [("best without memory", -0.5), ("gru", 0.625)]


@pytest.mark.parametrize(
  ("returns", "lowest", "num_lines"),
  [
    ([[0.0, 0.0], [-2.5, 1.0]], -2.5, 2),  # shows where the curves end
    ([[-2.5, 0.0], [1.0, 1.0]], -1.05, 2),  # the beginning is cut off
    ([[None, 0.5]], -1.05, 1),
  ],
)
def test_the_axis_of_returns_fits_the_ends(returns, lowest, num_lines, drawn):
  panel = drawn(returns)
  assert panel.get_ylim() == (lowest, 1.05) and len(panel.lines) == num_lines


def test_a_saved_run_is_loaded_and_reported(tmp_path, console):
  with pytest.raises(ValueError, match=f"are no policies in {exact(tmp_path)}"):
    policy.load(tmp_path)
  record, figure = example(), tmp_path / policy.FIGURE
  figure.write_text("of results that are replaced")
  policy.save(record, tmp_path)
  assert not figure.exists() and policy.load(tmp_path) == record
  policy.report(record, tmp_path, console)
  printed = console.file.getvalue()
  lines = "\n".join(tables(record).values()).splitlines()
  assert all(line in printed for line in lines) and figure.exists()
  record["networks"]["gru"]["returns"][-1].pop()  # the value of a seed
  policy.save(record, tmp_path)
  with pytest.raises(ValueError, match="is damaged"):
    policy.load(tmp_path)


@pytest.mark.parametrize("name", SOLVED)
def test_a_kept_run_is_solved_only_by_networks_with_memory(name):
  record = policy.load(RESULTS / name)
  assert set(record["config"]) == set(to_record(PolicyConfig()))
  count = max(1, round(LAST * record["config"]["num_updates"]))
  last = {
    name: np.mean(run["returns"][-count:], axis=0)  # of each seed
    for name, run in record["networks"].items()
  }
  solved = {name for name, values in last.items() if min(values) > 0.99}
  assert solved == SOLVED[name]
  assert abs(np.mean(last["feed_forward"]) - record["guessing"]) < 0.05


def test_the_kept_times_can_be_read():
  times = [*tables(policy.load(RESULTS / "race")).values()][1]
  assert times.count("Flax, ScannedRNN by hand") == 2  # of gru and lstm


def test_what_is_trained_is_kept_if_the_rest_is_interrupted(
  tmp_path, console, monkeypatch
):
  given = []

  def train(name, environment, config, keys, on_update):
    given.append([str(jax.random.key_data(key)) for key in keys])
    if name == "lstm":
      raise KeyboardInterrupt
    for number in range(1, 13):
      on_update(number, np.array([0.25, np.nan if number > 2 else 0.75]))
    return example()["networks"]["gru"]

  monkeypatch.setattr(policy, "train", train)
  for seed in (0, 1):
    config = replace(SMALL, seed=seed, network=("gru", "lstm"), num_updates=12)
    with pytest.raises(KeyboardInterrupt):
      policy.run(config, tmp_path, console)
  assert list(policy.load(tmp_path)["networks"]) == ["gru"]
  first, second, third, _ = given
  # Both networks have the same two keys; a run with another --seed has others.
  assert first == second and len({*first, *third}) == 4
  lines = console.file.getvalue().splitlines()
  shown = [f"gru  {number}/12  return 0.250" for number in range(4, 13, 2)]
  assert lines == 2 * ["gru  2/12  return 0.500", *shown]


@pytest.mark.parametrize("name", ["grru", "experiments"])
def test_a_network_that_is_no_cell_is_refused(name):
  with pytest.raises(ValueError, match=f"cell must be .*got '{name}'"):
    replace(SMALL, network=("gru", name))


def check_trained(record, config):
  assert record["config"] == to_record(config)
  assert record["steps_per_update"] == 4 * 8 and record["guessing"] == -0.5
  assert record["task"] == "Repeat the symbol shown before, delay 1"
  assert list(record["networks"]) == list(config.network)
  for run in record["networks"].values():
    # An episode has 33 steps (1 + ANSWERS), an update 8: the first episode of
    # each of the four environments ends in update 5.
    nothing = [None, None]
    *before, ended, after = run["returns"]
    assert before == 4 * [nothing] and after == nothing
    assert run["episodes"] == [*[[0, 0]] * 4, [4, 4], [0, 0]]
    assert all(-1 <= x <= 1 for x in ended) and ended[0] != ended[1]
    assert all(x == round(x, 4) for x in ended)
  # Encoder 4 · 5 + 5; actor 5 · 4 + 4; critic 5 + 1; core 5 · 5 + 5.
  feed_forward = record["networks"]["feed_forward"]
  assert feed_forward["num_parameters"] == 25 + 24 + 6 + 30


def test_a_run_fills_its_directory(tmp_path, console):
  record = policy.run(SMALL, tmp_path, console)
  saved = policy.load(tmp_path)
  assert saved == json.loads(json.dumps(record)) and saved["race"] == {}
  assert saved["environment"]["versions"]["jax"] == jax.__version__
  check_trained(saved, SMALL)
  assert "gru  1/6  no episode ended\n" in console.file.getvalue()
  assert {path.name for path in tmp_path.iterdir()} == {*policy.FILES}


@pytest.mark.exhaustive
def test_updates_are_timed_beside_those_of_flax(tmp_path, console):
  networks = "gru", "lstm", "feed_forward"
  config = replace(SMALL, timing_rounds=2, network=networks)
  with jax.numpy_rank_promotion("allow"):  # for the biases of Flax
    race = policy.run(config, tmp_path, console)["race"]
  assert list(race) == ["gru", "lstm"]
  for rows in race.values():
    assert [row["peer"] for row in rows] == ["unroll", "scanned", "flax"]
    assert all(row["median_ms"] > 0 for row in rows)


@pytest.mark.exhaustive
@pytest.mark.programs
def test_two_devices_that_share_the_seeds_compute_what_one_does(tmp_path):
  networks, default = {}, to_record(PolicyConfig())
  config = replace(SMALL, network=("gru", "min_gru", "feed_forward"))
  for count in ("1", "2"):
    given = replace(config, devices=count)
    flags = as_flags(to_record(given), default)
    run_program("experiments.policy", *flags, f"--out={tmp_path / count}")
    record = policy.load(tmp_path / count)
    check_trained(record, given)
    trained = record["networks"].items()
    networks[count] = {name: run["returns"] for name, run in trained}
  assert networks["1"] == networks["2"]


def test_a_loss_that_is_not_finite_ends_the_training(tmp_path, console):
  config = replace(SMALL, learning_rate=3e38, network=("feed_forward",))
  with pytest.raises(Diverged, match="feed_forward: the loss is not finite"):
    policy.run(config, tmp_path, console)
