import jax
import jax.numpy as jnp
import pytest

from experiments import benchmark, peers

SIZES = {"hidden": 5, "steps": 4, "batch": 3, "layers": 2, "vocabulary": 7}


@pytest.fixture(autouse=True)
def standard_ranks():
  """The other libraries add a bias [K] to an array [..., K]."""
  with jax.numpy_rank_promotion("allow"):
    yield


def test_every_installed_peer_computes_the_same_and_is_timed():
  rows = benchmark.run(SIZES, rounds=2)
  names = [row["peer"] for row in rows]
  assert names[:3] == ["lstm_jax", "autodiff", "flax linen"]
  assert set(names) == set(peers.installed())
  assert rows[0]["ratio_to_ours"] == 1
  for row in rows:
    low, high = row["quartiles_ms"]
    assert 0 < low <= row["median_ms"] <= high
    assert row["first_call_s"] > 0
  assert benchmark.table("title", rows).row_count == len(rows)


def test_a_peer_that_computes_something_else_is_not_timed(monkeypatch):
  def wrong(problem):
    embedding = problem.params.embedding * 1.01
    params = problem.params._replace(embedding=embedding)
    return peers.lstm_jax(problem._replace(params=params))

  monkeypatch.setitem(peers.PEERS, "wrong", (wrong, "jax"))
  with pytest.raises(ValueError, match="wrong computes something else"):
    benchmark.run(SIZES, rounds=1)


def test_the_losses_fall():
  step = peers.lstm_jax(benchmark.make_problem(**SIZES))
  losses = jnp.array([step() for _ in range(50)])
  assert losses[-1] < losses[0] - 0.05
