"""Several processes, or several devices of a process, that train as one.

Every process runs the same program on its own devices. Every process evaluates
by itself, and the first one's result counts; the first alone samples, prints
and writes, except that each writes its shards into the checkpoints. What only
one of them knows (the run directory, a request to stop) is exchanged at points
of the program that every process reaches.

On a CPU, JAX can make a device of every core. Each then trains on its share of
the batch, the gradients are added up once in a training step, and the results
are those of one device but for rounding. Models that are trained together, as
in a sweep, are divided among the devices instead.
"""

import json
import os
import re
import signal
import socket
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from experiments.trainer.config import AUTO, LARGEST, JobConfig, TrainConfig
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

TIMED_OUT = 2  # exit status: that of bad input
MIN_ROWS = 16  # least number of sequences of a batch on each device
MIN_RECURRENT = 2**15  # least elements of a layer's recurrent weights
MAX_WEIGHTS = 2**21  # most elements of the weights of all layers
FORCED = "xla_force_host_platform_device_count"  # in XLA_FLAGS

Config = TypeVar("Config", bound=Any)


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
    ValueError: the flags do not go together; JAX finds no job of a cluster;
      another program listens at the coordinator's port; or a process has more
      devices than another.
  """
  given = coordinator, num_processes, process_id
  names = "--coordinator, --num_processes and --process_id"
  if not distributed:
    if given != (None, None, None):
      raise ValueError(f"{names} go with --distributed")
    return
  if coordinator is not None:
    address = re.fullmatch(r".+:(\d+)", coordinator)
    if not address:
      raise ValueError(f"--coordinator must be HOST:PORT, got {coordinator!r}")
    if process_id == 0:
      _check_free(int(address[1]))
  # JAX's own timeout aborts the process and prints a stack.
  watchdog = threading.Timer(join_timeout, _give_up, (join_timeout,))
  watchdog.daemon = True
  watchdog.start()
  try:
    with _ended_by_ctrl_c():
      # The longest timeout of JAX, which holds milliseconds in 32 bits.
      jax.distributed.initialize(*given, initialization_timeout=LARGEST // 1000)
  except ValueError as error:
    raise ValueError(
      f"--distributed: {error} Without a job of SLURM, Open MPI, Kubernetes or "
      f"a TPU slice, pass {names}"
    ) from None
  finally:
    watchdog.cancel()
  # JAX has replaced the handler of SIGTERM, unseen by Python, by one that does
  # not end the process: set the one that Python knows again.
  signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
  with _ended_by_ctrl_c():  # JAX waits for the devices of the others
    counts = Counter(device.process_index for device in jax.devices())
  if len({*counts.values()}) > 1:  # JAX could exchange nothing
    raise ValueError(
      "every process must have as many devices as the others, got "
      + ", ".join(f"{n} in process {i}" for i, n in sorted(counts.items()))
    )


def _check_free(port: int) -> None:
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
        f"process 0 cannot listen at port {port}: {error.strerror}; pass "
        "another port to all processes"
      ) from None


def _give_up(seconds: int) -> None:
  message = f"error: not all processes have joined within {seconds} s"
  print(message, file=sys.stderr, flush=True)
  os._exit(TIMED_OUT)  # the main thread waits in JAX


@contextmanager
def _ended_by_ctrl_c() -> Iterator[None]:
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


def share_batches(configs: Sequence[TrainConfig]) -> list[TrainConfig]:
  """Start JAX's CPU devices; return the configurations with their meshes.

  For auto, the number of devices is that of the run that is resumed, or else
  one per core where this `pays`, and one elsewhere. A configuration is
  unchanged if it needs one device, has a mesh, or needs fewer devices than
  another training of this process; for auto also on a GPU. Call this before JAX
  starts a device.

  Raises:
    ValueError: --devices does not divide a batch size.
  """
  cores, counts = num_cores(), []
  for config in configs:
    auto = cores if pays(config, cores) else 1
    counts.append(_num_devices(config.job, auto, config.batching.batch_sizes))
  most = max(counts)
  asked = any(config.job.devices != AUTO for config in configs)
  if not start_cpu_devices(most, asked=asked):
    return list(configs)
  return [
    replace(config, mesh=f"data:{most}", devices=str(most))
    if count == most and not config.job.mesh
    else config
    for config, count in zip(configs, counts, strict=True)
  ]


def share_members(config: Config, num_members: int) -> Config:
  """Start the CPU devices that share models that are trained together.

  For auto, their number is that of the run that is resumed, or else the largest
  that divides the number of models and is at most the number of cores. Call
  this before JAX starts a device.

  Returns:
    The configuration with the number of devices; unchanged if it needs one
    device or has a mesh, and for auto on a GPU.

  Raises:
    ValueError: --devices does not divide the number of models.
  """
  counts = range(1, min(num_cores(), num_members) + 1)
  auto = max(count for count in counts if num_members % count == 0)
  job, asked = config.job, config.job.devices != AUTO
  count = _num_devices(job, auto, (num_members,))
  if asked and num_members % count:  # `members_mesh` would be one device
    raise ValueError(
      "--devices must divide the number of models that are trained together, "
      f"{num_members}, got {count}"
    )
  if job.mesh or not start_cpu_devices(count, asked=asked):
    return config
  return replace(config, devices=str(count))


def _num_devices(job: JobConfig, auto: int, sizes: Sequence[int]) -> int:
  """Return how many CPU devices share a training; 0 if --mesh says which.

  For auto, it is that of the run that is resumed, or else `auto`; 1 if it does
  not divide all `sizes`: then a later check refuses to resume that run.
  """
  if job.devices != AUTO:
    return int(job.devices)
  if job.mesh:
    return 0
  if job.may_resume and (record := read_config(Path(job.run))):
    # AUTO stays there if no CPU devices were started to share the run.
    devices = str(record["devices"])
    auto = int(devices) if devices.isdecimal() else 1
  return auto if all(size % auto == 0 for size in sizes) else 1


def start_cpu_devices(count: int, *, asked: bool = False) -> bool:
  """Have JAX start several CPU devices; return whether they are to be used.

  They are not on a GPU, with several processes, if XLA_FLAGS gives their number
  or if JAX has started its devices already, for example because an imported
  module has made an array. If the number is `asked` for, a single process is to
  use it in any case: making a mesh raises an error if JAX has another one.
  """
  if count < 2 or jax.distributed.is_initialized():
    return False
  started = FORCED not in os.environ.get("XLA_FLAGS", "")
  if started:
    try:
      jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:
      started = False
  return asked or (started and jax.default_backend() == "cpu")


def num_cores() -> int:
  """Return on how many cores this process may run, whatever its CPU quota."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def pays(config: TrainConfig, count: int) -> bool:
  """Return whether `count` CPU devices are known to be faster than one.

  It is a rule of sizes, made from the times of docs/running.md. For words they
  are not: the readout of 10,000 words is one large product, which XLA computes
  on all cores by itself.
  """
  model, sizes = config.model, config.batching.batch_sizes
  fit = all(b % count == 0 and b >= MIN_ROWS * count for b in sizes)
  words = config.data.tokenizer == "word"
  if count < 2 or not fit or words or model.implementation == "mosaic_gpu":
    return False
  # A vocabulary of 1, since only the layers count.
  init = partial(init_params, model, 1)
  layers = init_shapes(init).layers  # starts no device
  weights = sum(leaf.size for leaf in jax.tree.leaves(layers))
  if model.compute_dtype is not None:
    # In bfloat16 two devices take 9.5 ms at H 256, one 14.2. At H 512 two took
    # 34 and one 42 in one measurement, 40 and 33 in another.
    weights *= 4
  # Cells without recurrent weights have little to divide.
  recurrent = min(
    sum(leaf.size for leaf in jax.tree.leaves(getattr(layer, "w_h", ())))
    for layer in layers
  )
  return recurrent >= MIN_RECURRENT and weights <= MAX_WEIGHTS


def batch_mesh(mesh: str) -> Mesh | None:
  """Return the mesh of a run; None for one device.

  Args:
    mesh: --mesh, which `share_batches` sets for --devices.

  Raises:
    ValueError: JAX has started more or fewer devices; or there are several
      processes and no mesh.
  """
  if mesh:
    return make_mesh(parse_mesh(mesh))
  if (processes := jax.process_count()) > 1:
    raise ValueError(
      f"{processes} processes share a training by --mesh: "
      f"pass --mesh=data:{len(jax.devices())}"
    )
  return None


def members_mesh(devices: str, num_members: int) -> Mesh | None:
  """Return the devices that share an ensemble's members; None for one device.

  That is so, too, if --devices does not divide the number of members: a program
  may train several ensembles, such as one for the search of a learning rate.

  Raises:
    ValueError: --devices is more than there are.
  """
  count = 1 if devices == AUTO else int(devices)
  if count > len(jax.devices()):
    raise ValueError(
      f"--devices must be at most {len(jax.devices())}, as many as JAX has "
      f"started, got {count}"
    )
  shared = count > 1 and num_members % count == 0
  return make_members_mesh(count) if shared else None


def is_first() -> bool:
  """Return whether this is the process that prints and writes."""
  return jax.process_index() == 0


def from_first_process(value: Any) -> Any:
  """Return the first process's value, so that all decide alike.

  Args:
    value: what JSON can hold; others than the first may pass None.
  """
  if jax.process_count() == 1:
    return value
  text = np.frombuffer(json.dumps(value).encode(), np.uint8)
  size = multihost_utils.broadcast_one_to_all(np.int32(text.size))
  # JAX needs arrays of one size; what the others send is ignored.
  text = multihost_utils.broadcast_one_to_all(np.resize(text, int(size)))
  return json.loads(np.asarray(text).tobytes())


def _failed(failed: bool) -> str:
  """Return which processes have failed, as "process 1, process 2"; or ""."""
  all_failed = multihost_utils.process_allgather(np.int32(failed))
  return ", ".join(f"process {number}" for number in np.flatnonzero(all_failed))


def agreed_request(
  requests: Sequence[signal.Signals], agree_now: bool
) -> signal.Signals | None:
  """Return the signal that asks to stop, if any; of several, the same in all.

  Args:
    requests: signals that this process has received.
    agree_now: whether several processes, which must all make this call with the
      same value, exchange their requests; if not, they do not stop.
  """
  request = int(requests[0]) if requests else 0
  if jax.process_count() > 1:
    if not agree_now:
      return None
    requests_of_all = multihost_utils.process_allgather(np.int32(request))
    request = int(requests_of_all.max())
  return signal.Signals(request) if request else None


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
    with _ended_by_ctrl_c():
      others = _failed(failed)
    if interrupted:
      # `launch` ends this process at once: if it did not leave the others, they
      # would wait for it when they exit.
      jax.distributed.shutdown()
  if others:
    raise ValueError(f"{others} stopped: see the error there")


def check_same_checkpoint(directory: Path, step: int) -> None:
  """Raise ValueError in all processes unless they resume from one step.

  It is that of this process's newest checkpoint, or 0.
  """
  if jax.process_count() == 1:
    return
  if others := _failed(step != from_first_process(step)):
    raise ValueError(
      f"every process must see the same {directory}: {others} cannot resume "
      "from the checkpoint of the first"
    )


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
  _check_same_run(flags, facts)
  with ExitStack() as held:
    found = None
    with failing_together():
      if is_first():
        run_dir = open_run_dir(flags, facts, may_extend=True)
        opened = held.enter_context(run_dir)
        found = str(opened.directory), opened.resuming
    directory, resuming = from_first_process(found)
    if not is_first():
      opened = OpenedRun(Path(directory), resuming)
    _check_seen_by_all(opened.directory)
    yield opened


def _check_same_run(flags: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
  """Raise ValueError in all processes if one would train another run.

  They would wait for each other forever, or train on unlike weights or batches.
  """
  own = {**flags, **facts}
  first = from_first_process(own)
  changes = changed_flags(first, flags, facts)
  # --mesh may change when a run resumes, but not between processes.
  changes |= {
    name: own[name] for name in ("mesh", *facts) if first.get(name) != own[name]
  }
  if others := _failed(bool(changes)):
    reason = described(first, changes) or f"those of {others} differ"
    raise ValueError(
      f"every process must have the flags and the corpus of the first: {reason}"
    )


def _check_seen_by_all(directory: Path) -> None:
  """Raise ValueError in all processes if one cannot write to the directory.

  The processes write checkpoints together, each the shards of its own devices.
  To test this, each looks for a file that the first creates.
  """
  mark = directory / f".seen-{from_first_process(os.urandom(8).hex())}"
  with failing_together():
    if is_first():
      mark.touch()
  others = _failed(not (mark.exists() and os.access(directory, os.W_OK)))
  if is_first():
    mark.unlink()
  if others:
    raise ValueError(
      "every process must write to the run directory of the first, "
      f"{directory}: {others} cannot"
    )
