"""A part of a text that a run is evaluated on."""

from typing import NamedTuple

from experiments.trainer.config import DataConfig
from experiments.trainer.data import text_sha256
from lstm_jax.language import read_text


class Excerpt(NamedTuple):
  """A part of a text file, and where it stands there."""

  path: str
  whole: str  # the file's text
  begin: float  # as shares of the whole
  end: float
  first: int  # the same in characters
  last: int

  @property
  def text(self) -> str:
    """The excerpt itself."""
    return self.whole[self.first : self.last]

  @property
  def before(self) -> str:
    """The text before it."""
    return self.whole[: self.first]


def read_excerpt(
  config: DataConfig, sha256: str, path: str, begin: float | None, end: float
) -> Excerpt:
  """Return a part of the corpus of a run, or of another file.

  Args:
    config: of the run.
    sha256: of its corpus.
    path: another file; empty for the run's corpus.
    begin: share of the text before the excerpt; None for the start of the
      run's test split, or of its validation split if it has no test split. In
      another text, the excerpt begins at the same share.
    end: share of the text at which the excerpt ends.

  Raises:
    ValueError: the text cannot be read, or has changed since the run; or the
      shares leave fewer than two characters.
  """
  whole = read_text(path or config.corpus)
  if not path and text_sha256(whole) != sha256:
    # The part to evaluate may now hold text that the run was trained on.
    raise ValueError(
      f"corpus {config.corpus} has changed since the run started"
    )
  if begin is None:
    begin = 1 - (config.test_fraction or config.val_fraction)
  first, last = (int(share * len(whole) + 1e-6) for share in (begin, end))
  if not 0 <= begin < end <= 1 or last - first < 2:
    raise ValueError(
      "--begin and --end must be shares of the corpus with at least 2 "
      f"characters between them, got {begin} and {end} of {len(whole):,} "
      "characters"
    )
  return Excerpt(path or config.corpus, whole, begin, end, first, last)
