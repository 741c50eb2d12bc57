import json

import jax
import numpy as np
import pytest

from experiments import policy
from experiments.policies.config import PolicyConfig, PPOConfig
from experiments.policies.tables import LAST, tables
from experiments.policies.training import mean
from experiments.trainer.errors import Diverged
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
KEPT = [RESULTS / name for name in SOLVED]
SMALL = PolicyConfig(
  task="repeat_previous",
  size=1,
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


def example():
  """Return a record with values that are easy to recognise."""

  def trained(*returns):
    return {
      "num_parameters": 1904,
      "compile_s": 1.0,
      "seconds": 20.4,
      "returns": [[None, None], *returns],
    }

  def timed(peer, median):
    return {
      "peer": peer,
      "median_ms": median,
      "quartiles_ms": [median - 1, median + 2],
      "ratio_to_ours": median / 100,
      "compile_s": 3.25,
      "bytes": 1,
    }

  sizes = {"num_seeds": 2, "num_envs": 8, "rollout_steps": 16}
  config = sizes | {"num_updates": 3, "hidden_size": 32, "timing_rounds": 11}
  return {
    "config": config,
    "task": "T-maze, a corridor of 10 steps",
    "guessing": 0.0,
    "steps_per_update": 128,
    "networks": {
      "gru": trained([-0.5, 0.0], [1.0, 0.9]),
      "feed_forward": trained([-0.5, 0.0], [0.1, -0.1]),
    },
    "race": {"gru": [timed("unroll", 100.0), timed("flax", 125.0)]},
  }


def test_the_tables_are_markdown_with_the_returns_and_times():
  returns, times = tables(example()).values()
  lines = returns.splitlines()
  assert lines[0].endswith("| training of all seeds, s (384 steps each) |")
  assert lines[2] == "| gru | 1,904 | 1.00, 0.90 | 0.95 | 20 |"
  assert lines[3] == "| feed_forward | 1,904 | 0.10, -0.10 | 0.00 | 20 |"
  assert "| gru: Flax, ScannedRNN by hand | 125 | 124 – 127 | 1.25 | 3.2 |" in (
    times.splitlines()
  )


def test_the_mean_return_is_that_of_all_episodes_of_the_last_updates():
  record = example()
  record["config"]["num_updates"] = 20  # the last 10 % are two
  run = record["networks"]["gru"]
  run["returns"] = [[9.0, 9.0], [1.0, None], [-1.0, 0.5]]
  run["episodes"] = [[5, 5], [1, 0], [3, 2]]
  (title, table), _ = tables(record).items()
  assert title.endswith("mean return over the last 2 of 20 updates, by seed")
  assert table.splitlines()[2] == "| gru | 1,904 | -0.50, 0.50 | 0.00 | 20 |"


def test_a_seed_without_a_finished_episode_is_a_dash_beside_the_others(
  console, monkeypatch
):
  record = example()
  record["networks"]["gru"]["returns"] = [[0.5, None]]
  record["networks"]["feed_forward"]["returns"] = [[0.25, None], [0.75, 0.5]]
  monkeypatch.setattr("experiments.policies.tables.LAST", 1.0)  # all updates
  returns, _ = tables(record).values()
  assert returns.splitlines()[2] == "| gru | 1,904 | 0.50, – | – | 20 |"
  assert "| 0.50, 0.50 | 0.50 |" in returns.splitlines()[3]
  assert mean([0.25, None, 0.75]) == 0.5 and mean([None, None]) is None
  for value in (None, mean([0.25, None])):
    policy.progress(console, "gru", 1, 1, value)
  assert console.file.getvalue() == (
    "gru  1/1  no episode ended\ngru  1/1  return 0.250\n"
  )


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"network": ("gru", "lstm", "gru")}, "distinct, got gru, lstm, gru$"),
    (
      {"network": ("min_gru", "feed_forward"), "timing_rounds": 3},
      "--timing_rounds needs --network=gru or lstm, got min_gru, feed_forward$",
    ),
    (
      {"network": ("gru", "grru")},
      "network must be feed_forward, .*got 'grru'",
    ),
  ],
)
def test_networks_that_cannot_be_made_compared_or_timed_are_refused(
  changes, message
):
  with pytest.raises(ValueError, match=message):
    replace(SMALL, **changes)


def test_a_saved_run_is_loaded_and_reported(tmp_path, console):
  record, figure = example(), tmp_path / "policy.png"
  policy.save(record, tmp_path)
  loaded = policy.load(tmp_path)
  assert loaded == record
  policy.report(loaded, tmp_path, console)
  printed = console.file.getvalue()
  lines = "\n".join(tables(record).values()).splitlines()
  assert all(line in printed for line in lines)
  assert figure.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("entry", ["returns", "episodes"])
def test_a_run_of_which_a_seed_was_lost_is_damaged(entry, tmp_path):
  record = example()
  run = record["networks"]["gru"]
  run["episodes"] = [[1, 1] for _ in run["returns"]]
  run[entry][-1].pop()
  policy.save(record, tmp_path)
  with pytest.raises(
    ValueError, match=f"is damaged: .*{entry} must have 2 values, got 1$"
  ):
    policy.load(tmp_path)


@pytest.mark.parametrize("count", [0, 1.5, None])
def test_a_record_with_a_return_of_no_episode_is_damaged(count, tmp_path):
  record = example()
  run = record["networks"]["gru"]
  run["episodes"] = [[1, count] for _ in run["returns"]]
  policy.save(record, tmp_path)
  message = f"damaged: episodes .* must be an integer ≥ 1, got {count}$"
  with pytest.raises(ValueError, match=message):
    policy.load(tmp_path)


@pytest.mark.parametrize(
  ("wrong", "message"),
  [
    ({"guessing": None}, "guessing must be finite numbers, got None"),
    (
      {"networks": {"gru": {"returns": []}}},
      "returns must have 3 values, got 0",
    ),
    (
      {"networks": {"gru": {"returns": [[0, "x"], [0, 1], [0, 1]]}}},
      "returns must be finite numbers, got 'x'",
    ),
  ],
)
def test_a_record_that_the_figure_cannot_draw_is_damaged(
  wrong, message, tmp_path
):
  policy.save(example() | wrong, tmp_path)
  with pytest.raises(ValueError, match=f"is damaged: {message}$"):
    policy.load(tmp_path)


def test_no_figure_of_other_results_stays_beside_a_record(tmp_path):
  (tmp_path / policy.FIGURE).write_text("of results that are replaced")
  policy.save({}, tmp_path)
  assert [path.name for path in tmp_path.iterdir()] == [policy.RECORD]


def test_a_directory_without_a_run_is_an_error_that_names_it(tmp_path):
  with pytest.raises(ValueError, match=f"are no policies in {exact(tmp_path)}"):
    policy.load(tmp_path)


@pytest.mark.parametrize("directory", KEPT, ids=lambda path: path.name)
def test_a_kept_run_is_solved_only_by_networks_with_memory(directory):
  record = policy.load(directory)
  assert set(record["config"]) == set(to_record(PolicyConfig()))
  count = max(1, round(LAST * record["config"]["num_updates"]))
  last = {
    name: np.mean(run["returns"][-count:], axis=0)  # of each seed
    for name, run in record["networks"].items()
  }
  solved = {name for name, values in last.items() if min(values) > 0.99}
  assert solved == SOLVED[directory.name]
  assert abs(np.mean(last["feed_forward"]) - record["guessing"]) < 0.05


def test_what_is_trained_is_kept_if_the_rest_is_interrupted(
  tmp_path, console, monkeypatch
):
  given = []

  def train(name, environment, config, keys, on_update):
    given.append([str(jax.random.key_data(key)) for key in keys])
    if name == "lstm":
      raise KeyboardInterrupt
    for number in range(1, 13):
      on_update(number, 0.25)
    return example()["networks"]["gru"]

  monkeypatch.setattr(policy, "train", train)
  for seed in (0, 1):
    config = replace(SMALL, seed=seed, network=("gru", "lstm"), num_updates=12)
    with pytest.raises(KeyboardInterrupt):
      policy.run(config, tmp_path, console)
  record = json.loads((tmp_path / policy.RECORD).read_text())
  assert list(record["networks"]) == ["gru"]
  assert record["steps_per_update"] == 4 * 8 and record["guessing"] == -0.5
  first, second, third, _ = given
  # Both networks have the same two keys; a run with another --seed has others.
  assert first == second and len({*first, *third}) == 4
  lines = console.file.getvalue().splitlines()
  shown = [f"gru  {number}/12  return 0.250" for number in range(2, 13, 2)]
  assert lines == 2 * shown


@pytest.mark.exhaustive
@pytest.mark.programs
def test_two_devices_that_share_the_seeds_compute_what_one_does(tmp_path):
  networks, default = {}, to_record(PolicyConfig())
  config = replace(SMALL, network=("gru", "min_gru", "feed_forward"))
  for count in ("1", "2"):
    flags = as_flags(to_record(replace(config, devices=count)), default)
    run_program("experiments.policy", *flags, f"--out={tmp_path / count}")
    record = policy.load(tmp_path / count)
    assert record["config"]["devices"] == count
    trained = record["networks"].items()
    networks[count] = {name: run["returns"] for name, run in trained}
  assert networks["1"] == networks["2"]
  first, second = networks["1"]["gru"][4]  # when both seeds' first episodes end
  assert first != second and None not in (first, second)


@pytest.mark.exhaustive
def test_a_run_fills_its_directory(tmp_path, console):
  config = replace(SMALL, timing_rounds=2)
  with jax.numpy_rank_promotion("allow"):  # for the biases of Flax
    record = policy.run(config, tmp_path, console)
  saved = policy.load(tmp_path)
  assert saved == json.loads(json.dumps(record))
  assert saved["config"] == to_record(config)
  assert saved["environment"]["versions"]["jax"] == jax.__version__
  assert list(saved["networks"]) == list(config.network)
  for run in saved["networks"].values():
    returns = run["returns"]
    assert len(returns) == 6 and all(len(row) == 2 for row in returns)
    # An episode has 33 steps (1 + ANSWERS), an update 8: the first episode of
    # each of the four environments ends in update 5.
    assert [row[0] is None for row in returns] == [*[True] * 4, False, True]
    assert run["episodes"] == [*[[0, 0]] * 4, [4, 4], [0, 0]]
    assert -1 <= returns[4][0] <= 1 and returns[4][0] != returns[4][1]
  assert list(saved["race"]) == ["gru", "lstm"]
  for rows in saved["race"].values():
    assert [row["peer"] for row in rows] == ["unroll", "scanned", "flax"]
    assert all(row["median_ms"] > 0 for row in rows)
  names = {path.name for path in tmp_path.iterdir()}
  assert names == {"policy.json", "policy.png"}


@pytest.mark.exhaustive
def test_a_loss_that_is_not_finite_ends_the_training(tmp_path, console):
  config = replace(SMALL, learning_rate=3e38, network=("feed_forward",))
  with pytest.raises(Diverged, match="feed_forward: the loss is not finite"):
    policy.run(config, tmp_path, console)
