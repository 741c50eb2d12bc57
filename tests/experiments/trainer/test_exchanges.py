"""What several processes exchange, without starting them."""

import signal
from contextlib import contextmanager
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from experiments.trainer import distributed
from experiments.trainer.config import TrainConfig
from experiments.trainer.records import replace
from experiments.trainer.run_dir import OpenedRun, recorded_flags
from experiments.trainer.start import initial_state
from tests.patterns import exact


def two_processes(monkeypatch, gathered):
  """Have JAX say that this process is the first of two.

  Args:
    gathered: `process_allgather`: takes this process's value; returns those of
      all. None where nothing is gathered.
  """
  utils = distributed.multihost_utils
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
  monkeypatch.setattr(utils, "process_allgather", gathered)
  monkeypatch.setattr(utils, "broadcast_one_to_all", lambda data: data)
  monkeypatch.setattr(utils, "sync_global_devices", lambda name: None)


def test_all_processes_have_the_value_of_the_first_in_float64(monkeypatch):
  two_processes(monkeypatch, None)
  utils, sent = distributed.multihost_utils, []

  def broadcast(data):
    sent.append(jax.device_put(data))
    return sent[0]

  monkeypatch.setattr(utils, "broadcast_one_to_all", broadcast)
  with jax.enable_x64(False):  # as in a training, where arrays become float32
    for own in (0.1, 0.7):  # in the first process, and in another
      assert distributed.from_first_process(own) == 0.1


def test_processes_stop_together_by_the_request_of_any(monkeypatch):
  requested = [signal.SIGTERM]
  two_processes(monkeypatch, lambda own: np.array([own, signal.SIGINT]))
  assert distributed.agreed_request(requested, False) is None
  assert distributed.agreed_request(requested, True) == signal.SIGTERM
  assert distributed.agreed_request([], True) == signal.SIGINT
  two_processes(monkeypatch, lambda own: np.array([own, 0]))
  assert distributed.agreed_request(requested, True) == signal.SIGTERM
  assert distributed.agreed_request([], True) is None


def test_processes_that_see_different_checkpoints_stop(tmp_path, monkeypatch):
  two_processes(monkeypatch, lambda step: np.array([step, 20]))
  distributed.check_same_checkpoint(tmp_path, 20)
  for step, name in (
    (0, "no checkpoint"),
    (10, "the checkpoint of step 10"),
  ):
    message = (
      f"see the same {exact(tmp_path)}: the first process sees {name}, and "
      "process 1 the checkpoint of step 20$"
    )
    with pytest.raises(ValueError, match=message):
      distributed.check_same_checkpoint(tmp_path, step)


OWN = TrainConfig(), {"corpus_sha256": "12"}  # (config, facts)


def check_as(process, run, sent, differs, monkeypatch):
  """Compare the (config, facts) of a process with those that process 0 sends.

  `differs` is what process 0 gathers from process 1.
  """

  def broadcast(data):
    if process == 0:
      sent.append(data)
      return data
    received = sent.pop(0)
    assert received.shape == data.shape  # as JAX requires
    return received

  def gather(own):
    return np.array([0, own] if process else [own, differs])

  two_processes(monkeypatch, gather)
  utils = distributed.multihost_utils
  monkeypatch.setattr(utils, "broadcast_one_to_all", broadcast)
  config, facts = run
  distributed.check_same_run_in_all(recorded_flags(config), facts)


@pytest.mark.parametrize(
  ("first", "flag"),
  [
    ((replace(OWN[0], seed=12345), OWN[1]), "seed"),  # a longer record
    ((replace(OWN[0], mesh="data:4"), OWN[1]), "mesh"),
    ((OWN[0], {"corpus_sha256": "3"}), "corpus_sha256"),  # a shorter one
  ],
)
def test_processes_of_different_runs_are_refused(first, flag, monkeypatch):
  sent = []
  with pytest.raises(ValueError, match=r"those of process 1 differ$"):
    check_as(0, first, sent, True, monkeypatch)
  with pytest.raises(ValueError, match=f"of the first: {flag} is .* there"):
    check_as(1, OWN, sent, True, monkeypatch)


def test_processes_of_the_same_run_go_on(monkeypatch):
  sent = []
  check_as(0, OWN, sent, False, monkeypatch)
  check_as(1, OWN, sent, False, monkeypatch)
  assert not sent


def test_an_error_of_any_process_is_an_error_in_all_of_them(monkeypatch):
  others = []  # whether each of them has failed

  def prepare(error):
    with distributed.failing_together():
      if error:
        raise error

  two_processes(monkeypatch, lambda own: np.array([own, *others]))
  others[:] = [False, False]
  prepare(None)
  with pytest.raises(KeyError, match="own"):  # the others learn of it
    prepare(KeyError("own"))
  others[:] = [False, True]
  with pytest.raises(ValueError, match=r"^process 2 stopped: see the error "):
    prepare(None)


def test_one_process_starts_no_device_before_their_number_is_set(monkeypatch):
  def start():
    raise AssertionError("JAX has started its devices")

  monkeypatch.setattr(jax, "process_count", start)
  with distributed.failing_together():
    pass


def test_an_interrupted_process_leaves_the_others(monkeypatch, interruptible):
  events = []

  def gather(own):
    events.append(signal.getsignal(signal.SIGINT))
    return np.array([own, False])

  two_processes(monkeypatch, gather)
  monkeypatch.setattr(jax.distributed, "shutdown", lambda: events.append(None))
  handler = signal.getsignal(signal.SIGINT)
  for error in (KeyboardInterrupt, KeyError):
    with pytest.raises(error), distributed.failing_together():
      raise error
  # Ctrl-C ends a process that waits for the others. None stands for `shutdown`,
  # by which only the interrupted process leaves them.
  assert events == [signal.SIG_DFL, None, signal.SIG_DFL]
  assert signal.getsignal(signal.SIGINT) is handler


def test_the_others_learn_that_the_first_sample_cannot_be_written(
  tmp_path, monkeypatch
):
  def fail(title, params):
    raise OSError("full disk")

  gathered = []
  two_processes(monkeypatch, lambda own: gathered.append(own) or np.zeros(2))
  state = SimpleNamespace(params=None)
  setup = SimpleNamespace(make_state=lambda: state, shardings=None)
  logger = SimpleNamespace(
    resume=lambda restored: None, sample_during_training=fail
  )
  opened = OpenedRun(tmp_path, resuming=False)
  with pytest.raises(OSError, match="full disk"):
    initial_state(setup, logger, None, opened, None)
  # Whether this process has failed: after `resume`, and after the sample.
  assert gathered == [False, True]


def test_a_dry_run_in_one_process_only_is_refused(monkeypatch):
  two_processes(monkeypatch, lambda own: np.array([0, own]))
  distributed.check_same_dry_run(True)
  utils = distributed.multihost_utils
  # As `from_first_process` sends numbers: the bytes of a float64.
  first = np.frombuffer(np.float64(0).tobytes(), np.uint8)
  monkeypatch.setattr(utils, "broadcast_one_to_all", lambda data: first)
  with pytest.raises(ValueError, match="dry_run is False there and True here"):
    distributed.check_same_dry_run(True)


@pytest.fixture
def open_as(monkeypatch):
  """Return a function: (process, run) -> the `OpenedRun` of that process.

  Call it for process 0 first: process 1 receives what process 0 has sent. Only
  process 0 opens the directory: `run` is what its `open_run_dir` yields, or
  None for an error.
  """
  sent, failures = [], []

  def broadcast(data):
    if jax.process_index() == 0:
      sent.append(data)
    return sent[-1]

  @contextmanager
  def open_run_dir(run, facts, may_extend):
    assert may_extend
    if run is None:
      raise ValueError("no run")
    yield run

  def gather(failed):
    if jax.process_index() == 0:
      failures.append(failed)
    return np.array([failures[-1], failed])

  two_processes(monkeypatch, gather)
  utils = distributed.multihost_utils
  monkeypatch.setattr(utils, "broadcast_one_to_all", broadcast)
  monkeypatch.setattr(distributed, "open_run_dir", open_run_dir)
  monkeypatch.setattr(distributed, "check_same_run_in_all", lambda *both: None)
  monkeypatch.setattr(distributed, "check_seen_by_all", lambda directory: None)

  def run_as(process, run):
    monkeypatch.setattr(jax, "process_index", lambda: process)
    # `run` in place of the configuration: the `open_run_dir` above yields it.
    with distributed.open_shared_run_dir(run, {}) as opened:
      return opened

  return run_as


@pytest.mark.parametrize("resuming", [False, True])
def test_all_processes_open_the_run_directory_of_the_first(
  resuming, tmp_path, open_as
):
  run = OpenedRun(tmp_path / "é", resuming=resuming)
  assert open_as(0, run) == open_as(1, None) == run


def test_an_error_of_the_first_process_is_an_error_in_all_of_them(open_as):
  with pytest.raises(ValueError, match=r"^no run$"):
    open_as(0, None)
  with pytest.raises(ValueError, match="process 0 stopped: see the error the"):
    open_as(1, None)


def test_processes_that_cannot_write_to_the_run_directory_stop(
  tmp_path, monkeypatch
):
  def write_as_process_1(name):
    (first,) = tmp_path.iterdir()
    (tmp_path / first.name.replace("process0", "process1")).touch()

  two_processes(monkeypatch, None)
  message = f"of the first, {exact(tmp_path)}: process 1 cannot"
  with pytest.raises(ValueError, match=message):
    distributed.check_seen_by_all(tmp_path)
  assert list(tmp_path.iterdir()) == []
  utils = distributed.multihost_utils
  monkeypatch.setattr(utils, "sync_global_devices", write_as_process_1)
  distributed.check_seen_by_all(tmp_path)
  with pytest.raises(ValueError, match="process 0, process 1 cannot"):
    monkeypatch.setattr(utils, "sync_global_devices", lambda name: None)
    distributed.check_seen_by_all(tmp_path / "missing")
  (tmp_path / "file").touch()  # in place of a directory: another error
  with pytest.raises(ValueError, match="process 0, process 1 cannot"):
    distributed.check_seen_by_all(tmp_path / "file")
