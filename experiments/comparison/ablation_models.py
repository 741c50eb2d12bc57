"""The models that the runs of an ablation read: --init_from and --teacher.

If one is trained again between two runs, their losses cannot be compared.
"""

from pathlib import Path

from experiments.comparison.ablations import Ablations
from experiments.trainer import run_dir
from experiments.trainer.config import TrainConfig
from experiments.trainer.corpus import recorded_path
from experiments.trainer.distillation import read_teachers, weights_sha256
from experiments.trainer.memory import host_memory
from experiments.trainer.setup import make_setup
from experiments.trainer.trained import BEST, read_pretrained
from lstm_jax.training import list_checkpoints


def add_models(
  results: Ablations, path: Path, config: TrainConfig
) -> Ablations:
  """Return results with the models that a run reads, or has read before.

  Args:
    results: the results so far.
    path: ablations.json, for the message.
    config: of the run.

  Raises:
    ValueError: a model cannot be read, does not fit the run, or has other
      weights than when an earlier run read it.
  """
  if config.job.may_resume:
    found = models_of_run(Path(config.job.run))
    results = results.with_models(path, found)
  return results.with_models(path, models_sha256(config))


def models_sha256(config: TrainConfig) -> dict[str, str]:
  """Return the SHA-256 of the weights of each model that a run reads.

  The keys are the directories of --init_from and --teacher, each with the name
  of the checkpoint.

  Raises:
    ValueError: a model cannot be read, or does not fit the run.
  """
  source, distillation = config.init_from, config.distillation
  if not (source or distillation.teacher):
    return {}  # without `make_setup`, which would read the corpus
  setup = make_setup(config)
  found = {}
  teachers = read_teachers(setup, host_memory())
  for name, teacher in zip(distillation.teacher, teachers, strict=True):
    key = f"{recorded_path(name)} ({distillation.teacher_checkpoint})"
    found[key] = weights_sha256(teacher)
  if pretrained := read_pretrained(setup):
    found[f"{recorded_path(source)} ({BEST})"] = weights_sha256(pretrained)
  return found


def models_of_run(directory: Path) -> dict[str, str]:
  """Return `models_sha256` as the run in a directory read them, maybe long ago.

  It is empty without a run. A run without a checkpoint begins again, from the
  weights of --init_from as they are now: those are left out.
  """
  record = run_dir.read_config(directory) or {}
  # config.json has the SHA-256 of the weights: under TEACHERS a list, of each
  # teacher; under INIT_FROM that of the model which the run began with.
  hashes = record.get(run_dir.TEACHERS)
  found = {
    f"{name} ({record['teacher_checkpoint']})": sha256
    for name, sha256 in zip(
      record.get("teacher", ()),
      hashes if isinstance(hashes, list) else [],
      strict=False,
    )
  }
  sha256 = record.get(run_dir.INIT_FROM)
  if sha256 and list_checkpoints(directory / run_dir.CHECKPOINTS):
    found[f"{record['init_from']} ({BEST})"] = sha256
  return found
