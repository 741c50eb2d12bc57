"""Where a corpus is: by its name or path, and found again by its hash.

`--corpus=tinyshakespeare` is the text of that name. It is downloaded once, and
kept in the cache directory: $LSTM_JAX_CACHE, else lstm_jax in $XDG_CACHE_HOME,
else ~/.cache/lstm_jax. If there is a file of that name, --corpus means the
file. The hash is checked whenever a text is used, so that the name always means
the same text. Without a network, save a copy in the cache directory by hand.

config.json holds the name of a named corpus. Of any other corpus it holds the
absolute path, so that the run can be evaluated from any directory. But the path
of a corpus in the repository is recorded relative to the repository, so that
results that are committed name no directory of one machine.
"""

import hashlib
import http.client
import os
import sys
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from experiments.trainer.config import DataConfig
from experiments.trainer.environment import REPOSITORY
from experiments.trainer.files import write_bytes
from lstm_jax.language import read_text
from lstm_jax.training.durable import is_special

TIMEOUT = 30.0  # seconds without a byte
CACHE = "LSTM_JAX_CACHE"  # the environment variable


class NamedCorpus(NamedTuple):
  """A text on the web."""

  url: str
  num_bytes: int
  sha256: str  # of the file, and of its text: it has no \r or byte order mark


CORPORA = {
  "tinyshakespeare": NamedCorpus(
    "https://raw.githubusercontent.com/karpathy/char-rnn/"
    "6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/data/tinyshakespeare/input.txt",
    1_115_394,
    "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
  )
}


def read_corpus_text(corpus: str) -> str:
  """Return the text of a corpus, which is a path or a name.

  Raises:
    ValueError: it is empty, cannot be read or downloaded, or is a pipe, which
      could not be read again.
  """
  if not corpus:  # as a path, it would be the current directory
    raise ValueError("corpus must be a file or a name, got ''")
  path = locate(corpus)
  try:
    if is_special(Path(path)):
      raise ValueError(f"{path} is not a regular file: save it as one")
    return read_text(path)
  except (ValueError, OSError) as error:  # `Path.exists` raises some OSErrors
    raise ValueError(f"corpus {error}") from None


def text_sha256(text: str) -> str:
  """Return the SHA-256 of a text in UTF-8."""
  return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def is_name(corpus: str) -> bool:
  """Return whether this is a name in CORPORA, and no file has that name."""
  return corpus in CORPORA and not os.path.isfile(corpus)


def locate(corpus: str) -> str:
  """Return the path of a named corpus, or else the path that is given.

  A named corpus that is not in the cache directory is downloaded to it.

  Raises:
    ValueError: it cannot be downloaded, or the copy is of another text: the
      message says what is expected, and where to save it by hand.
    OSError: it cannot be kept or read there.
  """
  if not is_name(corpus):
    return corpus
  path, (url, num_bytes, sha256) = cached_path(corpus), CORPORA[corpus]
  is_new = not path.exists()
  try:
    if is_new:
      print(f"downloading {url} to {path}", file=sys.stderr)
      with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
        data = response.read(num_bytes + 1)  # to notice a longer file
    else:
      data = path.read_bytes()
    found = f"it has {len(data):,} bytes of another text"
    is_wrong = hashlib.sha256(data).hexdigest() != sha256
  except (OSError, http.client.HTTPException) as error:
    found, is_wrong = str(error), True
  if is_wrong:
    raise ValueError(
      f"corpus {corpus} cannot be read from {url if is_new else path}: {found};"
      f" save {url} ({num_bytes:,} bytes, SHA-256 {sha256}) as {path}"
    )
  if is_new:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, data)
  return str(path)


def cache_dir() -> Path:
  """Return the directory that keeps named corpora; it need not exist."""
  if os.environ.get(CACHE):
    return Path(os.environ[CACHE])
  base = os.environ.get("XDG_CACHE_HOME", "")
  if not os.path.isabs(base):  # the XDG specification ignores relative paths
    base = os.path.expanduser("~/.cache")
  return Path(base, "lstm_jax")


def cached_path(name: str) -> Path:
  """Return where a named corpus is kept."""
  return cache_dir() / f"{name}.txt"


def recorded_corpus(corpus: str) -> str:
  """Return what config.json holds for the flag --corpus."""
  return corpus if is_name(corpus) else recorded_path(corpus)


def recorded_path(name: str) -> str:
  """Return the path by which config.json names a file or directory.

  It is absolute, or relative to the repository if it lies in the repository.
  """
  path = Path(os.path.abspath(name))
  if path.is_relative_to(REPOSITORY):
    path = path.relative_to(REPOSITORY)
  return str(path)


def find_corpus(
  directory: Path,
  data: DataConfig,
  sha256: str,
  console: Console | None = None,
) -> DataConfig:
  """Return the data of a run with the path at which its corpus is now.

  If the file is no longer where the run has read it, or has changed, the text
  is looked for by its hash, in files of the same name or *.txt: in the run
  directory, in the current directory, in data/ and among the named corpora that
  were downloaded. A named corpus is looked for likewise if it was not
  downloaded; if it is not found, it is downloaded when it is read.

  Returns:
    `data` with that path, which the console prints; `data` unchanged if there
    is no such text.
  """
  corpus = data.corpus
  if is_name(corpus) and _has_hash(cached_path(corpus), sha256):
    return data
  for path in (REPOSITORY / corpus, Path(corpus)):
    if _has_hash(path, sha256):
      return replace(data, corpus=str(path))
  folders = directory, Path(), Path("data"), REPOSITORY / "data", cache_dir()
  for folder in folders:
    for path in (folder / Path(corpus).name, *sorted(folder.glob("*.txt"))):
      if _has_hash(path, sha256):
        if console:
          console.print(f"corpus  {corpus} is now {path}", soft_wrap=True)
        return replace(data, corpus=str(path))
  return data


def check_is_no_corpus(name: str, path: Path, sha256: str) -> None:
  """Raise ValueError if the file that --name gives is a copy of the corpus."""
  if _has_hash(path, sha256):
    what = "no file with the run's corpus"
    raise ValueError(f"{name} must be {what}, got {path}")


def _has_hash(path: Path, sha256: str) -> bool:
  """Return whether a path is a readable text file with this hash."""
  try:  # `Path.is_file` may raise PermissionError
    return os.path.isfile(path) and text_sha256(read_text(path)) == sha256
  except ValueError:  # it is not a text
    return False
