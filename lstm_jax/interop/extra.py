"""The error of a package that is missing and comes with the extra `interop`."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def from_extra(package: str) -> Iterator[None]:
  """Let a failed import in this context name the package and the extra.

  Raises:
    ModuleNotFoundError: the package is not installed.
  """
  try:
    yield
  except ModuleNotFoundError:
    raise ModuleNotFoundError(
      f"the package {package} is not installed; it comes with the extra "
      "interop: pip install 'lstm-jax[interop]'"
    ) from None
