"""Launches of a time step, counted in programs for an H100."""

import json
from types import SimpleNamespace

import jax
import pytest

from experiments.benchmarks import launches, parts
from experiments.benchmarks.tables import case_table
from tests.interpreting import HAS_CUDA, NEEDS_CUDA
from tests.processes import ROOT

KEPT = ROOT / "experiments/results/benchmark/launches.json"
SIZES = {"hidden_size": 512, "seq_len": 64, "batch_size": 32}
IN_TABLE = {  # of docs/gpu.md: launches of a time step, forward and backward
  ("lstm", "float32"): (3.25, 3.75),
  ("lstm", "bfloat16"): (3.5, 3.75),
  ("gru", "float32"): (3.25, 4),
  ("gru", "bfloat16"): (3.5, 4),
}
# Three loops, after a copy and before a reduction outside of them. A command
# buffer holds all of the first body, nothing of the second, and a part of the
# third. Each loop launches its condition, a gemm and a copy.
THUNKS = """\
000: kCommandBuffer [source       | next=002 (1)]
    001: kCopy         [source | sink] kCopy
002: kWhile         [prev=000 (1) | next=012 (1)]
condition:
    003: kCustomKernel [source | sink] compare
  body:
    000: kCommandBuffer [source | sink]
        004: kCustomKernel [source       | next=005 (1)] gemm
        005: kCopy         [prev=004 (1) | sink        ] kCopy
006: kWhile         [prev=002 (1) | sink        ]
condition:
    007: kCustomKernel [source | sink] compare
  body:
    008: kCustomKernel [source       | next=009 (1)] gemm
    009: kAsyncStart   [source       | sink        ] stream=0
        010: kDynamicSliceFusion [source | sink]
            011: kCopy [source | sink] kCopy
012: kWhile         [prev=006 (1) | sink        ]
condition:
    013: kCustomKernel [source | sink] compare
  body:
    000: kCommandBuffer [source | sink]
        014: kCustomKernel [source | sink] gemm
    015: kCopy         [source | sink] kCopy
016: kCustomKernel [source | sink] reduce
"""


def test_the_launches_of_each_loop_are_counted():
  assert launches.read_loops(THUNKS) == [(3, True), (3, False), (3, False)]


def test_the_time_steps_of_an_iteration_are_read_from_the_program():
  program = (
    '%a = while(%x), backend_config={"known_trip_count":{"n":"64"}}\n'
    '%b = while(%y), backend_config={"known_trip_count":{"n":"16"}}\n'
  )
  assert launches.read_steps(program, 64) == [1, 4]


def test_the_first_loop_is_the_forward_and_the_last_the_backward(monkeypatch):
  trips = "".join(f'"known_trip_count":{{"n":"{n}"}} ' for n in (64, 32, 16))
  program = SimpleNamespace(
    as_text=lambda: trips,
    memory_analysis=lambda: SimpleNamespace(temp_size_in_bytes=7),
  )
  monkeypatch.setattr(
    launches, "compile_for_h100", lambda *given: (program, THUNKS)
  )
  sizes = {"hidden_size": 5, "seq_len": 64, "batch_size": 3}
  (row,), _ = launches.count("lstm", sizes, "bfloat16")
  assert row == {
    "peer": "lstm_jax",
    "forward_launches": 3,  # an iteration is one time step
    "forward_in_graph": True,
    "backward_launches": 0.75,  # an iteration is four
    "backward_in_graph": False,
    "temporary_bytes": 7,
  }


def test_a_library_without_a_loop_is_skipped(monkeypatch):
  """On a GPU, jax.experimental.rnn calls cuDNN once for all time steps."""
  without = SimpleNamespace(as_text=lambda: ""), "000: kCustomCall"
  monkeypatch.setattr(launches, "compile_for_h100", lambda *given: without)
  sizes = {"hidden_size": 5, "seq_len": 64, "batch_size": 3}
  rows, skipped = launches.count("lstm", sizes, "bfloat16")
  assert rows == [] and skipped == {"lstm_jax": "it has no loop over time"}


@pytest.mark.parametrize("dtype", launches.DTYPES)
def test_the_gradient_of_a_layer_in_its_dtype_is_counted(dtype, monkeypatch):
  programs = []

  def compile_for_h100(f, params, xs, dhs):
    programs.append(str(jax.make_jaxpr(f)(params, xs, dhs)))
    d_params, dxs = jax.eval_shape(f, params, xs, dhs)
    assert d_params.w_h.shape == (5, 20) and dxs.shape == (64, 3, 5)
    raise ZeroDivisionError  # nothing else is of interest

  monkeypatch.setattr(launches, "compile_for_h100", compile_for_h100)
  monkeypatch.setattr(launches, "LAYERS", {})
  sizes = {"hidden_size": 5, "seq_len": 64, "batch_size": 3}
  with pytest.raises(ZeroDivisionError):
    launches.count("lstm", sizes, dtype)
  (program,) = programs
  assert ("bf16[" in program) == (dtype == "bfloat16")


def test_a_length_with_time_steps_outside_of_the_loop_is_refused():
  # An iteration has 4 time steps. With T 4 there is no loop. With T 10 its two
  # iterations would be taken for 5 time steps each.
  for steps in (4, 10, 13):
    message = f"a multiple of 4 and at least 8, got {steps}$"
    with pytest.raises(ValueError, match=message):
      parts.check(["memory", "launches"], {"seq_len": steps})
    parts.check(["memory"], {"seq_len": steps})
  for sizes in ({}, {"hidden_size": 3}, {"seq_len": 8}, {"seq_len": 20}):
    parts.check(["launches"], sizes)


def test_ours_has_the_fewest_launches_in_the_kept_results():
  rows = json.loads(KEPT.read_text())["rows"]
  cases = {}
  for row in rows:
    cases.setdefault((row["cell"], row["dtype"]), []).append(row)
  assert set(cases) == set(IN_TABLE)
  for case, (ours, *others) in cases.items():
    assert ours["peer"] == "lstm_jax"
    assert case_table([ours]).row_count == 1  # a kept row can still be shown
    assert ours["forward_in_graph"] and ours["backward_in_graph"]
    found = ours["forward_launches"], ours["backward_launches"]
    assert found == IN_TABLE[case]
    assert bool(others) == (case[1] == "float32")
    for other in others:
      assert_fewer(ours, other)


@pytest.mark.exhaustive
@NEEDS_CUDA
@pytest.mark.parametrize(("cell", "dtype"), IN_TABLE)
def test_our_cells_launch_no_more_than_in_the_table(cell, dtype):
  (ours, *others), _ = launches.count(cell, SIZES, dtype)
  most_forward, most_backward = IN_TABLE[cell, dtype]
  assert ours["forward_launches"] <= most_forward
  assert ours["backward_launches"] <= most_backward
  assert ours["forward_in_graph"] and ours["backward_in_graph"]
  assert bool(others) == (dtype == "float32")
  for other in others:
    assert_fewer(ours, other)


def assert_fewer(ours, other):
  assert ours["forward_launches"] < other["forward_launches"]
  assert ours["backward_launches"] < other["backward_launches"]


@pytest.mark.skipif(HAS_CUDA, reason="JAX's CUDA packages are installed")
def test_without_the_packages_an_error_names_them():
  message = r"needs JAX's CUDA packages \(a GPU is not needed\): "
  with pytest.raises(ValueError, match=message):
    launches.compile_for_h100(abs, 1.0)
