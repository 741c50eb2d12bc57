import json

import jax
import numpy as np
import pytest

from lstm_jax.language import language_model
from lstm_jax.training import (
  OptimizerConfig,
  check_mesh,
  init_state,
  make_mesh,
  make_mesh_train_step,
  make_optimizer,
  parse_mesh,
  place,
  state_shardings,
)
from tests.processes import finish, free_port, start
from tests.training.many_devices import (
  DEEP,
  LARGE,
  MANY,
  TIED,
  UPDATES,
  WORDS,
  E,
  H,
  V,
)
from tests.training.small import EPOCH, MODEL

SCRIPT = "tests.training.many_devices"
WIDTH = 8  # bytes of a float64
EXACT = 1e-12  # for sums in another order


def count(config):
  """Return the number of parameters."""
  shapes = jax.eval_shape(language_model(*config).init, jax.random.key(0))
  return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def test_a_mesh_is_read_from_text():
  assert parse_mesh("data:8") == {"data": 8}
  assert parse_mesh("data:4, model:2") == {"data": 4, "model": 2}


@pytest.mark.parametrize(
  ("text", "message"),
  [
    (
      "datum:8",
      "a mesh must be data:N, model:M or both, got 'datum' in 'datum:8'$",
    ),
    ("data:2,data:4", "data:N, model:M or both, got 'data' in 'data:2,data:4'"),
    ("", "a mesh must be data:N, model:M or both, got ''"),
    ("data", "the axis data must have a size of at least 1, .*, got 'data'"),
    (
      "data:²",
      "the axis data must have a size of at least 1, .*, got 'data:²'",
    ),
    ("model:0", "the axis model must have a size of at .*, got 'model:0'"),
    ("data:-1", "the axis data must have a size of at .*, got 'data:-1'"),
  ],
)
def test_text_that_is_no_mesh_is_refused(text, message):
  with pytest.raises(ValueError, match=message):
    parse_mesh(text)


def test_a_mesh_of_too_many_devices_or_another_axis_is_refused():
  assert dict(make_mesh({"data": 1}).shape) == {"data": 1, "model": 1}
  message = "^a mesh of data 4 × model 2 needs 8 devices, got 1$"
  with pytest.raises(ValueError, match=message):
    make_mesh({"data": 4, "model": 2})
  message = r"axes of a mesh are data and model, got \['batch'\]"
  with pytest.raises(ValueError, match=message):
    make_mesh({"batch": 1})


@pytest.mark.parametrize(
  ("sizes", "message"),
  [
    ({"datas": 2}, r"axes of a mesh are data and model, got \['datas'\]"),
    ({"data": -2, "model": -2}, "the size of the axis data must be .*, got -2"),
    ({"data": 1.0}, "the size of the axis data must be .* ≥ 1, got 1.0"),
    ({"data": 1, "model": 0}, "the size of the axis model must be .*, got 0"),
  ],
)
def test_sizes_that_are_no_mesh_are_refused(sizes, message):
  with pytest.raises(ValueError, match=f"^{message}$"):
    make_mesh(sizes)
  with pytest.raises(ValueError, match=f"^{message}$"):
    check_mesh(sizes, batch_size=4, hidden_size=4)


def test_the_mesh_must_divide_the_batch_and_the_hidden_size():
  sizes = {"data": 4, "model": 2}
  check_mesh(sizes, 16, 6)
  message = r"batch_size must be a multiple of .* 8 devices, got 12"
  with pytest.raises(ValueError, match=message):
    check_mesh(sizes, 12, 6)
  with pytest.raises(ValueError, match=r"batch_size must be .* ≥ 1, got 0"):
    check_mesh(sizes, 0, 6)
  for size in (0, None):
    message = rf"^hidden_size must be an integer ≥ 1, got {size}$"
    with pytest.raises(ValueError, match=message):
      check_mesh(sizes, 16, size)
  message = r"hidden_size must be .* axis model, 2, got 5"
  with pytest.raises(ValueError, match=message):
    check_mesh(sizes, 16, 5)


@pytest.mark.exhaustive
def test_a_mesh_takes_keys_of_the_default_kind_alone(key):
  mesh, rule = make_mesh({"data": 1}), make_optimizer(OptimizerConfig(), 9)
  state = init_state(MODEL, rule, MODEL.init(key), 3)  # the B of EPOCH
  shardings = state_shardings(mesh, state)
  train_step = make_mesh_train_step(mesh, MODEL, rule, shardings=shardings)
  other = jax.random.key(0, impl="rbg")
  message = "^key must be of the kind .*three.*, got .*rbg"
  with pytest.raises(ValueError, match=message):
    train_step(place(state, shardings), *EPOCH.batch(0), other)


def meshes_compute_what_one_device_does(simulated):
  for mesh in ("data:8", "data:4,model:2"):
    losses, weights, _ = simulated[mesh]
    assert losses < EXACT
    assert weights < EXACT
  assert len(simulated["losses"]) == UPDATES
  assert np.ptp(simulated["losses"]) > 0.01  # training changes them


def gradients_are_summed_once_an_update(simulated):
  sent, held = simulated["data:8"][2]
  assert held == count(DEEP)
  # The lowest layer reads rows of the table W_e W_x [V, 4H]: its gradient is
  # sent in place of those of W_e, w_x and b, which each device computes from
  # it. The 1 is the loss.
  lowest = V * E + E * 4 * H + 4 * H
  numbers = count(DEEP) - lowest + V * 4 * H + 1
  assert sent == [["all-reduce", numbers * WIDTH, False]]


def weights_in_pieces_are_gathered_once_an_update(simulated):
  sent, held = simulated["data:4,model:2"][2]
  pieces = 3 * H * 4 * H + H * V  # w_h, the upper w_x and w_h, the readout
  assert held == count(DEEP) - pieces // 2
  gathers = [size for kind, size, _ in sent if kind == "all-gather"]
  matrices = [H * 4 * H] * 3 + [H * V]
  assert sorted(gathers) == sorted(size * WIDTH for size in matrices)
  (sums,) = (one for one in sent if one[0] != "all-gather")
  assert [sums] == simulated["data:8"][2][0]
  assert not any(looped for _, _, looped in sent)


def rows_that_do_not_divide_are_copied(simulated):
  assert H // 2 % 4  # 4 devices cannot share the H / 2 rows of a projected w_h
  assert all(simulated["projected"])


def a_readout_in_chunks_sends_its_gradient_once(simulated):
  numbers = count(WORDS) + 1
  sent = simulated["words in 8 groups"]
  assert sent == [["all-reduce", numbers * WIDTH, False]]
  # The groups are for this: with one group, each chunk sends its own gradient.
  one_group = simulated["words in 1 groups"]
  (bytes_in_loop,) = (size for _, size, looped in one_group if looped)
  assert bytes_in_loop == (H * LARGE + LARGE + 1) * WIDTH


def members_are_shared_without_communication(simulated):
  losses, weights, sent, spread = simulated["members"]
  assert losses < EXACT
  assert weights < EXACT
  assert sent == []
  assert spread > 0.01  # they are not the same member eight times


@pytest.mark.exhaustive
@pytest.mark.programs
def test_eight_devices(tmp_path):
  """One process measures all that is checked: its start takes most time."""
  out = tmp_path / "found.json"
  ((status, _, errors),) = finish(start(SCRIPT, "simulated", out, devices=8))
  assert status == 0, errors
  simulated = json.loads(out.read_text())
  meshes_compute_what_one_device_does(simulated)
  gradients_are_summed_once_an_update(simulated)
  weights_in_pieces_are_gathered_once_an_update(simulated)
  rows_that_do_not_divide_are_copied(simulated)
  a_readout_in_chunks_sends_its_gradient_once(simulated)
  members_are_shared_without_communication(simulated)


@pytest.mark.exhaustive
@pytest.mark.programs
def test_four_processes_compute_what_one_does(tmp_path):
  out, port = tmp_path / "found.json", free_port()
  processes = [start(SCRIPT, "joined", out, port, 4, i) for i in range(4)]
  for status, _, errors in finish(*processes):
    assert status == 0, errors
  losses, weights, (sent, held) = json.loads(out.read_text())
  assert losses < EXACT
  assert weights < EXACT
  pieces = H * 4 * H + V * H  # w_h, and the embedding, also the readout
  assert held == count(TIED) - pieces // 2
  assert not any(looped for _, _, looped in sent)


@pytest.mark.exhaustive
@pytest.mark.programs
def test_training_steps_in_a_row_do_not_wait_for_ever(tmp_path):
  """CPU devices of jax 0.10 deadlock where many steps are queued."""
  out = tmp_path / "found.json"
  process = start(SCRIPT, "queued", out, devices=8)
  ((status, _, errors),) = finish(process)
  assert status == 0, errors
  assert json.loads(out.read_text()) == MANY


def test_sizes_of_a_mesh_may_be_narrow_integers():
  sizes = {"data": np.uint8(16), "model": np.uint8(16)}
  with pytest.raises(ValueError, match=r"of the mesh.s 256 devices, got 3$"):
    check_mesh(sizes, np.uint8(3), 16)
  with pytest.raises(ValueError, match="data 16 × model 16 needs 256 devices"):
    make_mesh(sizes)
