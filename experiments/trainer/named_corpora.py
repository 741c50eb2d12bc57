"""Corpora with a name: downloaded once, checked by their hash, and kept.

`--corpus=tinyshakespeare` is the text of that name. It is kept in the cache
directory: $LSTM_JAX_CACHE, else lstm_jax in $XDG_CACHE_HOME, else
~/.cache/lstm_jax. If there is a file of that name, --corpus means the file. The
hash is checked whenever a text is used, so that the name always means the same
text. Without a network, save a copy in the cache directory by hand.
"""

import hashlib
import http.client
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import NamedTuple

from experiments.trainer.files import write_bytes

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


def is_name(corpus: str) -> bool:
  """Return whether this is a name in CORPORA, and no file has that name."""
  is_path = os.path.exists(corpus) and not os.path.isdir(corpus)
  return corpus in CORPORA and not is_path


def locate(corpus: str) -> str:
  """Return the path of a named corpus, or else the path that is given.

  A named corpus that is not in the cache directory is downloaded to it.

  Raises:
    ValueError: it cannot be downloaded, or the copy is of another text: the
      message says what is expected, and where to save it by hand; or it cannot
      be kept or read there, or there is no home directory.
  """
  if not is_name(corpus):
    return corpus
  path = cached_path(corpus)
  try:
    if not path.exists():
      data = _download(corpus, path)
      path.parent.mkdir(parents=True, exist_ok=True)
      write_bytes(path, data)
    fault = _fault(CORPORA[corpus], path.read_bytes())
  except OSError as error:
    raise ValueError(
      f"corpus {corpus} cannot be kept or read as {path}: "
      f"{(error.strerror or str(error)).lower()}; set {CACHE} to another "
      "directory"
    ) from None
  if fault:
    raise ValueError(f"{path} {fault}: replace it by {_wanted(corpus)}")
  return str(path)


def cache_dir() -> Path:
  """Return the directory that keeps named corpora; it need not exist.

  Raises:
    ValueError: nothing says where it is: there is no home directory.
  """
  if os.environ.get(CACHE):
    return Path(os.environ[CACHE])
  base = os.environ.get("XDG_CACHE_HOME", "")
  if os.path.isabs(base):  # the XDG specification ignores relative paths
    return Path(base) / "lstm_jax"
  try:
    return Path.home() / ".cache" / "lstm_jax"
  except RuntimeError:
    raise ValueError(
      f"there is no home directory to keep corpora in: set {CACHE} to a "
      "directory"
    ) from None


def cached_path(name: str) -> Path:
  """Return where a named corpus is kept; raise ValueError as `cache_dir`."""
  return cache_dir() / f"{name}.txt"


def is_downloaded(name: str) -> bool:
  """Return whether a named corpus is in the cache directory.

  The answer is False, too, if this user may not look there. The hash is not
  checked.

  Raises:
    ValueError: as `cache_dir`.
  """
  return os.path.isfile(cached_path(name))


def _download(name: str, path: Path) -> bytes:
  """Download a named corpus, and return its bytes.

  Args:
    name: of the corpus.
    path: where messages say that it is to be saved; nothing is written here.

  Raises:
    ValueError: it cannot be downloaded, or is another text.
  """
  corpus = CORPORA[name]
  print(f"downloading {corpus.url} to {path}", file=sys.stderr)
  try:
    with urllib.request.urlopen(corpus.url, timeout=TIMEOUT) as response:
      data = response.read(corpus.num_bytes + 1)  # to notice a longer file
    fault = _fault(corpus, data)
  except urllib.error.HTTPError as error:
    error.close()
    fault = f"cannot be downloaded: {error}"
  except (OSError, http.client.HTTPException) as error:
    fault = f"cannot be downloaded: {getattr(error, 'reason', error)}"
  if fault:
    raise ValueError(f"corpus {name} {fault}: save {_wanted(name)} as {path}")
  return data


def _fault(corpus: NamedCorpus, data: bytes) -> str | None:
  """Return what is wrong with a copy of a corpus; None if nothing is."""
  expected = corpus.num_bytes
  if len(data) != expected:
    size = "more" if len(data) > expected else f"{len(data):,}"
    return f"has {size} bytes, not {expected:,}"
  sha256 = hashlib.sha256(data).hexdigest()
  return None if sha256 == corpus.sha256 else f"has the SHA-256 {sha256}"


def _wanted(name: str) -> str:
  """Return how messages describe the file to save by hand."""
  corpus = CORPORA[name]
  return f"{corpus.url} ({corpus.num_bytes:,} bytes, SHA-256 {corpus.sha256})"
