"""A run directory: its files, its lock, and what becomes of the run in it.

config.json      every flag, versions, device, and the corpus's hash
metrics.jsonl    one JSON object a line: training and validation losses
samples.txt      what the model wrote as it learned
loss.png         both losses over training steps
result.json      the best loss; written when the run finishes
evaluation.json  written by `experiments.evaluate`
ensemble.json    the evaluation of an ensemble whose first member is this run
explore.html     written by `experiments.explore`
report.html      written by `experiments.report`
profile/         the trace of --profile
tensorboard/     the same metrics for TensorBoard, if tensorboardX is installed
checkpoints/     the last two and the best: parameters and train state
lock             the id of the process that is writing here

A run is unfinished as long as it has no result.json. It is resumed from its
newest checkpoint that holds a train state; without any checkpoint it starts
again. A run is *extended* by more epochs or patience, the flags in MAY_CHANGE:
they decide where it ends, and not what a training step computes, but for the
learning rate, whose schedule is stretched to the new number of training steps.
With a constant rate, an extended run ends with the same weights as a run that
had all epochs from its start. `answer` says which of these a run is.

This module knows a configuration as a flat record, as config.json has it.
"""

import fcntl
import itertools
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from experiments.trainer.config import JobConfig, TrainConfig
from experiments.trainer.corpus import recorded_corpus, recorded_path
from experiments.trainer.environment import REPOSITORY, environment, time_now
from experiments.trainer.files import (
  ensure_directory,
  naming,
  read_json,
  remove_parts,
  write_json,
)
from experiments.trainer.records import Config, from_record, leaves, to_record
from lstm_jax.language.epochs import LATE_DIVISOR
from lstm_jax.training import has_state, list_checkpoints
from lstm_jax.training.durable import check_path, sync

CONFIG, METRICS, SAMPLES = "config.json", "metrics.jsonl", "samples.txt"
PICTURE, RESULT, EVALUATION = "loss.png", "result.json", "evaluation.json"
ENSEMBLE, LOCK = "ensemble.json", "lock"
PAGE, REPORT = "explore.html", "report.html"
PROFILE, TENSORBOARD, CHECKPOINTS = "profile", "tensorboard", "checkpoints"
# --overwrite deletes these, the last one last.
CONTENTS = (
  *(METRICS, SAMPLES, PICTURE, PROFILE, EVALUATION, ENSEMBLE, PAGE, REPORT),
  *(TENSORBOARD, RESULT, CHECKPOINTS, CONFIG),
)
SHA256, TEACHERS = "corpus_sha256", "teacher_sha256"  # entries of CONFIG
INIT_FROM = "init_from_sha256"  # of the weights, as TEACHERS
EXTENSIONS = "extensions"  # the list of them in CONFIG
MAY_CHANGE = "num_epochs", "patience"
FLAGS = tuple(leaf.name for leaf in leaves(TrainConfig()))
JOB_FLAGS = tuple(leaf.name for leaf in leaves(JobConfig()))
# {flag: entry of CONFIG, and of `facts`, that identifies what it names}
HASHES = {"corpus": SHA256, "teacher": TEACHERS, "init_from": INIT_FROM}
REPLACE_OR_KEEP = "--overwrite replaces it, another --run keeps it"


class OpenedRun(NamedTuple):
  """A locked run directory."""

  directory: Path
  resuming: bool  # whether it holds a run to resume
  extended_from: int | None = None  # epochs before, if it is extended now


@contextmanager
def open_run_dir(
  flags: Mapping[str, Any],
  facts: Mapping[str, Any],
  *,
  may_extend: bool = False,
) -> Iterator[OpenedRun]:
  """Lock a run directory during the block, with config.json brought up to date.

  Args:
    flags: of the run, as `recorded_flags` returns them.
    facts: further entries of config.json, among them SHA256, the hash of the
      corpus.
    may_extend: whether a run may be resumed with more epochs or another
      patience.

  Raises:
    ValueError: another process holds the directory; it is not one of a run and
      not empty; or the run in it is refused (`answer`).
  """
  check_path(Path(flags["run"] or "runs"))
  directory = Path(flags["run"]) if flags["run"] else _new_directory()
  _check_is_run_or_empty(directory)
  ensure_directory(directory)
  with lock(directory):
    yield _open(directory, flags, facts, may_extend)


def _open(
  directory: Path,
  flags: Mapping[str, Any],
  facts: Mapping[str, Any],
  may_extend: bool,
) -> OpenedRun:
  """Bring a locked directory up to date for a run that it may hold."""
  # What a kill has left half-written, of files that only this process writes.
  remove_parts(directory, (CONFIG, PICTURE, RESULT))
  record, result = read_config(directory), read_result(directory)
  found = "new"
  if record is not None and flags["overwrite"]:
    _check_sources_stay(directory, flags)
    delete_run(directory)
  elif record is not None:
    steps = list_checkpoints(directory / CHECKPOINTS)
    resumable = any(has_state(directory / CHECKPOINTS, step) for step in steps)
    # An unfinished run without any checkpoint starts again.
    resumable = resumable or not (steps or result is not None)
    try:
      found = answer(record, result, resumable, flags, facts, may_extend)
    except ValueError as error:
      raise ValueError(f"{directory} {error}") from None
  now = environment() | {"started": time_now()}
  if record is None or found == "new":
    write_json(directory / CONFIG, dict(flags) | now | dict(facts))
    return OpenedRun(directory, resuming=False)
  before = dict(record)
  if not list_checkpoints(directory / CHECKPOINTS):
    record |= facts  # the step and hash of --init_from as it is now
  record["corpus"] = flags["corpus"]  # it may have been moved
  if found == "extended":
    changed = {name: flags[name] for name in MAY_CHANGE}
    earlier = {name: record[name] for name in MAY_CHANGE} | {"result": result}
    extension = changed | {"before": earlier} | now
    record |= changed
    record[EXTENSIONS] = [*record.get(EXTENSIONS, []), extension]
    # Delete the result first: after a kill, the run must not count as finished.
    _delete(directory / RESULT)
    sync(directory)
  if record != before:
    write_json(directory / CONFIG, record)
  extended_from = before["num_epochs"] if found == "extended" else None
  return OpenedRun(directory, resuming=True, extended_from=extended_from)


def answer(
  record: Mapping[str, Any],
  result: Mapping[str, Any] | None,
  resumable: bool,
  flags: Mapping[str, Any],
  facts: Mapping[str, Any],
  may_extend: bool,
) -> str:
  """Return whether a run is "resumed" or "extended", or raise why it is not.

  Args:
    record: config.json of the run.
    result: its result.json; None for an unfinished run.
    resumable: whether it has a train state to go on from, or may start again.
    flags: as it is to go on.
    facts: entries of config.json as they would be now.
    may_extend: whether it may be extended.

  Raises:
    ValueError: the run is refused; the message is about "it".
  """
  finished = result is not None
  kind = "a finished run" if finished else "an unfinished run"
  if is_sweep(record) != is_sweep(flags):
    kind = "a sweep" if is_sweep(record) else "a single run"
    raise ValueError(f"holds {kind}; {REPLACE_OR_KEEP}")
  if not flags["resume"]:
    advice = "" if finished else "--resume continues it, "
    raise ValueError(f"already holds {kind}; {advice}{REPLACE_OR_KEEP}")
  changes = changed_flags(record, flags, facts)
  extending = may_extend and _extends(record, changes, result)
  if not extending and (changes or finished):
    more = ""
    if changes:
      kind += f" of another configuration: {described(record, changes)}"
    if result is not None and may_extend and result.get("stopped_early"):
      more = ", a larger --patience, or 0, extends it"
    elif finished and may_extend:
      more = f", --num_epochs above {record['num_epochs']} extends it"
    raise ValueError(f"already holds {kind}; {REPLACE_OR_KEEP}{more}")
  if not resumable:
    raise ValueError(
      f"holds {kind} without a checkpoint to continue from; {REPLACE_OR_KEEP}"
    )
  if record.get(SHA256) != facts[SHA256]:
    raise ValueError(
      f"holds a run that started with another text: corpus {flags['corpus']} "
      "has changed; --overwrite starts it again, and --init_from in another "
      "--run starts one from its weights"
    )
  if record.get(TEACHERS) != facts.get(TEACHERS):
    raise ValueError(
      "holds a run whose teachers had other weights when it started; "
      "--overwrite starts it again"
    )
  if extending:
    _check_late_batches(record, flags)
  return "extended" if extending else "resumed"


def _extends(
  record: Mapping[str, Any],
  changes: Mapping[str, Any],
  result: Mapping[str, Any] | None,
) -> bool:
  """Return whether changed flags extend a run.

  More epochs do; so does another patience, unless the run has made its last
  epoch. The new patience counts the evaluations so far: a smaller one would
  have ended the run before, and the same one has.
  """
  epochs, limit = record["num_epochs"], record["patience"]
  new_epochs = changes.get("num_epochs", epochs)
  patience = changes.get("patience", limit)
  if not changes or not changes.keys() <= {*MAY_CHANGE}:
    return False
  if new_epochs < epochs or 0 < patience < limit:
    return False
  if result is not None and result.get("stopped_early"):
    return patience == 0 or patience > limit
  return new_epochs > epochs or result is None


def _check_late_batches(
  record: Mapping[str, Any], flags: Mapping[str, Any]
) -> None:
  """Raise ValueError if more epochs would move the start of late batches."""
  late, before = flags["late_batch_size"], record["num_epochs"]
  if late and flags["num_epochs"] > before >= LATE_DIVISOR:
    raise ValueError(
      f"cannot be extended: --late_batch_size={late} applies to the last third "
      f"of its {before} epochs, and with {flags['num_epochs']} to other ones"
    )


def recorded_flags(config: TrainConfig) -> dict[str, Any]:
  """Return the flags as config.json holds them."""
  source, teachers = config.init_from, config.distillation.teacher
  return to_record(config) | {
    "corpus": recorded_corpus(config.data.corpus),
    "init_from": recorded_path(source) if source else "",
    "teacher": [recorded_path(name) for name in teachers],
  }


def changed_flags(
  record: Mapping[str, Any],
  flags: Mapping[str, Any],
  facts: Mapping[str, Any],
) -> dict[str, Any]:
  """Return the flags that differ from config.json, with their new values.

  JOB_FLAGS, which do not change what is trained, are left out. What was moved
  does not differ if its hash in `facts` is that in config.json: a corpus,
  teachers, or a run to begin from. The last is not read any more once there is
  a checkpoint: `facts` then lacks its hash, and the path counts.
  """
  moved = {
    name
    for name, entry in HASHES.items()
    if record.get(entry) == facts.get(entry, "unknown")  # equal to no hash
  }
  same = {*JOB_FLAGS, *moved}
  return {
    name: value
    for name, value in flags.items()
    if name not in same and record.get(name) != value
  }


def described(record: Mapping[str, Any], changes: Mapping[str, Any]) -> str:
  """Return each changed flag with its value in a record and the new one."""
  return "; ".join(
    f"{name} is {record.get(name)!r} there and {value!r} here"
    for name, value in changes.items()
  )


def check_same_run(
  directory: Path, flags: Mapping[str, Any], sha256: str, *, advice: str
) -> None:
  """Raise ValueError unless a finished run is of these flags and this corpus.

  A run that was extended to these epochs is refused, too.

  Args:
    directory: holds the run.
    flags: that it should have, as `recorded_flags` returns them.
    sha256: the hash of the corpus that it should have read.
    advice: what to do about it, the end of the message.
  """
  record = read_record(directory)
  reason = described(record, changed_flags(record, flags, {SHA256: sha256}))
  if record.get(SHA256) != sha256:
    reason = reason or "the corpus has changed"
  if reason:
    raise ValueError(
      f"{directory} holds a finished run of another configuration: {reason}; "
      f"{advice}"
    )
  check_not_extended(directory, flags, advice=advice)


def check_not_extended(
  directory: Path, flags: Mapping[str, Any], *, advice: str
) -> None:
  """Raise ValueError if a run began with fewer epochs than `flags` have.

  An extended run need not end as one that had all epochs from the start: most
  schedules had other learning rates. With --overwrite, nothing is checked.
  """
  record = read_config(directory)
  if record is None or flags["overwrite"]:
    return
  first, epochs = first_epochs(record), flags["num_epochs"]
  if first < epochs:
    raise ValueError(
      f"{directory} holds a run that began with num_epochs={first}: extended "
      f"to {epochs}, it need not end as a run of {epochs} from the start; "
      f"{advice}"
    )


def first_epochs(record: Mapping[str, Any]) -> int:
  """Return the number of epochs with which the run of config.json began."""
  extensions = record.get(EXTENSIONS)
  first = extensions[0]["before"] if extensions else record
  return first["num_epochs"]


def read_config(directory: Path) -> dict[str, Any] | None:
  """Return config.json; None if it is missing or not that of a run."""
  record = _read_object(directory / CONFIG)
  return None if record is None or _lacking(record) else record


def read_record(directory: Path) -> dict[str, Any]:
  """Return config.json.

  Raises:
    ValueError: the directory holds no run.
  """
  record = read_config(directory)
  if record is not None:
    return record
  reason = "no such directory"
  if directory.is_dir():
    reason = _other_version(directory) or f"no {CONFIG} of a run"
  raise ValueError(f"there is no run in {directory}: {reason}")


def read_result(directory: Path) -> dict[str, Any] | None:
  """Return result.json; None for an unfinished run, {} if it is damaged."""
  path = directory / RESULT
  return (_read_object(path) or {}) if path.exists() else None


def to_config(
  directory: Path, record: Mapping[str, Any], default: Config
) -> Config:
  """Return the configuration of a directory's config.json.

  Args:
    directory: of the run.
    record: what `read_record` returns for it.
    default: an instance of the configuration's class.

  Raises:
    ValueError: a value is missing, or not of its flag's kind or range; or there
      is no module of its cell. The message names the file.
  """
  try:
    return from_record(default, record)
  except ValueError as error:
    raise ValueError(f"{directory / CONFIG}: {error}") from None


def is_sweep(record: Mapping[str, Any]) -> bool:
  """Return whether config.json is of a sweep: a single run has no num_seeds."""
  return "num_seeds" in record


def check_outside_runs(flag: str, path: Path, page: str = "") -> None:
  """Raise ValueError if a file would be written into a run directory.

  Args:
    flag: of the path, for the message.
    path: of the file; in a run directory, only `page` is allowed.
    page: PAGE or REPORT; "" for none.
  """
  place = path.resolve()
  directory = next(filter(read_config, place.parents), None)  # the innermost
  if directory is not None and place != directory / page:
    exception = f", or its {page}" if page else ""
    raise ValueError(
      f"{flag} must be outside the run directory {directory}{exception}, got "
      f"{path}"
    )


def check_is_no_run(base: Path | str, parts: str) -> None:
  """Raise ValueError if a directory for several runs is itself a run.

  `parts` names what has one run each, for the message: "seeds", for example.
  """
  if read_config(Path(base)) is not None:
    raise ValueError(
      f"--run must hold the runs of all {parts}, got {base}, which is a run"
    )


@contextmanager
def lock(directory: Path) -> Iterator[None]:
  """Lock an existing directory until the end of the block.

  The kernel releases the lock when the process ends, however it ends: a file
  that a crash leaves behind locks nothing.

  Raises:
    ValueError: another process holds it.
    OSError: it cannot be locked, as in a file system without locks.
  """
  path = directory / LOCK
  while True:
    file = path.open("a+")
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      with file:
        file.seek(0)
        holder = file.read() or "unknown"
      raise ValueError(f"{directory} is in use by process {holder}") from None
    with suppress(FileNotFoundError):
      if os.path.samestat(os.fstat(file.fileno()), path.stat()):
        break
    file.close()  # its previous holder has just deleted it
  with file:
    try:
      with naming(path):
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
      yield
    finally:
      # Only its own: another process may have moved or deleted the directory.
      with suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(file.fileno()), path.stat()):
          path.unlink()


def _read_object(path: Path) -> dict[str, Any] | None:
  """Return the object of a JSON file; None if it is missing or damaged.

  Raises:
    PermissionError: it cannot be read; there may be a run.
  """
  try:
    record = read_json(path)
  except PermissionError:
    raise
  except (OSError, ValueError):
    return None
  return record if isinstance(record, dict) else None


def _lacking(record: Mapping[str, Any]) -> list[str]:
  """Return the entries of a run that config.json lacks.

  One of MAY_CHANGE that is no integer, with which `answer` could not compute,
  counts as lacking.
  """
  wrong = {n for n in MAY_CHANGE if not isinstance(record.get(n), int)}
  return [name for name in FLAGS if name not in record or name in wrong]


def _other_version(directory: Path) -> str | None:
  """Return a message if CONFIG has some entries of a run, but not all."""
  record = _read_object(directory / CONFIG) or {}
  lacking = _lacking(record)
  if not lacking or len(lacking) == len(FLAGS):
    return None
  return f"{CONFIG} lacks {lacking[0]}, as that of another version"


def _check_is_run_or_empty(directory: Path) -> None:
  """Raise ValueError unless a directory holds a run, is empty or is missing."""
  if not directory.is_dir() or read_config(directory) is not None:
    return
  whole = "|".join(map(re.escape, CONTENTS))
  leftover = re.compile(rf"{LOCK}|({whole})\.[0-9a-f]{{8}}\.part")  # of a kill
  names = sorted(path.name for path in directory.iterdir())
  names = [name for name in names if not leftover.fullmatch(name)]
  if names:
    reason = _other_version(directory) or f"it holds {names[0]}"
    raise ValueError(
      f"{directory} is not a run of this version and not empty: {reason}; "
      "choose another --run, such as a new directory"
    )


def _check_sources_stay(directory: Path, flags: Mapping[str, Any]) -> None:
  """Raise ValueError if --overwrite would delete what this run reads."""
  corpus = (REPOSITORY / flags["corpus"]).resolve()
  if any(corpus == (directory / name).resolve() for name in CONTENTS):
    raise ValueError(
      f"--overwrite would replace --corpus={flags['corpus']}, a file of the "
      "run: copy it to another place, and train on that"
    )
  sources = [("teacher", name) for name in flags["teacher"]]
  for flag, name in (*sources, ("init_from", flags["init_from"])):
    if name and (REPOSITORY / name).resolve() == directory.resolve():
      raise ValueError(
        f"--overwrite would replace the run of --{flag}={name}: pass another "
        "--run"
      )


def delete_run(directory: Path) -> None:
  """Delete the files of a run, config.json last; others stay."""
  for name in CONTENTS:
    _delete(directory / name)


def _delete(path: Path) -> None:
  if path.is_dir() and not path.is_symlink():
    shutil.rmtree(path)
  else:
    path.unlink(missing_ok=True)


def _new_directory() -> Path:
  """Create a new directory under runs/, named after the time."""
  runs, stamp = Path("runs"), datetime.now().strftime("%Y-%m-%d-%H%M%S")
  ensure_directory(runs, ": pass --run")
  for number in itertools.count(1):
    directory = runs / (stamp if number == 1 else f"{stamp}-{number}")
    try:
      directory.mkdir()
      break
    except FileExistsError:
      continue
  return directory
