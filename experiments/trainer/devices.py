"""The CPU devices that share a training, or the members of a sweep.

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

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jax
from jax.sharding import Mesh

from experiments.trainer.config import AUTO, JobConfig, TrainConfig
from experiments.trainer.own_cell import init_shapes
from experiments.trainer.records import replace
from experiments.trainer.run_dir import read_config
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
