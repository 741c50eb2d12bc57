import dataclasses
import typing
from dataclasses import dataclass

import jax.numpy as jnp
import pytest

from lstm_jax.cells.cell import Cell
from lstm_jax.language import BatchingConfig, ModelConfig, Regularizers
from lstm_jax.language.options import check_options, in_bounds, option
from lstm_jax.training import OptimizerConfig

CONFIGS = ModelConfig, Regularizers, BatchingConfig, OptimizerConfig
DTYPES = {"float32": None, "bfloat16": jnp.bfloat16}


@dataclass(frozen=True)
class Config:
  rate: float = option(0.5, "A rate.", bounds="(0, 1]")
  size: int | None = option(None, "A size.", bounds="[1, inf)")
  color: str = option("red", "A color.", choices=("red", "green"))
  dtype: typing.Any = option(None, "A data type.", choices=DTYPES)
  colors: tuple[str, ...] = option((), "Colors.", choices=("red", "green"))
  free: int = option(3, "Any number.")
  plain: int = -1

  def __post_init__(self):
    check_options(self)


@pytest.mark.parametrize(
  ("bounds", "inside", "outside"),
  [
    ("[0, 1]", (0, 0.5, 1), (-1e-9, 1 + 1e-9)),
    ("(0, 1)", (1e-9, 0.5), (0, 1)),
    ("[0, 1)", (0,), (1,)),
    ("(0, 1]", (1,), (0,)),
    ("[1, inf)", (1, 1e300), (0, float("inf"))),
    ("[0, inf]", (float("inf"),), (float("-inf"),)),
  ],
)
def test_an_interval_contains_its_ends_as_its_brackets_say(
  bounds, inside, outside
):
  assert all(in_bounds(value, bounds) for value in inside)
  assert not any(in_bounds(value, bounds) for value in outside)
  assert not in_bounds(float("nan"), bounds)


@pytest.mark.parametrize(
  ("values", "message"),
  [
    ({"rate": 0.0}, r"^rate must be in \(0, 1\], got 0.0$"),
    ({"rate": float("nan")}, r"^rate must be in \(0, 1\], got nan$"),
    ({"size": 0}, r"^size must be in \[1, inf\), got 0$"),
    ({"color": "blue"}, "^color must be one of red, green, got 'blue'$"),
    ({"color": None}, "^color must be one of red, green, got None$"),
    ({"dtype": "bfloat16"}, "^dtype must be one of float32, bfloat16, got 'b"),
    ({"colors": ("red", "blue")}, r"^colors must be one of .*\('red', 'blue'"),
  ],
)
def test_a_value_out_of_its_range_is_refused(values, message):
  with pytest.raises(ValueError, match=message):
    Config(**values)


def test_a_tuple_of_choices_is_valid():
  assert Config(colors=("green", "red")).colors == ("green", "red")


def test_none_is_valid_where_the_type_says_so():
  assert Config(size=None, dtype=None).size is None
  assert Config(size=1, dtype=jnp.bfloat16, free=-9, plain=-9).free == -9


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.__name__)
def test_every_field_of_a_configuration_has_a_help_sentence(config):
  for field in dataclasses.fields(config):
    text = field.metadata["help"]
    assert text[0].isupper() and text.endswith("."), field.name
    assert field.type in (bool, Cell, typing.Any) or (
      field.metadata["bounds"] or field.metadata["choices"]
    ), f"{field.name} has no range"
