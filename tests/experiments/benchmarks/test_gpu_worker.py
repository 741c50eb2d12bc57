"""A worker runs each case with its own programs, and stops when it must."""

from dataclasses import dataclass
from types import SimpleNamespace

import jax
import pytest

from experiments.benchmarks.gpu import worker
from experiments.benchmarks.gpu.case import DeviceLost, Prepared, Result, reason
from experiments.benchmarks.gpu.worker import work
from tests.experiments.benchmarks.gpu_worker import Fake


def test_the_programs_of_a_case_are_its_own():
  @dataclass(frozen=True)
  class Compiled:
    name: str

    def prepare(self, left_out):
      def finish(programs, errors):
        return Result([programs], {}, [])

      program = SimpleNamespace(compile=lambda: self.name)
      return Prepared({"program": program}, finish)

  messages = []
  assert work([Compiled("a"), Compiled("b")], frozenset(), messages.append)
  results = [found.rows for kind, _, found in messages if kind == "result"]
  assert results == [[{"program": "a"}], [{"program": "b"}]]


def test_what_failed_before_an_error_still_counts():
  @dataclass(frozen=True)
  class Failing:
    name: str

    def prepare(self, left_out):
      def finish(programs, errors):
        raise ValueError("no reference")

      before = Result([], {"kernel": "too large"}, ["a: kernel: too large"])
      return Prepared({}, finish, before)

  messages = []
  assert work([Failing("a")], frozenset(), messages.append)
  (result,) = [found for kind, _, found in messages if kind == "result"]
  failures = ["a: kernel: too large", "a: ValueError: no reference"]
  assert result == ([], {"kernel": "too large"}, failures)


@pytest.mark.parametrize(("when", "index"), [("prepare", None), ("run", 0)])
def test_a_lost_device_ends_the_work(when, index):
  messages, lost = [], Fake("a", does="lose", when=when)
  assert not work([lost, Fake("b")], frozenset(), messages.append)
  assert messages[-1] == ("lost", index, "an illegal access")


def test_an_error_after_which_the_device_is_silent_means_that_it_is_lost(
  monkeypatch,
):
  error = jax.errors.JaxRuntimeError("an illegal access\nmore")
  assert reason(error) == "JaxRuntimeError: an illegal access"

  def zeros(shape):
    raise error

  monkeypatch.setattr(jax.numpy, "zeros", zeros)
  with pytest.raises(DeviceLost, match=r"^JaxRuntimeError: an illegal access$"):
    reason(error)
  assert reason(ValueError("a size")) == "ValueError: a size"


@pytest.mark.parametrize("jax_on_cpu", [True, False])
def test_a_worker_takes_the_cpu_before_it_looks_for_devices(
  jax_on_cpu, tmp_path, monkeypatch
):
  class Connection:
    def send(self, message):
      steps.append(message)

    def recv(self):
      raise EOFError

  def update(*setting):
    steps.append(setting)

  def describe():
    steps.append("looks")
    return "environment"

  steps = []
  config = SimpleNamespace(update=update)
  monkeypatch.setattr(worker, "jax", SimpleNamespace(config=config))
  monkeypatch.setattr(worker, "describe", describe)
  monkeypatch.setattr(worker.os, "dup2", lambda *descriptors: None)
  with pytest.raises(EOFError):
    worker.serve(Connection(), str(tmp_path / "errors"), jax_on_cpu)
  setting = [("jax_platforms", "cpu")] if jax_on_cpu else []
  assert steps == [*setting, "looks", ("ready", None, "environment")]
