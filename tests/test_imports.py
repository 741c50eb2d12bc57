"""Imports between the packages of the project point downwards, without cycles.

A module imports only from its own package and from those below it in PACKAGES,
and the library imports only its dependencies.
"""

import ast
import graphlib
import re
import runpy
import sys
import tomllib
from pathlib import Path

import pytest

import experiments

ROOT = Path(__file__).parents[1]
PACKAGES = [  # from the top down, as in CONTRIBUTING.md
  "experiments",
  "experiments.policies",
  "experiments.comparison",
  "experiments.benchmarks",
  "experiments.pages",
  "experiments.trainer",
  "experiments.analysis",
  "lstm_jax",
  "lstm_jax.testing",
  "lstm_jax.interop",
  "lstm_jax.training",
  "lstm_jax.language",
  "lstm_jax.sequence",
  "lstm_jax.mosaic_gpu",
  "lstm_jax.cells",
]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
REQUIRED, OPTIONAL = (  # of orbax-checkpoint, the module is orbax
  [re.match(r"\w+", requirement)[0] for requirement in requirements]
  for requirements in (
    ["jaxlib", *PROJECT["dependencies"]],  # jaxlib comes with jax
    PROJECT["optional-dependencies"]["interop"],
  )
)
PEERS = {"lstm_jax.interop.equinox": "equinox"}  # its users have the package


def modules():
  """Return {dotted name: path} of every module of the project."""
  found = {}
  for package in ("experiments", "lstm_jax"):
    for path in sorted((ROOT / package).rglob("*.py")):
      parts = path.relative_to(ROOT).with_suffix("").parts
      name = ".".join(parts).removesuffix(".__init__")
      found[name] = path
  return found


MODULES = modules()


def imports(path):
  """Return the dotted names that a file imports, also inside functions."""
  names = set()
  for node in ast.walk(ast.parse(path.read_text("utf-8"))):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path} has a relative import"
      for alias in node.names:
        full = f"{node.module}.{alias.name}"
        names.add(full if full in MODULES else node.module)
  return names


def level(name):
  """Return the index in PACKAGES of the innermost package of a module."""
  parts = name.split(".")
  while ".".join(parts) not in PACKAGES:
    parts.pop()
  return PACKAGES.index(".".join(parts))


def is_package(name):
  return MODULES[name].name == "__init__.py"


def project_imports(name):
  """Return the modules of the project that a module imports."""
  return {found for found in imports(MODULES[name]) if found in MODULES}


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_downwards(name):
  for found in project_imports(name):
    assert level(found) >= level(name), (
      f"{name} imports {found}, from a package above its own"
    )


def test_there_is_no_cycle_of_imports():
  # Packages are left out: an __init__.py imports modules to re-export them.
  graph = {
    name: {found for found in project_imports(name) if not is_package(found)}
    for name in MODULES
    if not is_package(name)
  }
  order = graphlib.TopologicalSorter(graph).static_order()  # may be CycleError
  assert len(list(order)) > 80  # the modules were found


def test_the_check_sees_an_import_from_above(tmp_path):
  path = tmp_path / "low.py"
  path.write_text("def f():\n  from experiments.trainer import setup\n")
  assert imports(path) == {"experiments.trainer.setup"}
  assert level("experiments.trainer.setup") < level("lstm_jax.cells.lstm")


@pytest.mark.parametrize(
  "name", [name for name in MODULES if name.startswith("lstm_jax")]
)
def test_the_library_imports_only_its_dependencies(name):
  for found in imports(MODULES[name]):
    package = found.split(".")[0]
    if package not in ("lstm_jax", *REQUIRED, *OPTIONAL, PEERS.get(name)):
      assert package in sys.stdlib_module_names, f"{name} imports {found}"


def test_the_experiments_name_every_package_of_their_extra():
  extra = PROJECT["optional-dependencies"]["experiments"]
  modules = {re.match(r"\w+", requirement)[0] for requirement in extra}
  assert {*experiments._EXTRA} == modules  # of absl-py, the module is absl


def test_without_posix_the_experiments_say_what_they_need(monkeypatch):
  monkeypatch.setitem(sys.modules, "fcntl", None)  # as on Windows
  with pytest.raises(ImportError, match=r"^the experiments need a POSIX sys"):
    runpy.run_path(MODULES["experiments"])
