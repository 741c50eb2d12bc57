"""Name the extra `interop` in the error of an import that fails."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def from_extra(package: str) -> Iterator[None]:
  """Name the extra in the error if an import in this context fails.

  Raises:
    ModuleNotFoundError: the package is not installed; the message names it and
      the extra. Or one of the package's modules, or another package that it
      imports, is missing: then Python's own error names what is missing.
  """
  try:
    yield
  except ModuleNotFoundError as error:
    if error.name != package:
      raise
    raise ModuleNotFoundError(
      f"the package {package} is not installed; it comes with the extra "
      "interop: pip install '.[interop]' in a clone of lstm_jax"
    ) from None
