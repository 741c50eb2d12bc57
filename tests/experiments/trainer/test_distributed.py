"""Processes and devices that train as one: what they agree on and are given.

The processes are threads here; `test_processes` starts real ones.
"""

import json
import os
import signal
import socket
import threading
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.trainer import distributed
from experiments.trainer.config import CELLS, TrainConfig
from experiments.trainer.distributed import (
  batch_mesh,
  pays,
  share_batches,
  share_members,
)
from experiments.trainer.logger import initial_state
from experiments.trainer.records import replace, to_record
from experiments.trainer.run_dir import OpenedRun, recorded_flags

COUNT = "jax_num_cpu_devices"  # JAX's option for the number of devices
JOINING = {
  "distributed": True,
  "coordinator": "127.0.0.1:1234",
  "num_processes": 2,
  "process_id": 1,
  "join_timeout": 9,
}
ALONE = dict.fromkeys(JOINING) | {"distributed": False, "join_timeout": 9}


def changed(**values):
  return replace(TrainConfig(), **values)


@pytest.fixture
def initialized(monkeypatch):
  """Have JAX's `initialize` only record its arguments, in this list."""
  calls = []
  monkeypatch.setattr(
    jax.distributed, "initialize", lambda *given, **_: calls.append(given)
  )
  return calls


@pytest.fixture
def processes(monkeypatch):
  """Return a function: bodies, one of each process -> their results.

  Each body is called in a thread of its own, which takes the place of a
  process. An exception is a result, too.
  """
  local = threading.local()

  def gather(own):
    slots, barrier = local.shared
    slots[local.index] = np.array(jax.device_put(own))  # a float64 if x64
    barrier.wait(20)
    found = np.stack(slots)  # as JAX, only of one shape
    barrier.wait(20)
    return found

  utils = distributed.multihost_utils
  monkeypatch.setattr(utils, "process_allgather", gather)
  monkeypatch.setattr(utils, "broadcast_one_to_all", lambda x: gather(x)[0])
  monkeypatch.setattr(jax, "process_index", lambda: local.index)
  monkeypatch.setattr(jax, "process_count", lambda: len(local.shared[0]))
  monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
  monkeypatch.setattr(signal, "signal", lambda *call: None)  # of main threads

  def run(*bodies):
    shared = [None] * len(bodies), threading.Barrier(len(bodies))
    results = [None] * len(bodies)

    def process(index):
      local.index, local.shared = index, shared
      try:
        results[index] = bodies[index]()
      except BaseException as error:
        results[index] = error

    threads = [
      threading.Thread(target=process, args=(index,))
      for index in range(len(bodies))
    ]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    return results

  return run


def call(f, *arguments):
  return lambda: f(*arguments)


def test_a_port_where_another_program_listens_is_refused(initialized):
  with socket.create_server(("127.0.0.1", 0)) as taken:
    port = taken.getsockname()[1]
    address = {"coordinator": f"127.0.0.1:{port}"}
    with pytest.raises(ValueError, match=f"at port {port}: Address already in"):
      distributed.join(**JOINING | address | {"process_id": 0})
    assert initialized == []
    distributed.join(**JOINING | address)  # where process 0 listens
  distributed.join(**JOINING | address | {"process_id": 0})  # free now
  assert len(initialized) == 2


def test_a_process_that_has_joined_ends_by_signals_and_not_by_its_timeout(
  monkeypatch, interruptible
):
  handlers, calls, waiting, set_handler = [], [], [], signal.signal
  before = threading.enumerate()

  def initialize(*given, **options):
    calls.append(given)
    waiting.extend(t for t in threading.enumerate() if t not in before)
    handlers.append(signal.getsignal(signal.SIGINT))
    # JAX's handler of SIGTERM is unseen by Python: a call must replace it.
    monkeypatch.setattr(
      signal, "signal", lambda *call: calls.append(call) or set_handler(*call)
    )

  monkeypatch.setattr(jax.distributed, "initialize", initialize)
  distributed.join(**JOINING)
  assert calls[0] == ("127.0.0.1:1234", 2, 1)
  assert handlers == [signal.SIG_DFL]
  assert (signal.SIGTERM, signal.SIG_DFL) in calls
  assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
  (watchdog,) = waiting
  assert watchdog.interval == 9
  watchdog.join(5)  # it ends at once, and not after 9 s
  assert not watchdog.is_alive()


def test_a_single_process_asks_no_other(tmp_path, monkeypatch, initialized):
  distributed.join(**ALONE)
  assert initialized == []
  assert distributed.is_first()
  assert distributed.from_first_process(0.1) == 0.1
  distributed.check_same_checkpoint(tmp_path, 3)
  request = distributed.agreed_request([signal.SIGTERM], False)
  assert request == signal.SIGTERM
  assert distributed.agreed_request([], True) is None
  # To ask for it would start the devices before their number is set.
  monkeypatch.delattr(jax, "process_count")
  with distributed.failing_together():
    pass


def failing(error):
  with distributed.failing_together():
    if error:
      raise error


def test_an_error_of_any_process_is_an_error_in_all_of_them(processes):
  assert processes(*[call(failing, None)] * 3) == [None] * 3
  own = KeyError("own")
  first, second, third = processes(
    call(failing, None), call(failing, None), call(failing, own)
  )
  assert third is own
  for error in (first, second):
    assert isinstance(error, ValueError)
    assert f"{error}" == "process 2 stopped: see the error there"


def test_an_interrupted_process_leaves_the_others(monkeypatch, interruptible):
  events = []

  def gather(own):
    events.append(signal.getsignal(signal.SIGINT))
    return np.array([own, False])

  utils = distributed.multihost_utils
  monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
  monkeypatch.setattr(utils, "process_allgather", gather)
  monkeypatch.setattr(jax.distributed, "shutdown", lambda: events.append(None))
  for error in (KeyboardInterrupt, KeyError):
    with pytest.raises(error):
      failing(error)
  # Ctrl-C ends a process that waits for the others. None stands for `shutdown`,
  # by which only the interrupted process leaves them.
  assert events == [signal.SIG_DFL, None, signal.SIG_DFL]
  assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_processes_that_see_different_checkpoints_stop(tmp_path, processes):
  check = distributed.check_same_checkpoint
  assert processes(*[call(check, tmp_path, 20)] * 2) == [None, None]
  for error in processes(call(check, tmp_path, 20), call(check, tmp_path, 0)):
    assert f"see the same {tmp_path}: process 1 cannot" in str(error)


def opened(config, **facts):
  """Open the run directory as a process does; return what it gets."""
  facts = {"corpus_sha256": "12"} | facts
  with distributed.open_shared_run_dir(recorded_flags(config), facts) as found:
    (listed,) = found.directory.parent.iterdir()
    assert listed == found.directory
    return found


def test_all_processes_open_the_run_directory_of_the_first(
  processes, monkeypatch, tmp_path
):
  monkeypatch.chdir(tmp_path)  # the first process names a directory in runs/
  first, second = processes(*[call(opened, TrainConfig())] * 2)
  assert first == second and not first.resuming
  assert os.listdir(first.directory) == ["config.json"]
  resumed = replace(TrainConfig(), run=str(first.directory))
  first, second = processes(*[call(opened, resumed)] * 2)
  assert first == second and first.resuming


@pytest.mark.parametrize("method", ["access", "exists"])
def test_processes_that_cannot_write_to_the_run_directory_stop(
  method, processes, config, tmp_path, monkeypatch
):
  """As without permission, or on a file system of its own."""
  (tmp_path / "runs").mkdir()
  directory = tmp_path / "runs" / "one"
  config = replace(config, run=str(directory))
  owner = os if method == "access" else Path
  whole = getattr(owner, method)
  monkeypatch.setattr(
    owner,
    method,
    lambda path, *rest: jax.process_index() != 1 and whole(path, *rest),
  )
  errors = processes(*[call(opened, config)] * 3)
  monkeypatch.undo()
  for error in errors:
    assert f"of the first, {directory}: process 1 cannot" in str(error)
  assert os.listdir(directory) == ["config.json"]


@pytest.fixture
def started(monkeypatch):
  """Two cores, of which this dictionary has what JAX would be told."""
  made = {}
  kept = os.environ.get("XLA_FLAGS", "").split()
  kept = [flag for flag in kept if distributed.FORCED not in flag]
  monkeypatch.setenv("XLA_FLAGS", " ".join(kept))
  monkeypatch.setattr(jax.config, "update", made.__setitem__)
  monkeypatch.setattr(distributed, "num_cores", lambda: 2)
  return made


def test_only_the_cores_that_this_process_may_use_count(monkeypatch):
  monkeypatch.setattr(os, "cpu_count", lambda: 8)
  own = {0: {1, 5, 6}}  # of process 0, which is this one
  monkeypatch.setattr(os, "sched_getaffinity", own.get, raising=False)
  assert distributed.num_cores() == 3
  monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS
  assert distributed.num_cores() == 8


SMALL = {"hidden_size": 8}  # where two devices do not pay


@pytest.mark.parametrize(
  ("values", "meshes"),
  [
    ([{}], ["data:2"]),
    ([SMALL, {"devices": "1"}], ["", ""]),
    ([SMALL | {"devices": "4"}], ["data:4"]),
    ([{}, SMALL, {"mesh": "data:8"}], ["data:2", "", "data:8"]),
    ([{}, {"devices": "4"}, {"mesh": "data:8"}], ["", "data:4", "data:8"]),
    ([{"mesh": "data:2", "devices": "2"}, SMALL], ["data:2", ""]),
  ],
)
def test_the_configurations_that_need_the_most_devices_share_them(
  values, meshes, started
):
  """The others are unchanged: they need fewer devices, or have a mesh."""
  configs = [changed(**each) for each in values]
  expected = []
  for config, mesh in zip(configs, meshes, strict=True):
    if mesh != config.job.mesh:
      config = replace(config, mesh=mesh, devices=mesh.removeprefix("data:"))
    expected.append(config)
  assert share_batches(configs) == expected
  counts = [int(c.job.devices) for c in expected if c.job.devices.isdecimal()]
  most = max(counts, default=1)
  assert started == ({COUNT: most} if most > 1 else {})


def test_a_run_resumes_on_as_many_devices_as_it_started_on(started, tmp_path):
  config = changed(run=str(tmp_path))

  def count(config):
    (shared,) = share_batches([config])
    return shared.job.devices

  # A run that records auto was on one device.
  for recorded, expected in (("4", "4"), ("1", "auto"), ("auto", "auto")):
    record = to_record(config) | {"devices": recorded}
    (tmp_path / "config.json").write_text(json.dumps(record))
    assert count(config) == expected
    assert count(replace(config, overwrite=True)) == "2"
    assert count(replace(config, devices="8")) == "8"
  # With another batch size, the run is not resumed: a later error says so.
  (tmp_path / "config.json").write_text(json.dumps(record | {"devices": "4"}))
  assert count(replace(config, batch_size=6)) == "auto"
  assert share_members(config, 3) == config


@pytest.mark.parametrize(
  ("cores", "members", "flags", "expected"),
  [
    (2, 8, {}, "2"),
    (2, 3, {}, "auto"),  # one device
    (8, 6, {}, "6"),
    (6, 4, {}, "4"),
    (8, 1, {}, "auto"),
    (2, 9, {"devices": "3"}, "3"),
    (2, 8, {"devices": "1"}, "1"),
    (2, 4, {"mesh": "data:4"}, "auto"),  # which a later check refuses
  ],
)
def test_the_number_of_devices_divides_the_number_of_members(
  cores, members, flags, expected, started, monkeypatch
):
  monkeypatch.setattr(distributed, "num_cores", lambda: cores)
  config = share_members(changed(**flags), members)
  several = {} if expected in ("auto", "1") else {COUNT: int(expected)}
  assert (config.job.devices, started) == (expected, several)
  assert config.job.mesh == flags.get("mesh", "")


@pytest.mark.parametrize("reason", ["gpu", "processes", "flags", "started"])
def test_where_there_are_other_devices_auto_takes_one(
  reason, started, monkeypatch
):
  """As after an import of a user's cell that makes an array."""

  def has_started(*option):
    raise RuntimeError("the devices have started")

  if reason == "gpu":
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  if reason == "processes":
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
  if reason == "flags":
    monkeypatch.setenv("XLA_FLAGS", f"--xla_a=1 --{distributed.FORCED}=4")
  if reason == "started":
    monkeypatch.setattr(jax.config, "update", has_started)
  assert share_batches([TrainConfig()]) == [TrainConfig()]
  assert share_members(TrainConfig(), 4) == TrainConfig()
  assert (COUNT in started) == (reason == "gpu")
  # What is asked for is counted when the mesh is made.
  (asked,) = share_batches([changed(devices="32")])
  assert asked.job.mesh == ("data:32" if reason != "processes" else "")


@pytest.mark.parametrize(
  ("values", "count", "expected"),
  [
    ({}, 2, True),  # one layer of 256 units, batch size 32
    ({}, 1, False),
    ({}, 4, False),  # 8 sequences each, fewer than MIN_ROWS
    ({"batch_size": 63}, 2, False),
    ({"late_batch_size": 31}, 2, False),
    ({"late_batch_size": 31, "num_epochs": 2}, 2, True),  # it has no effect
    ({"hidden_size": 32}, 2, False),
    ({"hidden_size": 640}, 2, True),
    ({"hidden_size": 768}, 2, False),
    ({"hidden_size": 512, "num_layers": 2}, 2, False),
    ({"hidden_size": 256, "compute_dtype": jnp.bfloat16}, 2, True),
    ({"hidden_size": 512, "compute_dtype": jnp.bfloat16}, 2, False),
    ({"hidden_size": 128, "cell": CELLS["rnn"]}, 2, False),
    ({"cell": CELLS["min_gru"]}, 2, False),  # it has no recurrent weights
    ({"tokenizer": "word"}, 2, False),
    ({"implementation": "mosaic_gpu"}, 2, False),
  ],
)
def test_devices_share_batches_where_that_pays(values, count, expected):
  assert pays(changed(**values), count) == expected


def refuse(call, message):
  with pytest.raises(ValueError, match=message):
    call()


def test_processes_that_do_not_fit_together_are_refused(
  monkeypatch, initialized
):
  for options, message in (
    ({"distributed": False}, "--coordinator, .* go with --distributed"),
    ({"coordinator": "host:"}, "must be HOST:PORT, got 'host:'"),
    ({"coordinator": "host:http"}, "must be HOST:PORT, got 'host:http'"),
  ):
    refuse(lambda given=options: distributed.join(**JOINING | given), message)
  assert initialized == []
  found = [SimpleNamespace(process_index=i) for i in (0, 1, 1)]
  monkeypatch.setattr(jax, "devices", lambda: found)
  refuse(lambda: distributed.join(**JOINING), "1 in process 0, 2 in process 1$")
  found.append(SimpleNamespace(process_index=0))
  distributed.join(**JOINING)


@pytest.mark.parametrize(
  ("values", "members", "message"),
  [
    ({"devices": "all"}, 0, "must be auto or a number .* got 'all'"),
    ({"devices": "0"}, 0, "must be auto or a number .* got '0'"),
    ({"devices": "2", "mesh": "data:4"}, 0, "devices=2 and mesh='data:4'"),
    ({"devices": "9"}, 0, "^batch_size .* the mesh's 9 devices, got 32"),
    (
      {"devices": "9", "batch_size": 18, "late_batch_size": 20},
      0,
      "^late_batch_size must .* the mesh's 9 devices, got 20",
    ),
    ({"devices": "3"}, 4, "--devices must divide the number of .*, 4, got 3"),
  ],
)
def test_numbers_of_devices_that_do_not_fit_are_refused(
  values, members, message, started
):
  def share():
    config = changed(**values)
    share_members(config, members) if members else share_batches([config])

  refuse(share, message)


def test_a_mesh_has_all_devices_and_several_processes_need_one(monkeypatch):
  assert batch_mesh("") is None
  count = len(jax.devices())
  assert batch_mesh(f"data:{count}").size == count
  message = f"of data {count + 1} needs {count + 1} devices, got {count}"
  refuse(lambda: batch_mesh(f"data:{count + 1}"), message)
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  refuse(lambda: batch_mesh(""), r"2 processes share .* --mesh=data:")


@pytest.mark.parametrize("value", [0.1, float("inf"), ["two words", True]])
def test_all_processes_have_the_value_of_the_first(value, processes):
  get = distributed.from_first_process
  with jax.enable_x64(False):  # as in a training, where arrays become float32
    assert processes(call(get, value), call(get, 7)) == [value, value]


def test_processes_stop_together_by_the_request_of_any(processes):
  term, interrupt = signal.SIGTERM, signal.SIGINT
  for requests, agree_now, expected in (
    ([[term], []], True, term),
    ([[], [interrupt]], True, interrupt),
    ([[term], [interrupt]], True, term),
    ([[], []], True, None),
    ([[term], []], False, None),
  ):
    agree = distributed.agreed_request
    found = processes(*(call(agree, own, agree_now) for own in requests))
    assert found == [expected, expected]


def test_an_error_of_the_first_process_is_an_error_in_all(processes, config):
  """Of the run directory, which is a file here, or of the first sample."""
  finished = replace(config, run=config.data.corpus)
  first, second = processes(*[call(opened, finished)] * 2)
  assert "process" not in str(first) and config.data.corpus in str(first)
  assert str(second) == "process 0 stopped: see the error there"

  def sample(title, params):
    if jax.process_index() == 0:
      raise OSError("full disk")

  def begin():
    state = SimpleNamespace(params=None)
    setup = SimpleNamespace(make_state=lambda: state, shardings=None)
    logger = SimpleNamespace(
      resume=lambda restored: None, sample_during_training=sample
    )
    opened_run = OpenedRun(Path(config.job.run), resuming=False)
    initial_state(setup, logger, None, opened_run, None)

  first, second = processes(begin, begin)
  assert isinstance(first, OSError)
  assert "process 0 stopped" in str(second)


@pytest.mark.parametrize(
  ("changes", "facts", "flag"),
  [
    ({"seed": 12345}, {}, "seed is 0 there and 12345 here"),
    ({"mesh": "data:3"}, {}, "mesh is '' there and 'data:3' here"),
    ({}, {"corpus_sha256": "3"}, "corpus_sha256 is '12' there and '3' here"),
    ({"quiet": True}, {}, None),
  ],
)
def test_processes_of_different_runs_are_refused(
  changes, facts, flag, processes, config, tmp_path
):
  runs = tmp_path / "runs"
  runs.mkdir()
  config = replace(config, run=str(runs / "one"))
  other = replace(config, **changes)
  first, second = processes(
    call(opened, config), lambda: opened(other, **facts)
  )
  if flag is None:
    assert first == second
  else:
    both = "every process must have the flags and the corpus of the first: "
    assert str(first) == f"{both}those of process 1 differ"
    assert str(second) == f"{both}{flag}"
    assert os.listdir(runs) == []
