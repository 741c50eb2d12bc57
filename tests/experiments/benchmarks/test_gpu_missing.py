"""What the part gpu says where a GPU or a package is missing.

Also: which sizes reach its cases, and that a layer of PyTorch with other
results than ours is not timed.
"""

import pytest

from experiments.benchmarks.gpu import cases, part, torch_layers
from experiments.benchmarks.gpu.torch_layers import TorchLayer
from lstm_jax.sequence.implementation import VERSIONS
from tests.experiments.benchmarks.gpu_worker import InProcess
from tests.experiments.starting import start_all


@pytest.mark.parametrize(
  ("environment", "got"),
  [
    ({"platform": "cpu", "jax_version": (0, 12, 0)}, "a cpu and jax 0.12.0"),
    (
      {
        "platform": "gpu",
        "device": "NVIDIA A100",
        "compute_capability": "8.0",
        "jax_version": (0, 12, 0),
      },
      "NVIDIA A100 and jax 0.12.0",
    ),
    (
      {
        "platform": "gpu",
        "device": "NVIDIA H100",
        "compute_capability": "9.0",
        "jax_version": (0, 10, 2),
      },
      "NVIDIA H100 and jax 0.10.2",
    ),
    ({"why": "no worker starts in 90 s"}, "no worker starts in 90 s"),
    (
      {
        "platform": "gpu",
        "device": "NVIDIA H100",
        "compute_capability": "9.0",
        "jax_version": VERSIONS[1],  # the first that is too new
      },
      "NVIDIA H100 and jax " + ".".join(map(str, VERSIONS[1])),
    ),
  ],
)
def test_an_error_says_what_is_needed_and_what_was_found(environment, got):
  with pytest.raises(
    ValueError, match=r"needs an H100 or H200 .*(got|packages:) " + got
  ):
    part.check_device(environment)
  h100 = {"platform": "gpu", "compute_capability": "9.0"}
  part.check_device(h100 | {"jax_version": (0, 11, 2)})


@pytest.mark.exhaustive
@pytest.mark.programs
def test_without_a_gpu_the_error_is_one_line():
  (status, output, errors), (both, _, message) = start_all(
    [("benchmark", "--part=gpu"), ("benchmark", "--part=gpu", "--part=layer")],
    {"JAX_PLATFORMS": "cpu"},
  )
  assert (status, output) == (2, "")
  (line,) = errors.splitlines()
  assert line.startswith("error: --part=gpu needs an H100 or H200 and jax")
  assert both == 2 and "--part=gpu runs alone" in message


@pytest.mark.parametrize("installed", [True, False])
def test_a_worker_leaves_the_gpu_to_pytorch_only_if_that_is_installed(
  installed, monkeypatch
):
  monkeypatch.setattr(cases, "is_installed", lambda package: installed)
  sections = {section.name: section for section in cases.sections({}, 3)}
  on_cpu = [name for name in sections if sections[name].jax_on_cpu]
  assert on_cpu == (["pytorch"] if installed else [])
  assert sections["pytorch"].cases  # without PyTorch, these say so


def on_cpu():
  return "cpu"


def broken():
  raise OSError("libcudart.so.13: no such file")


@pytest.mark.parametrize(
  ("installed", "device", "why"),
  [
    (False, None, "torch is not installed"),
    (True, on_cpu, "PyTorch finds no GPU"),
    (True, broken, "OSError: libcudart.so.13: no such file"),
  ],
)
def test_pytorch_that_is_missing_broken_or_without_a_gpu_is_skipped(
  installed, device, why, monkeypatch
):
  monkeypatch.setattr(torch_layers, "is_installed", lambda package: installed)
  monkeypatch.setattr(torch_layers, "gpu_or_cpu", device)
  prepared = TorchLayer("gru", 4, 3, 2).prepare(frozenset())
  assert prepared.finish({}, {}) == ([], {"pytorch": why}, [])


def test_the_worker_is_stopped_where_there_is_no_gpu(console, monkeypatch):
  ended = []

  class Ending(InProcess):
    def __init__(self, jax_on_cpu=False):
      environment = {"platform": "cpu", "jax_version": VERSIONS[0]}
      # (kind, index of the case, if any, and content), as a worker sends them
      self.messages = [("ready", None, environment)]

    def stop(self):
      ended.append(self)

  monkeypatch.setattr(part, "WorkerProcess", Ending)
  with pytest.raises(ValueError, match="got a cpu and jax"):
    part.run({}, 3, console)
  assert len(ended) == 1


def test_the_sizes_and_the_rounds_reach_the_cases(console, monkeypatch):
  class Ready(InProcess):
    def __init__(self, jax_on_cpu=False):
      found = {"platform": "gpu", "compute_capability": "9.0"}
      self.messages = [("ready", None, found | {"jax_version": VERSIONS[0]})]

  def run_sections(sections, supervisor, environment, *others):
    return sections[-1].cases[0], environment["platform"], *others

  def save(record):
    pass

  monkeypatch.setattr(part, "WorkerProcess", Ready)
  monkeypatch.setattr(part, "run_sections", run_sections)
  case, *others = part.run({"hidden_size": 7, "seq_len": 9}, 3, console, save)
  assert (case.sizes, case.rounds) == ((7, 9, 1024), 3)  # B 1024, a default
  assert others == ["gpu", console, save]


@pytest.mark.parametrize("wrong", torch_layers.VARIANTS)
def test_a_layer_of_pytorch_that_computes_something_else_is_not_timed(
  wrong, monkeypatch
):
  timed = []

  def prove(cell, hidden_size, name):
    assert (cell, hidden_size) == ("gru", 4)
    if name == wrong:
      raise ValueError("another result")

  def time_calls(calls, *others):
    timed.append([*calls])
    return {}

  fakes = {
    "missing": lambda: None,
    "prove": prove,
    "make_call": lambda *given: dict,  # its call returns {}
    "synchronize": lambda result: None,
    "time_calls": time_calls,
  }
  for name, fake in fakes.items():
    monkeypatch.setattr(torch_layers, name, fake)
  monkeypatch.setattr(TorchLayer, "_inputs", lambda self: None)
  result = TorchLayer("gru", 4, 3, 2).prepare(frozenset()).finish({}, {})
  assert result == ([], {wrong: "ValueError: another result"}, [])
  right = [name for name in torch_layers.VARIANTS if name != wrong]
  assert timed == [right, right]  # outputs, gradients
