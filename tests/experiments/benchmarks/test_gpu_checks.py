"""The checks of the kernels find what is planted, and pass what is right."""

import jax
import numpy as np
import pytest

from experiments.benchmarks.gpu import checks, inputs, races, torch_layers
from experiments.benchmarks.gpu.case import kernel_kind
from experiments.benchmarks.gpu.cases import CHECKS, CLUSTERS, ONE_BLOCK, RACES
from experiments.benchmarks.gpu.checks import Check, worst_error
from experiments.benchmarks.gpu.races import Race
from experiments.benchmarks.gpu.worker import compile_all, work
from experiments.trainer.files import write_json
from tests.interpreting import NEEDS_KERNELS, interpreted

SIZES = "gru", 64, 3, 5  # cell, H, T, B


@pytest.fixture(autouse=True)
def as_in_a_program():
  """Lift what tests/conftest.py forbids: the programs do not set it."""
  with (
    jax.numpy_dtype_promotion("standard"),
    jax.numpy_rank_promotion("allow"),
  ):
    yield


def results(case):
  """Return the results that a worker sends for a case."""
  messages = []
  assert work([case], frozenset(), messages.append)
  return [found for kind, _, found in messages if kind == "result"]


def use_scans(monkeypatch, change=lambda outputs: outputs):
  """Put a scan, with changed outputs, in place of the kernel."""
  layer_program = inputs.layer_program

  def program(cell, dtype, reverse, kernel):
    scan = layer_program(cell, dtype, reverse, False)
    return (lambda given: change(scan(given))) if kernel else scan

  for module in (checks, races):
    monkeypatch.setattr(module, "layer_program", program)


@NEEDS_KERNELS
@pytest.mark.parametrize(
  "case",
  [
    Check("lstm", 64, 3, 8, "bfloat16", seeds=1),
    Check(*SIZES, "float32", with_mask_and_reset=True, reverse=True, seeds=1),
    Race("rnn", 64, 3, 8, "bfloat16", repeats=2),
  ],
)
def test_a_kernel_in_the_interpreter_passes(case):
  with interpreted():
    (result,) = results(case)
  assert result.failures == [] and not result.rows[0]["failed"]


@pytest.mark.everyday(1)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("field", inputs.Outputs._fields)
def test_an_error_of_one_percent_in_any_output_is_found(
  dtype, field, monkeypatch
):
  def scaled(outputs):
    values = jax.tree.map(lambda x: 1.01 * x, getattr(outputs, field))
    return outputs._replace(**{field: values})

  use_scans(monkeypatch, scaled)
  (result,) = results(Check(*SIZES, dtype, seeds=1))
  (failure,) = result.failures
  assert failure.startswith(f"gru H 64, T 3, B 5, {dtype}: {field}")
  assert "differs by 1.0e-02, allowed is" in failure and "\n" not in failure
  assert result.rows[0]["failed"]


@pytest.mark.exhaustive
def test_one_seed_that_is_wrong_is_found(monkeypatch, tmp_path):
  use_scans(monkeypatch)
  case = Check(*SIZES, "float32")
  prepared = case.prepare(frozenset())
  ((programs, errors),) = compile_all([prepared])
  assert not prepared.finish(programs, errors).failures
  calls = []

  def wrong_at_last(given):
    calls.append(given)
    outputs = programs["scan"](given)
    if len(calls) == case.seeds:
      outputs = outputs._replace(hs=outputs.hs.at[2, 4, 63].set(np.nan))
    return outputs

  result = prepared.finish(programs | {"kernel": wrong_at_last}, errors)
  (failure,) = result.failures
  assert "hs differs by inf" in failure and len(calls) == case.seeds
  assert len({given.xs.tobytes() for given in calls}) == case.seeds
  (row,) = result.rows
  assert row["failed"] and row["error"] is None
  write_json(tmp_path / "gpu.json", row)  # JSON has no infinity


def test_one_bit_in_one_repeat_is_found(monkeypatch):
  use_scans(monkeypatch)
  case = Race(*SIZES, "float32", repeats=5)
  prepared = case.prepare(frozenset())
  ((programs, errors),) = compile_all([prepared])
  assert not prepared.finish(programs, errors).failures
  calls = []

  def changed_once(given):
    calls.append(given)
    outputs = programs["kernel"](given)
    if len(calls) == 4:
      number = outputs.hs[1, 2, 3]
      other = np.nextafter(number, np.float32(9))
      outputs = outputs._replace(hs=outputs.hs.at[1, 2, 3].set(other))
    return outputs

  result = prepared.finish(programs | {"kernel": changed_once}, errors)
  assert result.failures == [f"{case.name}: hs differs in 1 of 5 repeats"]
  assert result.rows[0]["failed"] and len(calls) == 6  # 1 + 5 repeats


def test_an_output_that_is_not_finite_fails_the_case(monkeypatch):
  """A NaN may have the same bits in every repeat, and so would hide a race."""
  use_scans(monkeypatch)
  case = Race(*SIZES, "float32", repeats=2)
  prepared = case.prepare(frozenset())
  ((programs, errors),) = compile_all([prepared])

  def always_nan(given):
    outputs = programs["kernel"](given)
    return outputs._replace(hs=outputs.hs.at[1, 2, 3].set(np.nan))

  result = prepared.finish(programs | {"kernel": always_nan}, errors)
  assert result.failures == [f"{case.name}: hs is not finite"]
  assert result.rows[0]["failed"]


def test_a_number_is_compared_by_its_bits():
  a = np.array([np.nan, 0.0], np.float32)
  found = races.differing([a, a], [a, np.array([np.nan, -0.0], np.float32)])
  assert found.tolist() == [False, True]


@pytest.mark.parametrize("kernel", [True, False])
def test_a_layer_has_every_option_and_both_cotangents(kernel, monkeypatch):
  options = []

  def unroll(module, params, state, xs, **found):
    options.append(
      found | {"precision": jax.config.jax_default_matmul_precision}
    )
    # Stands for the layer: its gradients are 2 d_last for h, and d_hs for xs.
    return state._replace(h=2 * state.h), xs[..., :4] + params.b.sum()

  monkeypatch.setattr(inputs, "unroll", unroll)
  # H 4, B 3, seed 0; with T 300, the shares of True are near 0.7 and 0.1.
  given = inputs.random_inputs("gru", 4, 300, 3, True, 0)
  program = inputs.layer_program("gru", "bfloat16", True, kernel)
  with jax.default_matmul_precision("tensorfloat32"):
    found = program(given)
  assert options == [
    {
      "mask": given.mask,
      "reset": given.reset,
      "reverse": True,
      "compute_dtype": jax.numpy.bfloat16,
      "implementation": "mosaic_gpu" if kernel else None,
      "precision": "tensorfloat32" if kernel else "highest",
    }
  ]
  assert np.array_equal(found.d_state.h, 2 * given.d_last.h)
  assert np.array_equal(found.d_xs[..., :4], given.d_hs)
  assert abs(given.mask.mean() - 0.7) < 0.05
  assert abs(given.reset.mean() - 0.1) < 0.05
  largest = [np.abs(leaf).max() for leaf in given.params]
  assert 0.49 < max(largest) <= 0.5 and min(largest) > 0  # 1 / √4


def test_both_programs_of_a_check_have_its_direction(monkeypatch):
  made = []

  def layer_program(*given):
    made.append(given)
    return lambda given: given.xs

  monkeypatch.setattr(checks, "layer_program", layer_program)
  Check(*SIZES, "bfloat16", reverse=True).prepare(frozenset())
  expected = ("gru", "bfloat16", True)
  assert made == [(*expected, True), (*expected, False)]


def test_a_kernel_that_does_not_compile_is_a_failure(monkeypatch):
  use_scans(monkeypatch)
  for case in (Check(*SIZES, "float32"), Race(*SIZES, "float32")):
    result = case.prepare(frozenset()).finish({}, {"kernel": "too large"})
    assert result.failures == [f"{case.name}: kernel: too large"]
    assert result.rows[0]["failed"]


def test_errors_are_relative_to_the_norm_of_an_array():
  expected = {"a": np.full(4, 2.0), "b": np.zeros(3)}
  actual = {"a": np.array([2.0, 2.0, 2.0, 2.4]), "b": np.zeros(3)}
  error, name = worst_error(actual, expected)
  assert error == pytest.approx(0.4 / 4) and name == "['a']"


@pytest.mark.exhaustive
def test_a_variant_of_pytorch_has_its_dtype_and_precision(monkeypatch):
  torch = pytest.importorskip("torch")
  params = inputs.random_params("gru", 4, 4, np.random.default_rng(0))
  given = torch.ones(3, 2, 4), torch.ones(3, 2, 4)
  for name in torch_layers.VARIANTS:
    for mode in ("forward", "gradient"):
      call = torch_layers.make_call("gru", params, name, mode, given)
      is_tf32 = "TF32" in name
      monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", not is_tf32)
      # hs, or the gradients of xs and of four arrays of weights
      first, *weights = [call()] if mode == "forward" else call()
      assert torch.backends.cudnn.allow_tf32 == is_tf32
      assert len(weights) == (4 if mode == "gradient" else 0)
      assert first.shape == (3, 2, 4) and not first.requires_grad
      assert (first.dtype == torch.bfloat16) == ("bfloat16" in name)


def test_the_checks_have_every_kind_of_kernel_and_the_races_most_of_them():
  def kind(case):
    (found,) = case.kernels  # each has a kernel
    return found

  places = {"one block": ONE_BLOCK, "cluster": CLUSTERS}
  for place, sizes in places.items():
    for cell, hidden_size, dtype in sizes:
      found = kernel_kind(cell, hidden_size, 40, dtype)  # B 40 as in CHECKS
      assert found == f"{cell} in {place}, {dtype}"
  with_all_options = {
    kind(case) for case in CHECKS if case.with_mask_and_reset and case.reverse
  }
  assert with_all_options == {kind(case) for case in CHECKS}
  assert len(with_all_options) == 12  # 3 cells × 2 places × 2 dtypes
  assert len({kind(case) for case in RACES}) >= 9  # of the 12
  assert kernel_kind("lstm", 1024, 8, "bfloat16") is None  # H is too large
