"""What the package exports, and under which names."""

import importlib
import inspect
import pkgutil
import re
import tomllib
from collections.abc import Sequence
from types import FunctionType, ModuleType
from typing import Any, get_args, get_type_hints

import pytest
from jax.typing import DTypeLike

import lstm_jax
from lstm_jax import Cell, cells, language, sequence, testing
from lstm_jax.cells.cell import ParamsT, StateT
from lstm_jax.interop import keras, onnx, torch
from lstm_jax.interop.cudnn import to_cudnn
from tests.processes import ROOT

PACKAGES = [
  "lstm_jax",
  *(
    module.name
    for module in pkgutil.walk_packages(lstm_jax.__path__, "lstm_jax.")
    if module.ispkg
  ),
]


def shadowed(package: ModuleType) -> list[str]:
  """Return the submodules whose name in their package is another object."""
  return [
    name
    for _, name, _ in pkgutil.iter_modules(package.__path__)
    if hasattr(package, name)
    and not isinstance(getattr(package, name), ModuleType)
  ]


@pytest.mark.parametrize("name", PACKAGES)
def test_no_module_is_shadowed_by_a_function_of_its_name(name):
  assert shadowed(importlib.import_module(name)) == []


def test_a_shadowed_module_is_found(tmp_path):
  (tmp_path / "unroll.py").write_text("def unroll(): pass")
  package = ModuleType("package")
  package.__path__ = [str(tmp_path)]
  package.unroll = lambda: None
  assert shadowed(package) == ["unroll"]


def test_the_parameters_and_state_of_every_cell_are_exported():
  modules = [
    module
    for _, module in inspect.getmembers(cells, inspect.ismodule)
    if hasattr(module, "recur")
  ]
  assert len(modules) == 13
  for module in modules:
    for name, value in vars(module).items():
      if name.endswith(("Params", "State")) and hasattr(value, "_fields"):
        assert getattr(lstm_jax, name) is value


@pytest.mark.parametrize(
  "name",
  [
    "Cell",
    "Directions",
    "Explicit",
    "Step",
    "Autodiff",
    "Report",
    "gradcheck",
    "init_stack",
    "initial_stack_state",
    "regularize",
    "unroll",
    "unroll_both",
    "unroll_stack",
  ],
)
def test_the_interface_is_exported(name):
  assert hasattr(lstm_jax, name)


def test_a_module_has_every_member_of_the_protocol_of_cells():
  # To a type checker, a module lacks what it only inherits, such as `__hash__`.
  members = {
    name
    for name, value in vars(lstm_jax.Cell).items()
    if isinstance(value, property)
    or (isinstance(value, FunctionType) and value.__doc__)
  }
  assert "recur" in members and members <= vars(lstm_jax.lstm).keys()


def test_types_accept_what_the_documents_pass():
  hints = get_type_hints(lstm_jax.unroll)
  assert hints["compute_dtype"] == DTypeLike | None
  for function in (testing.terms, testing.plant):  # a made cell, too
    assert Cell in get_args(get_type_hints(function)["module"])
  zero_state = get_type_hints(language.LanguageModel)["initial_state"]
  assert get_args(zero_state)[0] is ...  # no batch_shape, or a symbolic one
  for function in (torch.to_torch, torch.save, to_cudnn):  # a list, too
    assert get_type_hints(function)["layers"].__origin__ is Sequence
  for function in (lstm_jax.init_stack, lstm_jax.unroll_stack):
    # Of `(gru, lstm)`, pyright knows only that it is a tuple of modules.
    cells_of_layers = get_args(get_type_hints(function)["cell"])[1]
    assert ModuleType in get_args(get_args(cells_of_layers)[0])


def test_results_have_the_types_of_the_cell():
  made = lstm_jax.rnn.with_activation, lstm_jax.lstm.with_activations
  assert [get_type_hints(function)["return"] for function in made] == [
    Cell[lstm_jax.RNNParams, lstm_jax.RNNState],
    Cell[lstm_jax.LSTMParams, lstm_jax.LSTMState],
  ]
  for wrapper in (sequence.masked, sequence.resettable, sequence.zoneout):
    hints = get_type_hints(wrapper)
    assert hints["return"] == hints["cell"] == Cell[ParamsT, StateT]
  both = get_type_hints(lstm_jax.unroll_both)["return"]
  assert get_args(both)[0] == lstm_jax.Directions[StateT]


def test_a_layer_of_a_result_has_fields():
  # A type checker refuses the `h` of `State | Directions`.
  states, _ = get_args(get_type_hints(lstm_jax.unroll_stack)["return"])
  zero_states = get_type_hints(lstm_jax.initial_stack_state)["return"]
  layers = get_type_hints(lstm_jax.init_stack)["return"]
  assert states == zero_states == layers == torch.weights.Layers
  assert get_args(states) == (Any, ...)
  loaded = get_type_hints(keras.from_keras)["return"]
  assert get_args(loaded)[1] is get_type_hints(onnx.Layer)["params"] is Any


def test_a_version_has_a_date_to_cite_once_it_is_released():
  project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
  version = project["project"]["version"]
  changes = (ROOT / "CHANGELOG.md").read_text("utf-8")
  newest, state = re.findall(r"^## (\S+) \((.+)\)$", changes, re.M)[0]
  cited = (ROOT / "CITATION.cff").read_text("utf-8")
  assert newest == version and f"\nversion: {version}\n" in cited
  assert lstm_jax.__version__ == version
  released = re.findall(r"^date-released: (\S+)$", cited, re.M)
  assert released == ([] if state == "unreleased" else [state])
