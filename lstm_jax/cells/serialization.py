"""Serialization of functions that take or return the library's NamedTuples.

`jax.export` writes the types of arguments and results by name, and refuses a
NamedTuple that has none. The name is "lstm_jax." and the name of the class,
without its module. It does not change when the class moves to another module,
so that exported functions stay readable.
"""

from contextlib import suppress
from typing import TypeVar

from jax import export

T = TypeVar("T", bound=tuple)


def serializable(namedtuple: type[T]) -> type[T]:
  """Return a NamedTuple class, after giving it its name for `jax.export`.

  If the name was given to another class before, as when a module is reloaded or
  the library is imported anew, the new class gets no name, and `jax.export`
  refuses to serialize it.
  """
  name = f"lstm_jax.{namedtuple.__name__}"
  with suppress(ValueError):  # the name is taken
    export.register_namedtuple_serialization(namedtuple, serialized_name=name)
  return namedtuple
