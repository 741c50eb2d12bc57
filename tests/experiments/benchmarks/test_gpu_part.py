"""The part gpu of the benchmark as a whole, at tiny sizes and without a GPU."""

import re
import weakref
from pathlib import Path

import jax
import pytest

from experiments import benchmark
from experiments.benchmarks import gpu
from experiments.benchmarks.gpu import (
  cases,
  layers,
  part,
  picture,
  torch_layers,
)
from experiments.benchmarks.gpu.case import ENDED, kernel_kind
from experiments.benchmarks.gpu.checks import Check
from experiments.benchmarks.gpu.layers import Layer
from experiments.benchmarks.gpu.peers import PEERS
from experiments.benchmarks.gpu.races import Race
from experiments.benchmarks.gpu.supervisor import Section, Supervisor
from experiments.benchmarks.gpu.timing import check_equal
from experiments.benchmarks.gpu.torch_layers import TorchLayer
from experiments.benchmarks.gpu.training_step import TrainingStep
from experiments.benchmarks.proof import is_installed
from experiments.trainer.files import write_json
from tests.experiments.benchmarks.gpu_worker import InProcess
from tests.interpreting import NEEDS_KERNELS, interpreted

SIZES = 64, 3, 8  # H, T, B
# The peers of the sections layers and policies.
LAYER = "kernel bfloat16", "scan bfloat16", "scan", "flax linen", "flax nnx"
POLICY = "kernel bfloat16", "scan bfloat16", "flax bfloat16", "flax linen"
SECTIONS = [  # that may take 1e9 s, so that no case is left out
  Section("checks", [Check("rnn", *SIZES, "bfloat16", seeds=1)], 1e9),
  Section("races", [Race("rnn", *SIZES, "bfloat16", repeats=2)], 1e9),
  Section(
    "policies", [Layer("gru", *SIZES, POLICY, resets=True, rounds=2)], 1e9
  ),
  Section("models", [TrainingStep("rnn", *SIZES, "bfloat16", rounds=2)], 1e9),
  Section("pytorch", [TorchLayer("rnn", *SIZES, 2)], 1e9, jax_on_cpu=True),
  Section("layers", [Layer("rnn", *SIZES, LAYER, rounds=2)], 1e9),
]
# (part, peer) of the programs that run everywhere, and of the kernels.
TIMED = {
  ("gpu policy", "scan bfloat16"),
  ("gpu policy", "flax bfloat16"),
  ("gpu policy", "flax linen"),
  ("gpu model", "scan"),
  ("gpu layer", "scan bfloat16"),
  ("gpu layer", "scan"),
  ("gpu layer", "flax linen"),
  ("gpu layer", "flax nnx"),
}
KERNELS = {
  ("gpu policy", "kernel bfloat16"),
  ("gpu model", "kernel"),
  ("gpu layer", "kernel bfloat16"),
}


@pytest.fixture(autouse=True)
def as_in_a_program(monkeypatch):
  if is_installed("torch"):  # its layers run, although there is no GPU
    monkeypatch.setattr(torch_layers, "missing", lambda: None)
  with (
    jax.numpy_dtype_promotion("standard"),
    jax.numpy_rank_promotion("allow"),
  ):
    yield


def run(console, save=lambda record: None):
  supervisor = Supervisor(InProcess, 1e9)
  environment = supervisor.environment()
  return part.run_sections(SECTIONS, supervisor, environment, console, save)


def timed(record):
  """Return the (part, peer) that are timed, after a check of their times."""
  rows = [row for row in record["rows"] if "us_per_step" in row]
  for row in rows:
    low, high = row["quartiles_us"]
    assert 0 < low <= row["us_per_step"] <= high and row["floor_us"] > 0
  return {
    (row["part"], row["peer"])
    for row in rows
    if not row["peer"].startswith("pytorch")  # which may not be installed
  }


@NEEDS_KERNELS
def test_the_whole_part_with_interpreted_kernels(console):
  saved = []
  with interpreted():
    record = run(console, lambda record: saved.append(len(record["rows"])))
  assert record["failures"] == []
  assert timed(record) == TIMED | KERNELS
  assert (
    "2 checks passed; 0 failures of checks and programs"
    in console.file.getvalue()
  )
  assert saved == sorted(saved) and len(saved) == len(SECTIONS)


@pytest.mark.exhaustive
def test_the_other_programs_are_timed_where_the_kernels_fail(console, tmp_path):
  record = run(console)  # no kernel runs on a CPU
  assert timed(record) == TIMED
  printed = console.file.getvalue()
  assert len(record["failures"]) == 5  # all cases but PyTorch's
  assert "\n0 checks passed; 5 failures of checks and programs\n" in printed
  for failure in record["failures"]:
    assert "\n" not in failure and f"FAILED {failure}\n" in printed
  path = tmp_path / "gpu.json"
  write_json(path, record)  # all of it is JSON
  benchmark.draw(record, path, console)
  assert path.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
  assert not picture.draw([], tmp_path / "none.png")


@pytest.mark.everyday(1)
@pytest.mark.parametrize("wrong", ["outputs", "gradient"])
def test_a_kernel_that_computes_something_else_is_not_timed(
  wrong, console, monkeypatch
):
  def make(cell, weights, starts):
    layer = PEERS["scan"].make(cell, weights, starts)

    def apply(params, xs):
      hs = layer.apply(params, xs)
      if wrong == "outputs":  # 1.1 times the values of hs, with its gradient
        return hs + 0.1 * jax.lax.stop_gradient(hs)
      # The values of hs, with 1.1 times the gradient.
      return 1.1 * hs - 0.1 * jax.lax.stop_gradient(hs)

    return layer._replace(apply=apply)

  peer = PEERS["kernel bfloat16"]._replace(make=make)
  monkeypatch.setitem(PEERS, "kernel bfloat16", peer)
  case = Layer("rnn", *SIZES, ("kernel bfloat16", "scan"), rounds=1)
  section = Section("layers", [case], 1e9)
  supervisor = Supervisor(InProcess, 1e9)
  ((_, result),) = supervisor.run(section)
  (failure,) = result.failures
  assert "kernel bfloat16: ValueError: computes a different" in failure
  assert {row["peer"] for row in result.rows} == {"scan"}


def test_a_case_runs_without_the_kernels_that_it_must_leave_out():
  case = Layer("rnn", *SIZES, ("kernel bfloat16", "kernel", "scan"))
  assert len(case.kernels) == 2
  prepared = case.prepare(left_out=case.kernels)
  expected = {"scan: forward", "scan: gradient", "expected"}
  assert prepared.lowered.keys() == expected
  case = Layer("rnn", *SIZES, ("kernel bfloat16", "kernel"))
  prepared = case.prepare(left_out=case.kernels)
  result = prepared.finish({"expected": lambda *given: None}, {})
  assert result == ([], dict.fromkeys(case.peers, ENDED), [])


def test_the_expected_arrays_are_freed_before_the_timing(monkeypatch):
  kept = []

  def expected(weights, xs, starts, dhs):
    results = {"forward": xs + 0, "gradient": (weights, dhs + 0)}
    kept.extend(map(weakref.ref, (results["forward"], results["gradient"][1])))
    return results

  def time_calls(calls, *others):
    assert [*calls] == ["scan"] and [each() for each in kept] == [None, None]
    return {}

  monkeypatch.setattr(layers, "time_calls", time_calls)
  programs = {
    "expected": expected,
    "scan: forward": lambda weights, xs, starts: xs,
    "scan: gradient": lambda weights, xs, starts, dhs: (weights, dhs),
  }
  case = Layer("rnn", *SIZES, ("scan",))
  assert case.prepare(frozenset()).finish(programs, {}) == ([], {}, [])


def test_results_are_compared_by_the_norm_of_each_array():
  a, b = jax.numpy.ones((2, 3)), jax.numpy.full((2,), 3.0)
  check_equal([a, 1.02 * b], [a, b], 0.03)
  for wrong, right in (
    ([a, 1.04 * b], [a, b]),
    ([a, 1.04e-9 * b], [a, 1e-9 * b]),
    ([a * float("nan"), b], [a, b]),
  ):
    with pytest.raises(ValueError, match="computes a different result"):
      check_equal(wrong, right, 0.03)
  with pytest.raises(ValueError, match=r"^array 1 has shape \(1,\), not"):
    check_equal([a, b[:1]], [a, b], 0.03)


def test_sizes_replace_the_grid_of_layers():
  *_, torch, layers = cases.sections({"hidden_size": 7, "seq_len": 9}, 3)
  for section in (torch, layers):
    found = [
      (case.cell, case.hidden_size, case.seq_len, case.batch_size, case.rounds)
      for case in section.cases
    ]
    # B is not given, so that it is 1024.
    assert found == [(cell, 7, 9, 1024, 3) for cell in ("lstm", "gru", "rnn")]
  assert {*cases.LIBRARIES} < {*layers.cases[0].peers}
  _, _, policies, models, *_ = cases.sections({}, 3)
  assert [case.resets for case in policies.cases] == [True] * 2  # gru, lstm
  found = [(c.cell, c.hidden_size, c.dtype) for c in models.cases]
  assert found == cases.MODELS


def test_the_package_lists_its_modules():
  listed = re.findall(r"^([a-z_, ]+?)  +\S", gpu.__doc__, re.MULTILINE)
  files = Path(gpu.__file__).parent.glob("[a-z]*.py")
  assert sorted(", ".join(listed).split(", ")) == sorted(f.stem for f in files)


def without_memory(weights, xs, starts):
  raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: of 2 bytes")


@pytest.mark.parametrize(
  ("peer", "forward", "fails"),
  [
    ("scan", None, 1),
    ("autodiff", None, 0),
    ("flax linen", None, 0),
    ("scan", without_memory, 0),
  ],
)
def test_a_wrong_scan_is_a_failure_but_one_without_enough_memory_is_not(
  peer, forward, fails
):
  """A wrong peer whose gradient is not derived by hand is only skipped."""

  def expected(weights, xs, starts, dhs):
    return {"forward": xs + 1, "gradient": (weights, dhs)}

  programs = {
    "expected": expected,
    f"{peer}: forward": forward or (lambda weights, xs, starts: xs),
  }
  case = Layer("rnn", *SIZES, (peer,))
  rows, skipped, failures = case.prepare(frozenset()).finish(programs, {})
  why = "of 2 bytes" if forward else "computes a different result"
  assert rows == [] and why in skipped[peer]
  assert failures == [f"{case.name}: {peer}: {skipped[peer]}"] * fails


def test_a_size_that_only_the_part_model_takes_is_refused(console):
  with pytest.raises(
    ValueError, match="--num_layers needs --part=model, got gpu"
  ):
    part.run({"hidden_size": 7, "num_layers": 2}, 3, console)


def test_the_grid_has_every_size_once_and_the_sections_end_in_time():
  grid = cases.layer_sizes({})
  # 3 cells, 5 sizes H and 4 batch sizes, but for one pair that is too large.
  assert len(set(grid)) == len(grid) == 3 * (5 * 4 - 1)
  rest = grid[len(cases.AGAINST_ALL) :]
  without = [kernel_kind(*case, "bfloat16") is None for case in rest]
  assert without == sorted(without) and {*without} == {False, True}
  sections = cases.sections({}, 11)
  until = [section.until for section in sections]
  assert until == sorted(until) and until[-1] < cases.SECONDS < 480
  assert {peer for case in sections[-1].cases for peer in case.peers} <= {
    *PEERS
  }


@pytest.mark.exhaustive
def test_a_training_step_whose_reference_does_not_compile_says_why():
  prepared = TrainingStep("rnn", *SIZES, "float32").prepare(frozenset())
  with pytest.raises(ValueError, match=r"^out of registers$"):
    prepared.finish({}, {"expected": "out of registers"})
  programs = {"expected": lambda *given: None}
  result = prepared.finish(programs, {"scan: step": "too large"})
  assert result.skipped["scan"] == "ValueError: too large"


@pytest.mark.exhaustive
def test_a_training_step_that_computes_something_else_is_not_timed():
  case = TrainingStep("rnn", *SIZES, "float32")
  loss = jax.numpy.float32(1)
  programs = {
    "expected": lambda *given: loss,
    "scan: gradient": lambda *given: 1.02 * loss,
  }
  (rows, skipped, failures) = case.prepare(case.kernels).finish(programs, {})
  assert rows == [] and skipped.pop("kernel") == ENDED
  (failure,) = failures
  assert failure == f"{case.name}: scan: {skipped['scan']}"
  assert skipped["scan"].startswith("ValueError: computes a different result")
