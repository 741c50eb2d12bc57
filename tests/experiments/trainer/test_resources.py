"""The memory, the compiled programs and the profile of a process."""

import os
import resource
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from experiments import train
from experiments.trainer import memory
from experiments.trainer.loop import WARM_UP, Diverged, Tracer
from experiments.trainer.memory import (
  available_memory,
  host_memory,
  process_size,
)


def test_a_compiled_program_is_counted_once():
  program = jax.jit(lambda x: 3 * x + 1)
  before = process_size()["compilations"]
  for _ in range(2):
    program(np.ones(7, np.float32))
    assert process_size()["compilations"] == before + 1


def test_the_size_of_a_process_is_in_megabytes(tmp_path, monkeypatch):
  arrays = [SimpleNamespace(nbytes=n) for n in (3_000_000, 500_000)]
  monkeypatch.setattr(jax, "live_arrays", lambda: arrays)
  monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096}.__getitem__)
  monkeypatch.setattr(memory, "STATM", tmp_path / "statm")
  size = process_size()
  assert size.pop("compilations") >= 0 and size == {"live_mb": 3.5}
  # The second number: 1,000 resident pages, of 4,096 bytes.
  (tmp_path / "statm").write_text("9000 1000 30 1 0 200 0\n")
  assert process_size()["resident_mb"] == 4.096


@pytest.mark.exhaustive
def test_a_profile_traces_some_training_steps(config, console):
  train.run(config, console, trace_steps=2)
  (trace,) = Path(config.job.run).glob("profile/**/*.xplane.pb")
  planes = jax.profiler.ProfileData.from_file(str(trace)).planes
  events = [e.name for p in planes for line in p.lines for e in line.events]
  assert sum(name.endswith(" take_step") for name in events) == 2


def test_a_run_too_short_to_be_profiled_says_so(tmp_path, console):
  for num_steps in (0, 2):  # for 0, nothing is to be profiled, or said
    with Tracer(tmp_path, num_steps, console) as tracer:
      for _ in range(3):
        tracer.before_step(None)
  assert console.file.getvalue() == (
    "nothing is profiled: this process must make more than 3 training steps, "
    "got 3\n"
  )


def test_only_the_first_process_is_profiled(tmp_path, monkeypatch, console):
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  monkeypatch.delattr(jax.profiler, "start_trace")  # a call would fail
  with Tracer(tmp_path, 2, console) as tracer:
    for _ in range(9):
      tracer.before_step(None)


@pytest.mark.parametrize("pending", [None, Diverged("the loss is nan")])
def test_a_full_disk_at_the_end_of_a_profile_is_named_and_hides_no_error(
  pending, tmp_path, console, monkeypatch
):
  def stop_trace():
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: x.pb; No space left")

  monkeypatch.setattr(jax.profiler, "start_trace", lambda directory: None)
  monkeypatch.setattr(jax.profiler, "stop_trace", stop_trace)
  expected, message = OSError, "^the profile cannot be written: .*x.pb; No spac"
  if pending:
    expected, message = Diverged, "^the loss is nan$"
  with (
    pytest.raises(expected, match=message),
    Tracer(tmp_path, 9, console) as tracer,
  ):
    for _ in range(WARM_UP + 1):
      tracer.before_step(None)
    if pending:
      raise pending
  said = "the profile cannot be written" in console.file.getvalue()
  assert said == (pending is not None)


def test_the_host_memory_is_at_most_the_limit_of_the_process(monkeypatch):
  limits = {"all": (resource.RLIM_INFINITY, 0), "less": (5000, 9000)}
  found = {}
  for name, limit in limits.items():
    granted = {resource.RLIMIT_AS: limit}  # of no other resource
    monkeypatch.setattr(resource, "getrlimit", granted.__getitem__)
    found[name] = host_memory()
  assert found["less"] == 5000 < 2**20 < found["all"]


def test_a_gpu_has_its_own_limit_and_a_cpu_that_of_the_host(monkeypatch):
  stats = {"bytes_in_use": 3, "bytes_limit": 5, "peak_bytes_in_use": 4}
  monkeypatch.setattr(memory, "host_memory", lambda: 7)
  for found, limit in ((stats, 5), (None, 7)):
    device = SimpleNamespace(memory_stats=lambda found=found: found)
    monkeypatch.setattr(jax, "local_devices", lambda device=device: [device])
    assert available_memory() == limit
