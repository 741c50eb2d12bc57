"""The rooms of the project: imports between them point downwards.

A module imports from rooms below its own in ROOMS, and within its room only so
that no module imports itself by way of others.
"""

import ast
import graphlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = [  # from the top down
  "experiments",
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
CORE = "jax", "jaxlib", "numpy", "optax", "flax", "orbax"  # of the library
OPTIONAL = {"safetensors"}  # of an extra, imported where it is used


def modules():
  """Return the path of every module, by its dotted name."""
  found = {}
  for package in ("experiments", "lstm_jax"):
    for path in sorted((ROOT / package).rglob("*.py")):
      parts = path.relative_to(ROOT).with_suffix("").parts
      name = ".".join(parts).removesuffix(".__init__")
      found[name] = path
  return found


MODULES = modules()


def imports(path):
  """Return the dotted names that a module imports, wherever it does."""
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


def room(name):
  """Return the room of a module: the package two levels deep, at most."""
  parts = name.split(".")
  while ".".join(parts) not in ROOMS:
    parts.pop()
  return ".".join(parts)


def is_package(name):
  return MODULES[name].name == "__init__.py"


def own_imports(name):
  return {found for found in imports(MODULES[name]) if found in MODULES}


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_downwards(name):
  here = ROOMS.index(room(name))
  for found in own_imports(name):
    there = ROOMS.index(room(found))
    assert there >= here, f"{name} imports {found}, from a room above it"


def test_no_module_imports_itself_by_way_of_others():
  # A package's own exports import its modules, which is no cycle of ideas.
  graph = {
    name: {found for found in own_imports(name) if not is_package(found)}
    for name in MODULES
    if not is_package(name)
  }
  assert len(list(graphlib.TopologicalSorter(graph).static_order())) > 80


def test_the_check_sees_an_import_from_above(tmp_path):
  path = tmp_path / "low.py"
  path.write_text("def f():\n  from experiments.trainer import setup\n")
  assert imports(path) == {"experiments.trainer.setup"}
  above = ROOMS.index(room("experiments.trainer.setup"))
  assert above < ROOMS.index(room("lstm_jax.cells.lstm"))


@pytest.mark.parametrize(
  "name", [name for name in MODULES if name.startswith("lstm_jax")]
)
def test_the_library_needs_its_dependencies_alone(name):
  for found in imports(MODULES[name]):
    package = found.split(".")[0]
    if package not in ("lstm_jax", *CORE, *OPTIONAL):
      assert package in sys.stdlib_module_names, f"{name} imports {found}"
