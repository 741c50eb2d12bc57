"""Where the corpus of a run is: as config.json records it, and where it is now.

config.json holds the name of a named corpus. Of any other corpus it holds the
absolute path, so that the run can be evaluated from any directory. But the path
of a corpus in the repository is recorded relative to the repository, so that
results that are committed name no directory of one machine. A text that came
through a pipe, such as standard input, is saved in the run directory.
"""

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from experiments.trainer.config import DataConfig, TrainConfig
from experiments.trainer.environment import REPOSITORY
from experiments.trainer.files import write_bytes
from experiments.trainer.named_corpora import (
  CORPORA,
  cache_dir,
  is_downloaded,
  is_name,
)

KEPT = "corpus.txt"  # a piped text, in the run directory
BLOCK = 2**20  # characters of a file that are hashed at once


def is_piped(path: str) -> bool:
  """Return whether a file cannot be read again, such as a pipe.

  Another example is the temporary file in which a shell passes a long
  here-document as standard input: the shell has already deleted it.
  """
  is_regular = os.path.isfile(path) or os.path.isdir(path)
  is_deleted = not os.path.exists(os.path.realpath(path))
  return os.path.exists(path) and (is_deleted or not is_regular)


def recorded_corpus(corpus: str) -> str:
  """Return what config.json holds for the flag --corpus."""
  if is_piped(corpus):
    return KEPT
  return corpus if is_name(corpus) else recorded_path(corpus)


def corpus_when_resumed(
  directory: Path, before: str, corpus: str, sha256: str
) -> str:
  """Return what config.json of a resumed run holds for the flag --corpus.

  The entry, `before`, stays as it is, unless the text is no longer there.
  """
  now = recorded_corpus(corpus)
  # If `before` is absolute, both of these are `before`.
  places = directory / before, REPOSITORY / before
  stays = now == before or before in CORPORA
  return before if stays or any(_has_hash(p, sha256) for p in places) else now


def recorded_path(name: str) -> str:
  """Return the path by which config.json names a file or directory.

  It is absolute, or relative to the repository if it lies in the repository.
  """
  path = _lasting(Path(os.path.abspath(name)))
  if path.is_relative_to(REPOSITORY):
    path = path.relative_to(REPOSITORY)
  return str(path)


def _lasting(path: Path) -> Path:
  """Return an absolute path, with the links of a file in /dev resolved.

  /dev/stdin, for example, links to another file in another process.
  """
  of_device = path.parts[1:2] == ("dev",) and path.is_file()
  return path.resolve() if of_device else path


def resumable_corpus(directory: Path, corpus: str) -> str:
  """Return the --corpus with which another process reads the text of a run.

  That is the run directory's copy of a piped text, or the file to which a path
  in /dev links, or else `corpus` as given.
  """
  if is_piped(corpus):
    return str(directory / KEPT)
  path = Path(os.path.abspath(corpus))
  return corpus if _lasting(path) == path else str(_lasting(path))


def keep(directory: Path, corpus: str, text: str) -> None:
  """Write the text of a piped corpus into the run directory, once."""
  path = directory / KEPT
  if is_piped(corpus) and not path.exists():
    # A reader removes one byte order mark; here it must not be the text's own.
    is_marked = text.startswith("\ufeff")
    write_bytes(path, text.encode("utf-8-sig" if is_marked else "utf-8"))


def kept_if_piped(config: TrainConfig) -> DataConfig:
  """Return the data of a run, with the piped corpus that it has kept, if any.

  With --overwrite or --noresume the new text is read.
  """
  data, job = config.data, config.job
  path = Path(job.run) / KEPT
  if job.may_resume and is_piped(data.corpus) and path.is_file():
    return replace(data, corpus=str(path))
  return data


def find_corpus(
  directory: Path,
  data: DataConfig,
  sha256: str,
  console: Console | None = None,
  others: Sequence[tuple[Path, DataConfig]] = (),
) -> DataConfig:
  """Return the data of a run with the path at which its corpus is now.

  If the file is no longer where the run has read it, or has changed, the text
  is looked for by its hash, in files of the same name or *.txt: in the run
  directory, in the current directory, in data/ and among the named corpora that
  were downloaded. A named corpus is looked for likewise if it was not
  downloaded; if it is not found, it is downloaded when it is read.

  Args:
    directory: the run directory.
    data: as config.json holds it.
    sha256: hash of the corpus.
    console: prints where the text is found.
    others: directories and data of other runs of this corpus, where it is
      looked for next.

  Returns:
    `data` with that path; `data` unchanged if there is no such text.

  Raises:
    ValueError: there is no such text, and the path is a pipe or a device.
  """
  for place in ((directory, data), *others):
    if path := _corpus_of(*place, sha256, console):
      return replace(data, corpus=path)
  if is_piped(data.corpus):  # which may never end
    raise ValueError(f"corpus {data.corpus} is not a regular file")
  return data


def _corpus_of(
  directory: Path, data: DataConfig, sha256: str, console: Console | None
) -> str | None:
  """Return the path at which the corpus of one run is now, if it is found."""
  corpus = data.corpus
  if corpus in CORPORA and CORPORA[corpus].sha256 == sha256:
    # A file of that name, made after the run started, hides the named corpus:
    # `is_name` is False.
    with suppress(ValueError):  # there is no home directory
      if is_name(corpus) and is_downloaded(corpus):
        return corpus
  else:
    own = [directory / KEPT] if corpus == KEPT else []
    for path in (*own, REPOSITORY / corpus, Path(corpus)):
      if _has_hash(path, sha256):
        return str(path)
  folders = [directory, Path(), Path("data"), REPOSITORY / "data"]
  with suppress(ValueError):  # there is no home directory
    folders.append(cache_dir())
  for folder in filter(os.path.isdir, folders):  # False where access is denied
    named = folder / Path(corpus).name
    for path in (named, *sorted(folder.glob("*.txt"))):
      if _has_hash(path, sha256):
        if console:
          console.print(f"corpus  {corpus} is now {path}", soft_wrap=True)
        return str(path)
  return None


def _text_file_sha256(path: Path) -> str:
  """Return the hash of the text that `read_text` returns, read in blocks."""
  digest = hashlib.sha256()
  with path.open(encoding="utf-8-sig") as file:  # every line ending is "\n"
    while block := file.read(BLOCK):
      digest.update(block.encode())
  return digest.hexdigest()


def _has_hash(path: Path, sha256: str) -> bool:
  """Return whether a path is a readable text file with this hash."""
  try:
    return path.is_file() and _text_file_sha256(path) == sha256
  except (ValueError, OSError):  # not a text, or not ours to read
    return False


def check_is_no_corpus(name: str, path: Path, sha256: str) -> None:
  """Raise ValueError if the file to be written is the corpus, or a copy of it.

  Args:
    name: of the flag that gives the path.
    path: of the file, which need not exist.
    sha256: hash of the corpus.
  """
  if _has_hash(path, sha256):
    raise ValueError(
      f"{name} must be no file with the run's corpus, got {path}"
    )
