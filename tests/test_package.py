"""What the package exports, and under which names."""

import importlib
import inspect
import pkgutil
import re
import tomllib
from collections.abc import Sequence
from types import FunctionType, ModuleType
from typing import get_args, get_type_hints

import pytest
from jax.typing import DTypeLike

import lstm_jax
from lstm_jax import cells, language, testing
from lstm_jax.interop import torch
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
  # A type checker finds no member that a module only inherits: `__hash__`.
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
  made = get_type_hints(lstm_jax.rnn.with_activation)["return"]
  for function in (testing.terms, testing.plant):
    assert made in get_args(get_type_hints(function)["module"])
  zero_state = get_type_hints(language.LanguageModel)["initial_state"]
  assert get_args(zero_state)[0] is ...  # no batch_shape, or a symbolic one
  for function in (torch.to_torch, torch.save):  # a list, too
    assert get_type_hints(function)["layers"].__origin__ is Sequence


def test_a_version_has_a_date_to_cite_once_it_is_released():
  project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
  version = project["project"]["version"]
  changes = (ROOT / "CHANGELOG.md").read_text("utf-8")
  newest, state = re.findall(r"^## (\S+) \((.+)\)$", changes, re.M)[0]
  cited = (ROOT / "CITATION.cff").read_text("utf-8")
  assert newest == version and f"\nversion: {version}\n" in cited
  released = re.findall(r"^date-released: (\S+)$", cited, re.M)
  assert released == ([] if state == "unreleased" else [state])
