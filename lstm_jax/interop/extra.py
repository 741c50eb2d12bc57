"""Name the extra `interop` in the error of an import that fails."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def from_extra(package: str) -> Iterator[None]:
  """Name the package and the extra in the error of an import in this context.

  Raises:
    ModuleNotFoundError: the package is not installed; or one of its modules, or
      another package that it imports, is missing, and then the error names it.
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
