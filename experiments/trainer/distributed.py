"""Processes that train as one, and the devices that share a training.

Every process runs the same program on its own devices. Every process evaluates
by itself, and the first one's result counts; the first alone samples, prints
and writes, except that each writes its shards into the checkpoints. What only
one of them knows (the run directory, a request to stop) is exchanged at points
of the program that every process reaches.

Devices: the cores of a CPU share a training, or the members of a sweep.

XLA computes the small products of a time step on all cores, but dispatches and
synchronizes them at every step, and computes most other operations on one core.
JAX can split a CPU into several devices. With data parallelism, each then
trains on its share of the batch, the gradients are added up once in a training
step, and the results are those of one device but for rounding. These are the
times of both ways, in milliseconds, for a training step of a language model
with Adam on two cores (T 64, batch size 32):

  lstm      one device  two      gru       one device  two
    H 64           2.4  2.1        H 128          6.0  4.8
    H 128          5.8  5.1        H 256         18.4 11.1
    H 256         18.6 13.4        H 512         46.0 36.7
    H 512         52.2 43.9        H 1024         131  157
    H 640         71.8 61.3      rnn
    H 768         97.8 99.9        H 128          2.2  2.5
    H 1024         175  226        H 256          5.2  4.5
    H 512 twice    129  128        H 1024        55.7 45.9
    H 256, B 8     6.0  6.9
    H 256, B 64   38.0 26.7      min_gru
  mogrifier_lstm                   H 256          2.4  2.9
    H 256         40.6 26.4        H 512          5.2  4.7

(2 cores of an AMD EPYC (Zen 5), jax 0.12.0.1, float32, V 65; "twice" is two
layers. This is another run than the table of the README, and the speed of the
machine varies: times compare within one table.) Every device reads all weights
at every time step, so that matrices which fill the cache are read more slowly
by two devices than by one. Dividing Adam's moments among the devices changes
nothing. More cores were not measured, and are taken to be like two. `pays` is a
rule of sizes that was made from these times; it leaves out small gains, as at
H 64.
"""

import json
import os
import signal
import socket
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from experiments.trainer.config import AUTO, LARGEST, JobConfig, TrainConfig
from experiments.trainer.format import counted
from experiments.trainer.own_cell import init_shapes
from experiments.trainer.records import replace
from experiments.trainer.run_dir import (
  OpenedRun,
  changed_flags,
  described,
  open_run_dir,
  read_config,
)
from lstm_jax.language.options import option
from lstm_jax.language.params import init_params
from lstm_jax.training import make_members_mesh, make_mesh, parse_mesh

MIN_ROWS = 16  # least number of sequences of a batch on each device
MIN_RECURRENT = 2**15  # least elements of a layer's recurrent weights
MAX_WEIGHTS = 2**21  # most elements of the weights of all layers
FORCED = "xla_force_host_platform_device_count"  # in XLA_FLAGS

Config = TypeVar("Config", bound=Any)


def share_batches(configs: Sequence[TrainConfig]) -> list[TrainConfig]:
  """Start JAX's CPU devices; return the configurations with their meshes.

  A configuration is unchanged if it needs one device, has a mesh, or needs
  fewer devices than another configuration. On a GPU, all of them are unchanged.
  Call this before JAX starts a device.

  Args:
    configs: of all trainings of this process.

  Raises:
    ValueError: --devices does not divide a batch size, is for another kind of
      device than a CPU, or is given with several processes.
  """
  counts = [  # 0 if --mesh alone says which devices share the training
    0 if c.job.mesh and c.job.devices == AUTO else num_devices(c)
    for c in configs
  ]
  for config, count in zip(configs, counts, strict=True):
    for size in config.batching.batch_sizes:
      if config.job.devices != AUTO and size % count:
        raise ValueError(
          f"--devices must divide the batch size of {size}, got {count}"
        )
  most = max(counts)
  explicit = any(config.job.devices != AUTO for config in configs)
  advice = f": pass --mesh=data:{most}"
  if not _start(most, explicit, advice):
    return list(configs)
  return [
    replace(config, mesh=f"data:{most}", devices=str(most))
    if count == most and not config.job.mesh
    else config
    for config, count in zip(configs, counts, strict=True)
  ]


def share_members(config: Config, num_members: int) -> Config:
  """Start the CPU devices that share an ensemble's members.

  For auto, the number of devices is that of the run that is resumed, or else
  the largest number that divides the number of members and is at most the
  number of cores. Call this before JAX starts a device.

  Args:
    config: its `job` has --devices.
    num_members: models that are trained together.

  Returns:
    The configuration with the number of devices; unchanged if that number is 1,
    if --mesh is given, if auto cannot start several, or if the number of the
    run that is resumed does not divide the members.

  Raises:
    ValueError: --devices does not divide the members, is for another kind of
      device than a CPU, or is given with several processes.
  """
  counts = range(1, min(num_cores(), num_members) + 1)
  most = max(count for count in counts if num_members % count == 0)
  count, explicit = _requested(config.job) or most, config.job.devices != AUTO
  if num_members % count:
    if not explicit:  # `count` is of a run in --run with other members
      return config
    raise ValueError(
      "--devices must divide the number of models that are trained together, "
      f"{num_members}, got {count}"
    )
  if config.job.mesh or not _start(count, explicit):
    return config
  return replace(config, devices=str(count))


def batch_mesh(job: JobConfig) -> Mesh | None:
  """Return the mesh of a run; None for one device.

  It is that of --mesh, which `share_batches` sets for --devices.

  Raises:
    ValueError: JAX has started more or fewer devices, for example as many as
      XLA_FLAGS gives, or one for an imported module that has made an array; or
      there are several processes and no mesh.
  """
  started = len(jax.devices())
  if not job.mesh:
    if (processes := jax.process_count()) > 1:
      raise ValueError(
        f"{processes} processes share a training by --mesh: "
        f"pass --mesh=data:{started}"
      )
    return None
  if job.devices != AUTO and int(job.devices) != started:
    raise ValueError(
      f"--devices must be {started}, as many as JAX has started, "
      f"got {job.devices}"
    )
  return make_mesh(parse_mesh(job.mesh))


def members_mesh(job: JobConfig, num_members: int) -> Mesh | None:
  """Return the devices that share an ensemble's members; None for one device.

  An ensemble has one device if the number of devices does not divide its number
  of members. This is no error, since a program may train several ensembles, for
  example one with a member for each learning rate that it tries.

  Raises:
    ValueError: --devices is more than there are.
  """
  count = 1 if job.devices == AUTO else int(job.devices)
  if count > len(jax.devices()):
    raise ValueError(
      f"--devices must be at most {len(jax.devices())}, as many as JAX has "
      f"started, got {count}"
    )
  shared = count > 1 and num_members % count == 0
  return make_members_mesh(count) if shared else None


def _start(count: int, explicit: bool, advice: str = "") -> bool:
  """Start a number of CPU devices; return whether there are several to use.

  Args:
    count: the number of devices.
    explicit: whether --devices asks for them.
    advice: the end of the message if JAX runs on another kind of device.

  Raises:
    ValueError: --devices asks for CPU devices, but there are several processes,
      or JAX runs on another kind of device.
  """
  if count < 2:
    return False
  if jax.distributed.is_initialized():
    if explicit:
      raise ValueError("--devices is for one process: pass --mesh for several")
    return False
  if not start_cpu_devices(count) and not explicit:
    return False
  if jax.default_backend() != "cpu":
    if explicit:
      raise ValueError(
        f"--devices is for CPUs, got --devices={count} on a "
        f"{jax.default_backend()}{advice}"
      )
    return False
  return True


def num_devices(config: TrainConfig) -> int:
  """Return how many CPU devices share a training.

  It is the number of --devices; for auto, that of the run that is resumed, or
  else one per core where this `pays`, and one elsewhere.
  """
  cores = num_cores()
  requested = _requested(config.job)
  if requested and config.job.devices == AUTO:
    # If the number does not divide the batch, --run holds a run with another
    # batch size, for example. A later check refuses to resume that run.
    fits = all(size % requested == 0 for size in config.batching.batch_sizes)
    return requested if fits else 1
  return requested or (cores if pays(config, cores) else 1)


def _requested(job: JobConfig) -> int | None:
  """Return the number of --devices, or of the run that is resumed, if any."""
  if job.devices != AUTO:
    return int(job.devices)
  if job.may_resume:
    record = read_config(Path(job.run))
    if record:
      # AUTO stays there if no CPU devices were started to share the run.
      devices = str(record["devices"])
      return int(devices) if devices.isdecimal() else 1
  return None


def start_cpu_devices(count: int) -> bool:
  """Have JAX start `count` CPU devices.

  Returns:
    False if XLA_FLAGS gives their number, or if JAX has started its devices
    already, for example because an imported module has made an array.
  """
  if FORCED in os.environ.get("XLA_FLAGS", ""):
    return False
  try:
    jax.config.update("jax_num_cpu_devices", count)
  except RuntimeError:
    return False
  return True


def num_cores() -> int:
  """Return the number of cores on which this process may run.

  The CPU quota of a container (cgroup) is not read.
  """
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def pays(config: TrainConfig, count: int) -> bool:
  """Return whether `count` CPU devices are known to be faster than one.

  For words they are not: the readout of 10,000 words is one large product,
  which XLA computes on all cores by itself.
  """
  fit = all(
    size % count == 0 and size >= MIN_ROWS * count
    for size in config.batching.batch_sizes
  )
  if count < 2 or not fit or config.data.tokenizer == "word":
    return False
  if config.model.implementation == "mosaic_gpu":
    return False
  # A vocabulary of 1, since only the layers count.
  init = partial(init_params, config.model, 1)
  layers = init_shapes(config.model.cell, init).layers  # starts no device
  weights = sum(leaf.size for leaf in jax.tree.leaves(layers))
  if config.model.compute_dtype is not None:
    # In bfloat16 two devices take 9.5 ms at H 256, one 14.2. At H 512 two took
    # 34 and one 42 in one measurement, 40 and 33 in another: so a quarter of
    # MAX_WEIGHTS is the limit.
    weights *= 4
  # Cells without recurrent weights have little to divide: for min_gru, two
  # devices are slower at H 256, and a tenth faster at H 512.
  recurrent = min(
    sum(leaf.size for leaf in jax.tree.leaves(getattr(w, "w_h", ())))
    for w in layers
  )
  return recurrent >= MIN_RECURRENT and weights <= MAX_WEIGHTS


TIMED_OUT = 2  # exit status: that of bad input


@dataclass(frozen=True)
class ProcessConfig:
  """How a process joins the others; each field is a flag of `train`."""

  distributed: bool = option(
    False,
    "Train with other processes: those of --coordinator, --num_processes and "
    "--process_id; without these flags, those of the job under SLURM, Open "
    "MPI, Kubernetes or on a TPU slice.",
  )
  coordinator: str | None = option(None, "HOST:PORT of process 0.")
  num_processes: int | None = option(
    None, "How many processes there are.", bounds="[1, inf)"
  )
  process_id: int | None = option(
    None, "The number of this process, from 0.", bounds="[0, inf)"
  )
  join_timeout: int = option(
    300, "Seconds to wait for the other processes.", bounds="[1, inf)"
  )


def join(
  distributed: bool,
  coordinator: str | None,
  num_processes: int | None,
  process_id: int | None,
  join_timeout: int,
) -> None:
  """Join the other processes if `distributed`; each argument is a flag.

  Call this before JAX is asked for a device. If the processes do not all join
  in time, this one prints one line and exits with the status of bad input.

  Raises:
    ValueError: the flags are incomplete or do not go together; or they name no
      coordinator, and JAX finds no job of a cluster; or process 0 cannot listen
      at the port, as where another run does.
  """
  given = coordinator, num_processes, process_id
  names = "--coordinator, --num_processes and --process_id"
  missing = [value is None for value in given]
  if not distributed:
    if not all(missing):
      raise ValueError(f"{names} go with --distributed")
    return
  if any(missing) and not all(missing):
    raise ValueError(f"{names} go together, got {given}")
  if num_processes is not None and process_id is not None:
    if process_id >= num_processes:
      raise ValueError(
        f"--process_id must be below --num_processes, got {process_id} "
        f"and {num_processes}"
      )
    host, _, port = str(coordinator).rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
      raise ValueError(f"--coordinator must be HOST:PORT, got {coordinator!r}")
    if process_id == 0:
      _check_free(str(coordinator), int(port))
  # JAX's own timeout aborts the process and prints a stack.
  where = f" at {coordinator}" if coordinator else ""
  watchdog = threading.Timer(join_timeout, _give_up, (where, join_timeout))
  watchdog.daemon = True
  watchdog.start()
  try:
    with ended_by_ctrl_c():
      # The longest timeout of JAX, which holds milliseconds in 32 bits.
      jax.distributed.initialize(*given, initialization_timeout=LARGEST // 1000)
  except ValueError as error:
    if coordinator:
      raise
    raise ValueError(
      "--distributed finds no job of SLURM, Open MPI, Kubernetes or a TPU "
      f"slice ({error}): pass {names}"
    ) from None
  finally:
    watchdog.cancel()
  # JAX has replaced the handler of SIGTERM, unseen by Python, by one that does
  # not end the process: set the one that Python knows again.
  signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


def _check_free(coordinator: str, port: int) -> None:
  """Raise ValueError if another program listens at the port.

  If that is another run, JAX would listen there, too. The processes of one run
  may then reach the coordinator of the other, which ends that run.
  """
  kind = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
  with socket.socket(kind) as probe:
    # Connections of a run that has ended are no hindrance.
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
      probe.bind(("", port))
    except OSError as error:
      raise ValueError(
        f"process 0 cannot listen at --coordinator={coordinator}: "
        f"{error.strerror}; pass another port to all processes"
      ) from None


def _give_up(where: str, seconds: int) -> None:
  limit = counted(seconds, "second")
  message = f"not all processes have joined{where} within {limit}"
  print(f"error: {message}", file=sys.stderr, flush=True)
  os._exit(TIMED_OUT)  # the main thread waits in JAX


@contextmanager
def ended_by_ctrl_c() -> Iterator[None]:
  """Let Ctrl-C end the process while it waits for others in the block.

  JAX waits outside of Python, where no KeyboardInterrupt can be raised. Other
  handlers than that of KeyboardInterrupt stay as they are.
  """
  if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
    yield
    return
  signal.signal(signal.SIGINT, signal.SIG_DFL)
  try:
    yield
  finally:
    signal.signal(signal.SIGINT, signal.default_int_handler)


PATH_BYTES = 4096  # of the message with the path of the run directory
NEW, OLD = b"n", b"o"  # sent before that path: a new run, or one to resume


def is_first() -> bool:
  """Return whether this is the process that prints and writes."""
  return jax.process_index() == 0


def from_first_process(number: float) -> float:
  """Return the first process's number, so that all decide alike."""
  if jax.process_count() == 1:
    return number
  # As bytes, since JAX would broadcast a float32.
  return float(np.frombuffer(_broadcast(np.float64(number).tobytes()))[0])


def _broadcast(data: bytes) -> bytes:
  """Return the first process's bytes; all must pass equally many bytes."""
  numbers = np.frombuffer(data, np.uint8)
  return np.asarray(multihost_utils.broadcast_one_to_all(numbers)).tobytes()


def agreed_request(
  requests: Sequence[signal.Signals], agree_now: bool
) -> signal.Signals | None:
  """Return the signal that asks to stop, if any.

  Args:
    requests: signals that this process has received.
    agree_now: ignored by a single process. Several processes exchange their
      requests if it is True, so that all of them return the same signal and
      stop at the same step: all must make this call, with the same value. If it
      is False, they exchange nothing, and the result is None.
  """
  request = int(requests[0]) if requests else 0
  if jax.process_count() > 1:
    if not agree_now:
      return None
    requests_of_all = multihost_utils.process_allgather(np.int32(request))
    request = int(requests_of_all.max())
  return signal.Signals(request) if request else None


def check_equal_devices() -> None:
  """Raise ValueError in all processes if one has fewer devices than another.

  JAX's exchanges between processes need equal numbers.
  """
  if not jax.distributed.is_initialized():
    return
  with ended_by_ctrl_c():  # JAX waits for the devices of the others
    counts = Counter(device.process_index for device in jax.devices())
  if len(set(counts.values())) > 1:
    found = ", ".join(f"{n} in process {i}" for i, n in sorted(counts.items()))
    raise ValueError(
      f"every process must have as many devices as the others, got {found}"
    )


def check_same_dry_run(dry_run: bool) -> None:
  """Raise ValueError in all processes if --dry_run differs between them."""
  with failing_together():
    first = bool(from_first_process(dry_run))
    if dry_run != first:
      reason = described({"dry_run": first}, {"dry_run": dry_run})
      raise ValueError(
        f"every process must have the flags of the first: {reason}"
      )


def check_same_checkpoint(directory: Path, step: int) -> None:
  """Raise ValueError in all processes if they resume from different steps.

  Args:
    directory: the run directory.
    step: of the checkpoint from which this process resumes; 0 for none.
  """
  if jax.process_count() == 1:
    return
  first, *others = np.ravel(multihost_utils.process_allgather(np.int32(step)))
  for number, other in enumerate(others, 1):
    if other != first:
      raise ValueError(
        f"every process must see the same {directory}: the first process "
        f"sees {_named(first)}, and process {number} {_named(other)}"
      )


def _named(step: int) -> str:
  """Return how the message of `check_same_checkpoint` names a checkpoint."""
  return f"the checkpoint of step {step}" if step else "no checkpoint"


@contextmanager
def failing_together() -> Iterator[None]:
  """Raise ValueError in all other processes if the body fails in one.

  They would wait for it, in vain, where they communicate next. A process that
  has joined no others only runs the body: to ask JAX for the number of
  processes would start its devices before their number is set.
  """
  if not jax.distributed.is_initialized():
    yield
    return
  failed, interrupted = True, False
  try:
    yield
    failed = False
  except KeyboardInterrupt:
    interrupted = True
    raise
  finally:
    with ended_by_ctrl_c():
      failures = multihost_utils.process_allgather(np.int32(failed))
    if interrupted:
      # `launch` ends this process at once: if it did not leave the others, they
      # would wait for it when they exit.
      jax.distributed.shutdown()
  if others := np.flatnonzero(failures).tolist():
    raise ValueError(f"{_processes(others)} stopped: see the error there")


def _processes(numbers: Sequence[int]) -> str:
  return ", ".join(f"process {number}" for number in numbers)


@contextmanager
def open_shared_run_dir(
  flags: Mapping[str, Any], facts: Mapping[str, Any]
) -> Iterator[OpenedRun]:
  """Open and lock the run directory in the first process, for all of them.

  Yields:
    As `open_run_dir` with may_extend=True. If a run is extended, only the first
    process, which prints that, gets `extended_from`.

  Raises:
    ValueError: as `open_run_dir` in the first process; in the others, if the
      first has raised an error; in all, if any has another configuration or
      corpus than the first, or cannot write to the run directory.
  """
  if jax.process_count() == 1:
    with open_run_dir(flags, facts, may_extend=True) as opened:
      yield opened
    return
  check_same_run_in_all(flags, facts)
  with ExitStack() as held:
    message = b""
    with failing_together():
      if is_first():
        run_dir = open_run_dir(flags, facts, may_extend=True)
        opened = held.enter_context(run_dir)
        message = OLD if opened.resuming else NEW
        message += os.fsencode(opened.directory)
    message = _broadcast(message.ljust(PATH_BYTES, b"\0")).rstrip(b"\0")
    if not is_first():
      directory = Path(os.fsdecode(message[1:]))
      opened = OpenedRun(directory, resuming=message[:1] == OLD)
    check_seen_by_all(opened.directory)
    yield opened


def check_same_run_in_all(
  flags: Mapping[str, Any], facts: Mapping[str, Any]
) -> None:
  """Raise ValueError in all processes if one would train another run.

  They would wait for each other forever, or train on unlike weights or batches.

  Args:
    flags: of this process.
    facts: as in `open_run_dir`.
  """
  own = {**flags, **facts}
  text = json.dumps(own).encode()
  size = int(from_first_process(len(text)))
  first = json.loads(_broadcast(text[:size].ljust(size)))
  changes = changed_flags(first, flags, facts)
  # --mesh may change when a run resumes, but not between processes.
  changes |= {
    name: own[name] for name in ("mesh", *facts) if first.get(name) != own[name]
  }
  differs = multihost_utils.process_allgather(np.int32(bool(changes)))
  if others := np.flatnonzero(differs).tolist():
    others_differ = f"those of {_processes(others)} differ"
    reason = described(first, changes) or others_differ
    raise ValueError(
      f"every process must have the flags and the corpus of the first: {reason}"
    )


def check_seen_by_all(directory: Path) -> None:
  """Raise ValueError in all processes if one cannot write to the directory.

  The processes write checkpoints together, each the shards of its own devices.
  To test this, each creates a file here, and the first process looks for all
  of these files.
  """
  tag = _broadcast(os.urandom(8)).hex()
  files = [
    directory / f".process{number}-{tag}"
    for number in range(jax.process_count())
  ]
  own = files[jax.process_index()]
  with suppress(OSError):
    own.touch()
  multihost_utils.sync_global_devices("written")
  missing = _broadcast(bytes(not file.exists() for file in files))
  with suppress(OSError):
    own.unlink()
  if failed := [number for number, byte in enumerate(missing) if byte]:
    raise ValueError(
      f"every process must write to the run directory of the first, "
      f"{directory}: {_processes(failed)} cannot"
    )
