"""The peak memory of PyTorch, which is measured in a process of its own."""

import sys
from functools import partial
from types import SimpleNamespace

import pytest

from experiments.benchmarks import memory
from tests.forking import FORKING

SIZES = {"hidden_size": 5, "seq_len": 4, "batch_size": 3}


def test_the_memory_of_a_process_is_read_in_bytes(tmp_path, monkeypatch):
  status = tmp_path / "status"
  status.write_text("VmHWM:\t    20 kB\nVmRSS:\t    12 kB\n")
  monkeypatch.setattr(memory, "Path", lambda name: status)
  assert memory._resident("VmRSS") == 12 * 1024
  with pytest.raises(OSError, match="has no VmPeak"):
    memory._resident("VmPeak")


class Torch:
  """Stands for PyTorch; adds to `steps` what is computed."""

  def __init__(self, steps):
    self.nn = self.autograd = self
    self.grad = lambda *given: steps.append(given)

  def LSTM(self, *sizes):
    assert sizes == (5, 5)
    return self

  def __call__(self, xs):
    return (f"hs of {xs}",)

  def parameters(self):
    return ["w"]

  def randn(self, shape, requires_grad):
    return f"xs {shape}"

  def ones(self, shape):
    return f"dhs {shape}"


def test_the_peak_of_pytorch_is_how_much_its_gradients_add(monkeypatch):
  steps = []

  def resident(field):
    steps.append(field)
    return {"VmRSS": 1000, "VmHWM": 1700}[field]

  def path(name):
    assert name == "/proc/self/clear_refs"
    return SimpleNamespace(write_text=steps.append)

  monkeypatch.setitem(sys.modules, "torch", Torch(steps))
  monkeypatch.setattr(memory, "_resident", resident)
  monkeypatch.setattr(memory, "Path", path)
  assert memory.torch_peak(SIZES) == 700
  first, second = (
    (f"hs of xs ({n}, 3, 5)", [f"xs ({n}, 3, 5)", "w"], f"dhs ({n}, 3, 5)")
    for n in (2, 4)
  )
  # A short gradient starts PyTorch, and a 5 resets the peak, VmHWM.
  assert steps == [first, "5", "VmRSS", second, "VmHWM"]


@pytest.fixture
def alone(monkeypatch):
  """Let PyTorch count as installed, and compare no libraries that use JAX."""

  def make_problem(cell, backward, **sizes):
    assert (cell, backward, sizes) == ("lstm", True, SIZES)  # all gradients

  monkeypatch.setattr(memory, "is_installed", lambda package: True)
  monkeypatch.setattr(memory.sequences, "make_problem", make_problem)
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
