"""The peak memory of PyTorch, which is measured in a process of its own."""

import sys
from functools import partial

import pytest

from experiments.benchmarks.peers import memory
from tests.forking import FORKING

SIZES = {"hidden_size": 5, "seq_len": 4, "batch_size": 3}


def test_the_memory_of_a_process_is_read_in_bytes(tmp_path, monkeypatch):
  status = tmp_path / "status"
  status.write_text("VmHWM:\t    20 kB\nVmRSS:\t    12 kB\n")
  monkeypatch.setattr(memory, "Path", lambda name: status)
  assert memory._resident("VmRSS") == 12 * 1024
  with pytest.raises(OSError, match="has no VmPeak"):
    memory._resident("VmPeak")


@pytest.fixture
def alone(monkeypatch):
  """Let PyTorch count as installed, and compare no libraries that use JAX."""
  monkeypatch.setattr(memory, "is_installed", lambda package: True)
  monkeypatch.setattr(
    memory.sequences, "make_problem", lambda *_, **sizes: None
  )
  monkeypatch.setattr(memory.sequences, "jax_peers", dict)


def test_the_memory_of_a_broken_pytorch_is_skipped(alone, monkeypatch):
  monkeypatch.setattr(memory, "in_a_process", lambda f, *given: f(*given))
  monkeypatch.setitem(sys.modules, "torch", None)
  rows, skipped = memory.measure_memory(SIZES)
  assert (
    rows == [] and "cannot be measured: import of torch" in skipped["pytorch"]
  )


@pytest.mark.exhaustive
def test_a_process_returns_a_result_or_an_expected_error(monkeypatch):
  monkeypatch.setattr(memory, "multiprocessing", FORKING)
  assert memory.in_a_process(abs, -3) == 3
  with pytest.raises(FileNotFoundError, match="no_such_file"):
    memory.in_a_process(open, "no_such_file")


@pytest.mark.exhaustive
def test_an_unexpected_error_of_a_process_is_printed(capfd):
  with pytest.raises(
    RuntimeError, match=r"^its process failed; its error is above$"
  ):
    memory.in_a_process(int, "three")
  assert (
    "invalid literal for int() with base 10: 'three'" in capfd.readouterr()[1]
  )


@pytest.mark.exhaustive
def test_a_pytorch_whose_process_is_killed_is_skipped(alone, monkeypatch):
  # Called with the sizes, which serve `eval` as globals.
  killed = partial(eval, "__import__('os').abort()")
  monkeypatch.setattr(memory, "torch_peak", killed)
  monkeypatch.setattr(memory, "multiprocessing", FORKING)
  rows, skipped = memory.measure_memory(SIZES)
  assert rows == []
  assert "cannot be measured: its process was killed" in skipped["pytorch"]
