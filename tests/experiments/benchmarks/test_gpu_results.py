"""What is measured of the programs on a GPU, and how it is shown."""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments.benchmarks.gpu import part, peers, picture, timing
from experiments.benchmarks.gpu.case import Prepared, Result
from experiments.benchmarks.gpu.cases import ALWAYS, LIBRARIES
from experiments.benchmarks.gpu.peers import PEERS
from experiments.benchmarks.gpu.report import summary_tables
from experiments.benchmarks.gpu.supervisor import Section, Supervisor
from experiments.benchmarks.gpu.timing import (
  MOST_CALLS,
  count_calls,
  memory_of,
  several,
  time_calls,
)
from experiments.benchmarks.gpu.torch_layers import VARIANTS
from lstm_jax.sequence import Autodiff, Explicit
from tests.experiments.benchmarks.gpu_worker import InProcess


def test_a_measurement_is_of_several_calls_and_one_wait():
  calls, waits = [], []

  def call():
    calls.append(1)
    return len(calls)

  assert 1 < count_calls(call, waits.append) <= MOST_CALLS
  assert len(calls) == 2  # the first loads the program, the second is timed
  several(call, waits.append, 5)()
  assert len(calls) == 7 and waits == [1, 2, 7]


@pytest.mark.parametrize(
  ("seconds", "count"), [(0.0, MOST_CALLS), (0.001, 5), (0.5, 1)]
)
def test_a_measurement_takes_five_milliseconds_or_one_call(
  seconds, count, monkeypatch
):
  clock = iter((10.0, 10.0 + seconds))  # around the second call
  fake_time = SimpleNamespace(perf_counter=lambda: next(clock))
  monkeypatch.setattr(timing, "time", fake_time)
  assert count_calls(lambda: None, lambda result: None) == count


def test_a_time_is_that_of_a_time_step_in_microseconds(monkeypatch):
  seconds = {"a": [1.0, 2.0, 3.0, 4.0, 5.0], "b": [6.0] * 5}

  def measure(runs, rounds):
    assert rounds == 5
    for run in runs.values():
      run()
    return seconds

  counts, called = iter((4, 10)), []
  monkeypatch.setattr(timing, "count_calls", lambda call, wait: next(counts))
  monkeypatch.setattr(timing, "measure", measure)
  calls = {name: lambda name=name: called.append(name) for name in seconds}
  # Seconds, divided by 4 or 10 calls of 1000 time steps each.
  assert time_calls(calls, lambda result: None, 5, 1000) == {
    "a": {"us_per_step": 750.0, "quartiles_us": [500.0, 1000.0]},
    "b": {"us_per_step": 600.0, "quartiles_us": [600.0, 600.0]},
  }
  assert called == ["a"] * 4 + ["b"] * 10


def test_the_peak_of_the_memory_is_not_always_known():
  for peak, known in ((7, 7), (0, None)):
    memory = {"temp_size_in_bytes": 0, "peak_memory_in_bytes": peak}
    program = SimpleNamespace(
      memory_analysis=lambda m=memory: SimpleNamespace(**m)
    )
    assert memory_of(program) == {"temporary_bytes": 0, "peak_bytes": known}


def test_a_peer_is_made_with_what_its_name_says(monkeypatch):
  made = []

  def keep(*args, **options):
    made.append((*args, *options.items()))

  monkeypatch.setattr(peers.layers, "ours", keep)
  monkeypatch.setattr(peers.resets, "flax_layer", keep)
  for kind, adjoint, implementation in (
    ("kernel", Explicit(), "mosaic_gpu"),
    ("scan", Explicit(), None),
    ("autodiff", Autodiff(), None),
  ):
    for dtype, ending in ((None, ""), (np.dtype("bfloat16"), " bfloat16")):
      PEERS[kind + ending].make("gru", "weights", "starts")
      assert made.pop() == (
        *("gru", "weights", adjoint, ("reset", "starts")),
        ("compute_dtype", dtype),
        ("implementation", implementation),
      )
  PEERS["flax bfloat16"].make("gru", "weights", "starts")
  assert made.pop() == ("gru", "weights", "starts", np.dtype("bfloat16"))


def test_the_figure_has_only_gradients_and_the_floor_of_bfloat16(
  tmp_path, monkeypatch
):
  found = []

  def savefig(figure, *args, **kwargs):
    for panel in figure.axes:
      lines = {n.get_label(): n.get_xydata().tolist() for n in panel.lines}
      found.append((panel.get_title(), lines))
      assert panel.get_xscale() == panel.get_yscale() == "log"

  def row(hidden_size, peer, us, floor, **changes):
    row = {"part": "gpu layer", "cell": "gru", "batch_size": 16, "peer": peer}
    times = {"us_per_step": us, "floor_us": floor}
    row |= {"hidden_size": hidden_size, "backward": True}
    return row | times | changes

  monkeypatch.setattr(Figure, "savefig", savefig)
  rows = [
    row(64, "scan", 7.0, 1.0, batch_size=128),
    row(32, "scan", 7.0, 1.0, part="gpu policy"),
    row(32, "scan", 5.0, 1.0, cell="rnn"),
    row(128, "kernel bfloat16", 4.0, 0.5),
    row(64, "kernel bfloat16", 2.0, 0.25),
    row(64, "kernel bfloat16", 9.0, 9.0, backward=False),
    row(256, "scan bfloat16", 6.0, 0.75),  # the only floor at this H
    row(64, "scan", 8.0, 1.0),
    # A lower floor, since its outputs are bfloat16 too: not "our floor".
    row(64, "pytorch bfloat16", 3.0, 0.125),
  ]
  assert picture.draw(rows, tmp_path / "figure.png")
  assert found == [
    (
      "gru, B 16",
      {
        "kernel bfloat16": [[64, 2], [128, 4]],
        "scan bfloat16": [[256, 6]],
        "scan": [[64, 8]],
        "pytorch bfloat16": [[64, 3]],
        "our floor, bfloat16": [[64, 0.25], [128, 0.5], [256, 0.75]],
      },
    ),
    ("gru, B 128", {"scan": [[64, 7]]}),
    ("rnn, B 16", {"scan": [[32, 5]]}),
    ("rnn, B 128", {}),
  ]


def test_every_program_of_a_layer_has_a_line_of_its_own():
  styles = picture.STYLES
  assert {*ALWAYS, *LIBRARIES, *VARIANTS} <= {*styles}
  lines = {(s["color"], s.get("linestyle", "-")) for s in styles.values()}
  assert len(lines) == len(styles)


def test_the_last_tables_set_the_kernel_beside_the_others():
  row = {
    "part": "gpu layer",
    "cell": "gru",
    "backward": True,
    "hidden_size": 64,
    "seq_len": 3,
    "batch_size": 8,
    "floor_us": 0.5,
  }
  times = {
    "kernel bfloat16": 2.0,
    "scan": 9.0,
    "autodiff": 1.0,
    "haiku": 7.0,
    "jax.experimental.rnn": 6.0,
    "pytorch TF32": 5.0,
  }
  rows = [row | {"peer": p, "us_per_step": us} for p, us in times.items()]
  kernel = row | {"peer": "kernel", "us_per_step": 3.0}
  others = [
    kernel | {"seq_len": 7},
    kernel | {"seq_len": 7, "batch_size": 16, "floor_us": 0.3},
    kernel | {"part": "gpu race"},
    kernel | {"part": "gpu policy"},
    kernel | {"backward": False},
  ]
  tables = [*summary_tables(rows + others)]
  titles = [table.title.partition(": µs per time step")[0] for table in tables]
  assert titles == [
    "outputs alone, T 3",
    "gradient, T 3",
    "gradient, T 7",
    "gradient, with resets, T 3",
  ]
  cells = [
    [*zip(*(column.cells for column in table.columns), strict=True)]
    for table in tables
  ]
  # bfloat16/TF32, of PyTorch's cuDNN also /float32, with – for what was not
  # timed; last, how many times its floor the kernel takes.
  only_kernel = ("gru 64×8", "–/3", "", "", "", "–/6.0")
  assert cells == [
    [only_kernel],
    [("gru 64×8", "2/–", "–/9", "6 jax rnn", "–/5/–", "4.0/–")],
    [only_kernel, ("gru 64×16", "–/3", "", "", "", "–/10.0")],
    [only_kernel],
  ]


@dataclass(frozen=True)
class Found:
  """A case that returns a given result."""

  result: Result
  name = "a case"
  kernels = frozenset()
  needs_kernels = False

  def prepare(self, left_out):
    return Prepared({}, lambda programs, errors: self.result)


def test_what_a_case_has_found_is_printed_and_a_reason_to_skip_once(console):
  row = {"part": "gpu check", "case": "a", "failed": False}
  check = row | {"error": 1.5e-3, "allowed": 5e-3, "array": "hs"}
  race, bad = (row | {"case": "b", "failed": wrong} for wrong in (False, True))
  skipped = {"haiku": "it is not installed"}
  found = Found(Result([check], skipped, []))
  other = Found(Result([race, bad], skipped, ["b: hs differs"]))
  sections = [Section("one", [found], 1e9), Section("two", [other], 1e9)]
  supervisor = Supervisor(InProcess, 1e9)
  given = supervisor, supervisor.environment(), console, lambda record: None
  record = part.run_sections(sections, *given)
  assert record["rows"] == [check, race, bad]
  assert record["failures"] == ["b: hs differs"]
  entry = {"case": "a case", "what": "haiku", "why": "it is not installed"}
  assert record["skipped"] == [entry] * 2
  assert [*record["seconds"]] == ["one", "two"]
  begins = "ok ", "FAILED ", "skipped: "
  lines = console.file.getvalue().splitlines()
  assert [line for line in lines if line.startswith(begins)] == [
    "ok a: 1.5e-03 of 5e-03, hs",
    "skipped: haiku: it is not installed",
    "FAILED b: hs differs",
    "ok b: the same each time",
    "FAILED b: hs differs",  # once more at the end
  ]
  assert lines[-1] == "2 checks passed; 1 failure of checks and programs"
