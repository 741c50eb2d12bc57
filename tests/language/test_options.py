import copy
import dataclasses
import json
import pickle
import typing
from dataclasses import dataclass
from types import ModuleType

import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import Autodiff, Explicit, Step, gru, lstm
from lstm_jax.cells.cell import Cell
from lstm_jax.language import BatchingConfig, ModelConfig, Regularizers
from lstm_jax.language.options import check_options, in_bounds, option
from lstm_jax.testing import plant
from lstm_jax.training import OptimizerConfig
from tests.contract import TABLE

CONFIGS = ModelConfig, Regularizers, BatchingConfig, OptimizerConfig


@dataclass(frozen=True)
class Config:
  rate: float = option(0.5, "A rate.", bounds="(0, 1]")
  size: int | None = option(None, "A size.", bounds="[1, inf)")
  color: str = option("red", "A color.", choices=("red", "green"))
  colors: tuple[str, ...] = option((), "Colors.", choices=("red", "green"))
  sizes: tuple[int, ...] | None = option(None, "Sizes.", bounds="[1, inf)")
  free: int = option(3, "Any number.")
  plain: int = -1
  on: bool = option(False, "A switch.")
  rates: tuple[float, ...] = option((0.5,), "Rates.", bounds="(0, 1]")
  names: tuple[str, ...] = option((), "Names.")

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
    ({"size": 8.5}, "^size must be of type int, got 8.5$"),
    ({"size": "8"}, "^size must be of type int, got '8'$"),
    ({"size": True}, "^size must be of type int, got True$"),
    ({"size": np.timedelta64(8, "s")}, "^size must be of type int, got np"),
    ({"rate": np.timedelta64(1, "s")}, "^rate must be of type float, got np"),
    ({"rate": "0.5"}, "^rate must be of type float, got '0.5'$"),
    ({"plain": 1.0}, "^plain must be of type int, got 1.0$"),
    ({"on": "False"}, "^on must be of type bool, got 'False'$"),
    ({"on": 1}, "^on must be of type bool, got 1$"),
    ({"on": None}, "^on must be of type bool, got None$"),
    ({"size": (8, 9)}, r"^size must be of type int, got \(8, 9\)$"),
    ({"rate": (0.5,)}, r"^rate must be of type float, got \(0.5,\)$"),
    ({"sizes": 2}, r"^sizes must be a tuple, got 2$"),
    ({"sizes": (1, 0)}, r"^sizes must be in \[1, inf\), got \(1, 0\)$"),
    ({"size": ()}, r"^size must be of type int, got \(\)$"),
    ({"rates": ()}, r"^rates must have at least one value, got \(\)$"),
    ({"color": ("red",)}, r"^color must be one of .*, got \('red',\)$"),
    ({"color": "blue"}, "^color must be one of red, green, got 'blue'$"),
    ({"color": None}, "^color must be one of red, green, got None$"),
    (
      {"names": ("a", "")},
      r"^names must have no empty value, got \('a', ''\)$",
    ),
    ({"colors": ("red", "blue")}, r"^colors must be one of .*\('red', 'blue'"),
  ],
)
def test_a_value_of_another_type_or_range_is_refused(values, message):
  with pytest.raises(ValueError, match=message):
    Config(**values)


def test_a_tuple_of_choices_is_valid():
  assert Config(colors=("green", "red")).colors == ("green", "red")


def test_none_is_valid_where_the_type_says_so():
  assert Config(size=None).size is None
  assert Config(sizes=None).sizes is None and Config(sizes=(1, 2)).sizes
  assert Config(size=1, free=-9, plain=-9).free == -9


def test_numbers_of_numpy_and_integers_for_floats_are_valid():
  assert Config(rate=1, size=np.int32(3)).size == 3
  assert Config(rate=np.float32(0.25)).rate == 0.25


def test_numbers_of_numpy_become_numbers_of_python():
  config = Config(
    np.float32(0.25), np.int8(100), on=np.True_, rates=(np.float16(0.5), 1)
  )
  assert config == Config(0.25, 100, on=True, rates=(0.5, 1))
  assert config.size * 2 == 200  # an int8 would overflow
  expected = {"rate": 0.25, "size": 100, "on": True, "rates": [0.5, 1]}
  found = json.loads(json.dumps(dataclasses.asdict(config)))
  assert found.items() >= expected.items()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.__name__)
def test_every_field_of_a_configuration_has_a_help_sentence_and_a_range(config):
  for field in dataclasses.fields(config):
    text = field.metadata["help"]
    assert text[0].isupper() and text.endswith("."), field.name
    assert field.type in (bool, Cell, typing.Any) or (
      field.metadata["bounds"] or field.metadata["choices"]
    ), f"{field.name} has no range"


class CellOfFunctions(typing.NamedTuple):
  """A user's own cell: a NamedTuple. Pickle finds its functions by name."""

  init: typing.Any
  initial_state: typing.Any
  project: typing.Any
  recur: typing.Any
  recur_backward: typing.Any
  parameter_gradients: typing.Any
  forward: typing.Any
  backward: typing.Any
  step: typing.Any


OWN_CELL = CellOfFunctions(
  *(getattr(gru, name) for name in CellOfFunctions._fields)
)
VALUES = [
  *(ModelConfig(row.cell) for row in TABLE.values()),
  # A value for each field, from cell to compute_dtype.
  ModelConfig(OWN_CELL, 3, 5, 2, 0.1, 0.2, True, jnp.bfloat16, jnp.bfloat16),
  Regularizers(token_dropout=0.1),
  BatchingConfig(),
  OptimizerConfig(),
  Explicit("recompute", 3),
  Step(),
  Autodiff(),
]


@pytest.mark.parametrize("config", VALUES)
def test_a_configuration_can_be_pickled_copied_and_made_a_dict(config):
  fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
  assert dataclasses.asdict(config) == fields
  for same in (
    *(pickle.loads(pickle.dumps(config, n)) for n in range(2, 6)),
    copy.copy(config),
    copy.deepcopy(config),
    type(config)(**dataclasses.asdict(config)),
  ):
    assert type(same) is type(config)
    assert same == config and hash(same) == hash(config)


@pytest.mark.parametrize("name", TABLE)
def test_a_cell_is_pickled_and_copied_as_itself(name):
  cell = TABLE[name].cell
  assert pickle.loads(pickle.dumps(cell)) is cell
  assert copy.deepcopy(cell) is cell


@pytest.mark.parametrize("name", TABLE)
def test_a_function_of_a_cell_is_pickled_as_itself_or_not_at_all(name):
  cell = TABLE[name].cell
  for function in (cell.forward, cell.backward, cell.step):
    if isinstance(cell, ModuleType):
      assert pickle.loads(pickle.dumps(function)) is function
    else:
      with pytest.raises(pickle.PicklingError, match="not the same object"):
        pickle.dumps(function)


def test_a_cell_with_a_planted_error_is_not_pickled_as_the_right_one():
  with pytest.raises(TypeError, match="cannot pickle 'module' object"):
    pickle.dumps(plant(lstm, "dc"))


@pytest.mark.parametrize("name", ["dtype", "compute_dtype"])
@pytest.mark.parametrize(
  ("dtype", "got"),
  [(jnp.int8, "int8"), ("int32", "'int32'"), ("half float", "'half float'")],
)
def test_a_model_has_a_dtype_of_floats(name, dtype, got):
  message = f"^{name} must be a dtype of floats, such as bfloat16, got {got}$"
  with pytest.raises(ValueError, match=message):
    ModelConfig(**{name: dtype})
  assert getattr(ModelConfig(**{name: "bfloat16"}), name) == "bfloat16"
