"""A part of a corpus, by shares of its characters, as a model is judged on."""

from pathlib import Path
from typing import NamedTuple

from experiments.trainer import run_dir
from experiments.trainer.config import TrainConfig
from experiments.trainer.data import read_again
from lstm_jax.language import read_text


class Extract(NamedTuple):
  """A part of a corpus, and where it stands there."""

  corpus: str  # its file
  whole: str  # what that holds
  begin: float  # shares of the whole
  end: float
  first: int  # the same in characters
  last: int

  @property
  def text(self) -> str:
    """The part."""
    return self.whole[self.first : self.last]

  @property
  def before(self) -> str:
    """All that comes before it."""
    return self.whole[: self.first]


def extract(
  directory: Path, corpus: str, begin: float | None, end: float
) -> Extract:
  """Return a part of a corpus.

  Args:
    directory: of a run.
    corpus: the file; empty for the run's.
    begin: share of the corpus before the part; None for what the run learnt.
    end: share at which it ends.

  Raises:
    ValueError: the corpus cannot be read, or has changed since the run; or the
      shares are none, or leave no two characters.
  """
  record = run_dir.read_record(directory)
  config = run_dir.configuration(record, TrainConfig())
  if corpus:
    whole = read_text(corpus)
  else:
    corpus = config.corpus
    whole = read_again(corpus, record.get("corpus_sha256"))
  begin = 1 - config.val_fraction if begin is None else begin
  first, last = (int(share * len(whole) + 1e-6) for share in (begin, end))
  if not 0 <= begin < end <= 1 or last - first < 2:
    raise ValueError(
      "--begin and --end must be shares of the corpus with at least 2 tokens "
      f"between them, got {begin} and {end} of {len(whole):,} characters"
    )
  return Extract(corpus, whole, begin, end, first, last)
