"""The part gpu finds what is planted, passes what is right, and goes on."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import benchmark
from experiments.benchmarks import gpu, parts
from experiments.benchmarks.floor import (
  H100,
  H200,
  Device,
  find_device,
  layer_floor,
  training_step_floor,
)
from experiments.benchmarks.gpu import Check
from experiments.trainer.files import write_json
from lstm_jax.sequence.implementation import VERSIONS
from tests.experiments.starting import start_all
from tests.interpreting import NEEDS_KERNELS, interpreted

CASE = "gru", 64, 3, 5  # cell, H, T, B
SIZES = {"hidden_size": 64, "seq_len": 3, "batch_size": 8}
# Devices that only one thing slows down: the memory, at 1e6 bytes a second, or
# the products, at 1e9 operations a second in TF32 and 2e9 in bfloat16.
SLOW_MEMORY = Device("a", 1e6, {"bfloat16": 1e15, "TF32": 1e15})
SLOW_PRODUCTS = Device("b", 1e15, {"bfloat16": 2e9, "TF32": 1e9})
SMALL = {"hidden_size": 10, "seq_len": 7, "batch_size": 5}


@pytest.fixture(autouse=True)
def as_in_a_program():
  """Lift what tests/conftest.py forbids, also in the threads that compile."""
  names = "jax_numpy_dtype_promotion", "jax_numpy_rank_promotion"
  before = {name: getattr(jax.config, name) for name in names}
  for name, value in zip(names, ("standard", "allow"), strict=True):
    jax.config.update(name, value)
  yield
  for name, value in before.items():
    jax.config.update(name, value)


@pytest.fixture
def small(monkeypatch):
  """Leave one small case of each section, and let every device run them."""
  monkeypatch.setattr(gpu, "check_device", lambda: None)
  monkeypatch.setattr(gpu, "CHECKS", [Check("rnn", 64, 3, 8, "bfloat16")])
  monkeypatch.setattr(gpu, "LAYER", SIZES)
  monkeypatch.setattr(gpu, "POLICY", (*gpu.OURS[:2], "flax scan bfloat16"))
  monkeypatch.setattr(gpu, "MODELS", [("rnn", 64, "bfloat16")])
  monkeypatch.setattr(gpu, "GATES", {"rnn": 1})
  names = *gpu.OURS, "autodiff", "flax linen", "flax nnx"
  monkeypatch.setattr(gpu, "ALWAYS", names)
  monkeypatch.setattr(gpu, "LIBRARIES", ())


def timed(record):
  """Return the (part, peer) that are timed, after a check of their times."""
  rows = [row for row in record["rows"] if "median_ms" in row]
  for row in rows:
    low, high = row["quartiles_ms"]
    assert 0 < low <= row["median_ms"] <= high and row["floor_ms"] > 0
    assert row["operands"] == gpu.operands_of(row["peer"])
  return {(row["part"], row["peer"]) for row in rows}


PROGRAMS = {  # that run everywhere
  *(("gpu policy", n) for n in ("scan bfloat16", "flax scan bfloat16")),
  ("gpu model", "scan bfloat16"),
  *(("gpu layer", n) for n in ("scan bfloat16", "scan", "autodiff")),
  *(("gpu layer", n) for n in ("flax linen", "flax nnx")),
}
KERNELS = {
  ("gpu policy", "kernel bfloat16"),
  ("gpu model", "kernel bfloat16"),
  ("gpu layer", "kernel bfloat16"),
  ("gpu layer", "kernel"),
}


@NEEDS_KERNELS
def test_the_whole_part_with_interpreted_kernels(small, console, monkeypatch):
  monkeypatch.setattr(gpu, "THREADS", 0)  # `interpreted` is of one thread
  with interpreted():
    record = benchmark.run(["gpu"], SIZES, 1, console)
  assert record["failures"] == []
  assert timed(record) == PROGRAMS | KERNELS
  (check,) = (row for row in record["rows"] if row["part"] == "gpu check")
  assert check["error"] <= check["allowed"]


@pytest.mark.exhaustive
def test_the_other_programs_are_timed_where_the_kernels_fail(
  small, console, tmp_path
):
  saved = []

  def save(record):
    saved.append(len(record["rows"]))

  record = benchmark.run(["gpu"], SIZES, 1, console, save)  # no kernel runs
  assert timed(record) == PROGRAMS
  assert saved == sorted(saved) and len(saved) == 1 + 4 + 1 + 2
  # The check, outputs and gradients of two policies, the model, and outputs and
  # gradients of a layer by two kernels.
  assert len(record["failures"]) == 1 + 4 + 1 + 4
  printed = console.file.getvalue()
  for failure in record["failures"]:
    assert "\n" not in failure and f"FAILED {failure}\n" in printed
  path = tmp_path / "gpu.json"
  write_json(path, record)  # all of it is JSON
  benchmark.draw(json.loads(path.read_text()), path, console)
  assert path.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"


def test_a_case_that_fails_or_is_late_loses_no_other(monkeypatch):
  def fail():
    raise jax.errors.JaxRuntimeError("an illegal access\nmore")

  found = gpu.Found([{"part": "gpu layer"}], {})
  cases = {
    "checks": [("a", fail), ("b", lambda: found)],
    "layers": [("c", fail)],
  }
  monkeypatch.setattr(gpu, "sections", lambda *given: cases)
  monkeypatch.setattr(gpu, "UNTIL", {"checks": 100.0, "layers": -1.0})
  failure = "a: JaxRuntimeError: an illegal access"
  assert [*gpu.measure({}, 3)] == [
    ([], {}, [failure]),
    found,
    ([], {"c": gpu.NO_TIME}, ()),
  ]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("field", gpu.Outputs._fields)
@pytest.mark.everyday(1)
def test_an_error_of_one_percent_in_any_output_is_found(
  dtype, field, monkeypatch
):
  use_scans(monkeypatch)
  assert gpu.check(Check(*CASE, dtype, seeds=1)).failures == []

  def scaled(outputs, seed):
    values = jax.tree.map(lambda x: 1.01 * x, getattr(outputs, field))
    return outputs._replace(**{field: values})

  use_scans(monkeypatch, scaled)
  (row,), _, (failure,) = gpu.check(Check(*CASE, dtype, seeds=1))
  assert failure.startswith(f"gru H 64, T 3, B 5, {dtype}: {field}")
  assert "differs by 1.0e-02, allowed is" in failure
  assert row["error"] > row["allowed"] and row["array"].startswith(field)


def use_scans(monkeypatch, change=lambda outputs, seed: outputs):
  """Put a scan, with outputs that `change`, in place of the kernel."""
  program_of = LAYER_PROGRAM

  def layer_program(case, kernel):
    scan = program_of(case, False)
    return (lambda given: change(scan(given), given.xs)) if kernel else scan

  monkeypatch.setattr(gpu, "layer_program", layer_program)


LAYER_PROGRAM = gpu.layer_program


def test_one_seed_that_is_wrong_is_found(monkeypatch, tmp_path):
  case = Check(*CASE, "float32", masked=True, reverse=True)
  last = gpu.draw_inputs(case, case.seeds - 1).xs
  assert not np.array_equal(last, gpu.draw_inputs(case, 0).xs)

  def wrong_at_last(outputs, xs):
    value = jnp.where(jnp.all(xs == last), jnp.nan, outputs.hs[2, 4, 63])
    return outputs._replace(hs=outputs.hs.at[2, 4, 63].set(value))

  use_scans(monkeypatch, wrong_at_last)
  (row,), _, (failure,) = gpu.check(case)
  assert failure.startswith(f"{case.name}: hs differs by inf")
  assert row["error"] is None
  write_json(tmp_path / "gpu.json", row)  # JSON has no infinity


@pytest.mark.parametrize("kernel", [True, False])
def test_a_layer_has_every_option_and_both_cotangents(kernel, monkeypatch):
  options = []

  def unroll(module, params, state, xs, **found):
    options.append(
      found | {"precision": jax.config.jax_default_matmul_precision}
    )
    # Stands for the layer: its gradients are 2 d_last for h, and d_hs for xs.
    return state._replace(h=2 * state.h), xs[..., :4] + params.b.sum()

  monkeypatch.setattr(gpu, "unroll", unroll)
  # H 4, B 3; with T 300, the shares of True are near 0.7 and 0.1.
  case = Check("gru", 4, 300, 3, "bfloat16", masked=True, reverse=True)
  given = gpu.draw_inputs(case, 0)
  found = gpu.layer_program(case, kernel)(given)
  implementation = {"implementation": "mosaic_gpu"} if kernel else {}
  assert options == [
    {
      "mask": given.mask,
      "reset": given.reset,
      "reverse": True,
      "compute_dtype": jnp.bfloat16,
      "precision": None if kernel else "highest",
      **implementation,
    }
  ]
  assert np.array_equal(found.d_state.h, 2 * given.d_last.h)
  assert np.array_equal(found.d_xs[..., :4], given.d_hs)
  assert abs(given.mask.mean() - 0.7) < 0.05
  assert abs(given.reset.mean() - 0.1) < 0.05
  largest = [np.abs(leaf).max() for leaf in given.params]
  assert 0.49 < max(largest) <= 0.5 and min(largest) > 0  # 1 / √4


@pytest.mark.parametrize(
  ("peer", "error", "fails"),
  [
    ("scan", ValueError("computes a different result"), 1),
    ("kernel bfloat16", ValueError("computes a different result"), 1),
    ("autodiff", ValueError("computes a different result"), 0),
    ("flax linen", KeyError("a mistake"), 0),
    ("scan", jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: of 2 bytes"), 0),
  ],
)
def test_a_program_of_ours_that_is_wrong_is_a_failure_others_are_skipped(
  peer, error, fails, monkeypatch
):
  def make(problem):
    raise error

  monkeypatch.setattr(gpu, "maker_of", lambda name: (make, "jax"))
  found = gpu.time_layer("rnn", False, SIZES, (peer,), 1)
  assert found.rows == [] and found.skipped == {peer: gpu.reason(error)}
  case = f"gpu layer, rnn, False, 64, 3, 8: {peer}: {gpu.reason(error)}"
  assert found.failures == [case] * fails


def test_a_wrong_kernel_is_not_timed(monkeypatch):
  def wrong(cell, weights):
    layer = gpu.ours(cell, weights._replace(b=weights.b + 0.1))
    return layer._replace(params=weights._replace(b=weights.b + 0.1))

  layers = gpu.JAX_LAYERS | {"kernel": (wrong, "jax")}
  monkeypatch.setattr(gpu, "JAX_LAYERS", layers)
  for backward in (False, True):
    peers = "kernel", "scan"
    found = gpu.time_layer("rnn", backward, SIZES, peers, 1)
    assert [row["peer"] for row in found.rows] == ["scan"]
    assert "kernel computes a different result" in found.failures[0]


def test_a_size_without_a_kernel_is_no_failure():
  names = "kernel bfloat16", "kernel"
  sizes = {"hidden_size": 1024, "seq_len": 1, "batch_size": 1}
  assert gpu.time_layer("lstm", False, sizes, names, 1) == ([], {}, [])


def test_a_peer_is_made_with_what_its_name_says():
  low, kernel = np.dtype("bfloat16"), {"implementation": "mosaic_gpu"}
  for name, layer, options in (
    ("kernel", gpu.ours, kernel),
    ("scan", gpu.ours, {}),
    ("autodiff", gpu.autodiff, {}),
  ):
    for ending, dtype in (("", {}), (" bfloat16", {"compute_dtype": low})):
      make, _ = gpu.JAX_LAYERS[name + ending]
      assert getattr(make, "keywords", {}) == options | dtype
      assert getattr(make, "func", make) is layer
  for name, dtype, tf32, allowed in (
    ("pytorch bfloat16", "bfloat16", False, 5e-2),
    ("pytorch TF32", "float32", True, 1e-2),
    ("pytorch float32", "float32", False, 1e-4),
  ):
    make, package = gpu.maker_of(name)
    options = {"name": name, "dtype": dtype, "tf32": tf32, "allowed": allowed}
    assert make.keywords == options and package == "torch"


def test_the_checks_have_every_kind_of_kernel():
  def kind(case):
    size = jnp.dtype(case.dtype).itemsize
    count = gpu.COUNTS[gpu.CELLS[case.cell]]
    plan = gpu.limits.divide(count, case.hidden_size, case.batch_size, size)
    return case.cell, plan.cluster == 1, case.dtype

  both = {kind(case) for case in gpu.CHECKS if case.masked and case.reverse}
  assert both == {kind(case) for case in gpu.CHECKS}
  assert len(both) == 12  # 3 cells × 2 places × 2 dtypes
  assert not gpu.has_kernel("lstm", 1024, 8, "bfloat16")  # H is too large


def test_the_grid_has_every_size_once_or_the_one_that_is_given():
  grid = gpu.layer_sizes({})
  # 3 cells, 5 sizes H and 4 batch sizes, but for one pair that is too large.
  assert len(set(grid)) == len(grid) == 3 * (5 * 4 - 1)
  rest = grid[len(gpu.AGAINST_ALL) :]
  without = [not gpu.has_kernel(*case, "bfloat16") for case in rest]
  assert without == sorted(without) and {*without} == {False, True}
  given = {"hidden_size": 7, "seq_len": 9}
  found = gpu.layer_sizes(given)
  assert found == [(cell, 7, 1024) for cell in ("lstm", "gru", "rnn")]
  (_, case), *_ = gpu.sections(given, 3)["layers"]
  *_, sizes, peers, rounds, _ = case.args
  assert sizes == {"hidden_size": 7, "seq_len": 9, "batch_size": 1024}
  assert rounds == 3 and {*gpu.LIBRARIES} < {*peers}
  assert [*gpu.UNTIL.values()] == sorted(gpu.UNTIL.values())
  assert gpu.UNTIL["layers"] < 480


def test_an_error_says_what_is_needed_and_what_was_found(monkeypatch):
  def device(kind, capability):
    found = SimpleNamespace(device_kind=kind, compute_capability=capability)
    monkeypatch.setattr(jax, "devices", lambda: [found])

  for kind, capability, version in (
    ("cpu", None, VERSIONS[0]),
    ("NVIDIA A100", "8.0", VERSIONS[0]),
    ("NVIDIA H100", "9.0", (0, 10, 2)),
    ("NVIDIA H100", "9.0", VERSIONS[1]),  # the first that is too new
  ):
    monkeypatch.setattr(jax, "__version_info__", version)
    device(kind, capability)
    with pytest.raises(ValueError, match=f"H200 .*, got {kind} and jax"):
      parts.check(["gpu"], {})
  monkeypatch.setattr(jax, "__version_info__", VERSIONS[0])
  parts.check(["memory"], {})
  device("NVIDIA H200", "9.0")
  parts.check(["gpu"], {})


@pytest.mark.exhaustive
@pytest.mark.programs
def test_without_a_gpu_the_error_is_one_line():
  given = {"JAX_PLATFORMS": "cpu"}
  ((status, output, errors),) = start_all([("benchmark", "--part=gpu")], given)
  assert (status, output) == (2, "")
  (line,) = errors.splitlines()
  assert line.startswith("error: --part=gpu needs an H100 or H200 and jax")


def test_a_layer_moves_weights_and_activations():
  # Weights: 3 gates of 10 × (10 + 10) + 10 = 630. Activations: 7·5·10 = 350.
  for size in (4, 2):
    floor = layer_floor(
      SLOW_MEMORY, "gru", False, "bfloat16", **SMALL, number_bytes=size
    )
    assert floor == pytest.approx(1e-3 * size * (630 + 2 * 350))
  gradient = layer_floor(SLOW_MEMORY, "gru", True, "bfloat16", **SMALL)
  assert gradient == pytest.approx(1e-3 * 4 * (3 * 630 + 6 * 350))


def test_a_layer_multiplies_inputs_and_states():
  # 7 steps × 5 sequences × 4 gates of 10 units × 20 terms, two operations.
  operations = 7 * 5 * 4 * 10 * 20 * 2
  for backward, times in ((False, 1), (True, 3)):
    for operands, peak in (("bfloat16", 2e9), ("TF32", 1e9)):
      floor = layer_floor(SLOW_PRODUCTS, "lstm", backward, operands, **SMALL)
      assert floor == pytest.approx(1e3 * times * operations / peak)


def test_a_large_layer_on_an_h100_is_bound_by_its_products():
  # 2·4096·4·1024·2048 operations a time step, at 989 TFLOP/s: 69.5 µs. Its
  # bytes, 2·4·4096·1024 and a share of the weights: 10 µs at 3.35 TB/s.
  for operands, tflops in (("bfloat16", 989), ("TF32", 495), ("float32", 67)):
    floor = layer_floor(H100, "lstm", False, operands, 1024, 128, 4096)
    assert floor == pytest.approx(0.06948 * 128 * 989 / tflops, rel=1e-3)


def test_a_training_step_moves_the_optimizer_state():
  sizes = {"num_params": 1000, "vocabulary_size": 11, **SMALL}
  # Adam moves 7 numbers for each parameter; hs and dhs are written and read.
  floor = training_step_floor(SLOW_MEMORY, "gru", "TF32", **sizes)
  assert floor == pytest.approx(1e-3 * 4 * (7 * 1000 + 4 * 350))
  # A time step: 5 sequences × (10 × 3·10 of the state, 10 × 11 of the readout).
  floor = training_step_floor(SLOW_PRODUCTS, "gru", "TF32", **sizes)
  assert floor == pytest.approx(1e3 * 7 * 3 * 2 * 5 * (300 + 110) / 1e9)


def test_a_device_is_found_by_its_kind():
  assert find_device("NVIDIA H200") is H200
  assert find_device("NVIDIA H100 80GB HBM3") is H100
  assert find_device("NVIDIA GH200 480GB") is H100  # less bandwidth than H200
  assert H200.bandwidth > H100.bandwidth
