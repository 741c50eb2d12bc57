"""The error of a package that is missing and comes with the extra `interop`."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def from_extra(package: str) -> Iterator[None]:
  """Let a failed import in this context name the package and the extra.

  Raises:
    ModuleNotFoundError: the package is not installed; or another one is not,
      which it imports, and then the error names that one.
  """
  try:
    yield
  except ModuleNotFoundError as error:
    if error.name and error.name.partition(".")[0] != package:
      raise
    raise ModuleNotFoundError(
      f"the package {package} is not installed; it comes with the extra "
      "interop: pip install 'lstm-jax[interop]'"
    ) from None
