"""The reference shows every exported name, and for two packages no other."""

import ast
import importlib
import importlib.util
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import lstm_jax
from lstm_jax import interop

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def public_names(module):
  """Return the names that the page of a module shows, constants too."""
  definitions = ast.FunctionDef, ast.ClassDef
  names = []
  for node in ast.parse(inspect.getsource(module)).body:
    if isinstance(node, definitions):
      names.append(node.name)
    elif isinstance(node, ast.Assign | ast.AnnAssign):
      names += [
        target.id
        for target in ast.walk(node)
        if isinstance(target, ast.Name) and isinstance(target.ctx, ast.Store)
      ]
  return [name for name in names if not name.startswith("_")]


@pytest.mark.parametrize("package", ["language", "training"])
def test_a_package_exports_what_its_page_of_the_reference_shows(package):
  exported = vars(importlib.import_module(f"lstm_jax.{package}"))
  page = (DOCS / "reference" / f"{package}.md").read_text("utf-8")
  shown = {}
  for entry in page.split("\n::: ")[1:]:
    path, *options = entry.split("\n")
    listed = re.findall(r"\w+", " ".join(options).partition("members:")[2])
    try:
      module = importlib.import_module(path)
    except ModuleNotFoundError:  # a name in a module
      path, _, name = path.rpartition(".")
      module, listed = importlib.import_module(path), [name]
    names = listed or public_names(module)
    assert names, path
    shown |= {name: getattr(module, name) for name in names}
  missing = [n for n, value in shown.items() if exported.get(n) is not value]
  assert missing == []


# They export no name.
INTERNAL = "lstm_jax.interop", "lstm_jax.mosaic_gpu"
PACKAGES = [
  "lstm_jax",
  *(
    module.name
    for module in pkgutil.walk_packages(lstm_jax.__path__, "lstm_jax.")
    if module.ispkg and module.name not in INTERNAL
  ),
]
SHARED = "extra", "tensors"  # by the modules of `interop`
ENTRY = re.compile(
  r"^::: (\S+)\n(?:    options:\n(?:      heading: .*\n)?"
  r"      members:(?: \[([^\]]*)\]|((?:\n        - \w+)+)))?",
  re.M,
)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_exported_name_is_in_the_reference(package):
  pages = (DOCS / "reference").glob("*.md")
  text = "\n".join(page.read_text("utf-8") + "\n" for page in pages)
  documented = {}  # of each entry, the members it shows; None for all
  for entry, *lists in ENTRY.findall(text):  # [a, b], or one name a line
    documented[entry] = re.findall(r"\w+", "".join(lists)) or None

  def is_documented(name, value):
    if inspect.ismodule(value):
      return value.__name__ in documented or value.__name__ in PACKAGES
    home = getattr(value, "__module__", None)
    if home in documented:  # a page of the module
      members = documented[home]
      return members is None or name in members
    if f"{home}.{name}" in documented:
      return True
    # An alias of a type has no module of its own.
    is_alias = not (home or "").startswith("lstm_jax")
    return is_alias and any(
      entry.endswith(f".{name}")
      or (name in members if members else hasattr(imported(entry), name))
      for entry, members in documented.items()
    )

  module = importlib.import_module(package)
  exported = set(
    re.findall(r"(\w+) as \1\b", Path(module.__file__).read_text("utf-8"))
  )
  assert exported
  missing = {n for n in exported if not is_documented(n, getattr(module, n))}
  assert missing == set()


def test_every_module_of_interop_is_in_the_reference():
  page = (DOCS / "reference" / "interop.md").read_text("utf-8")
  missing = {
    module.name
    for module in pkgutil.iter_modules(interop.__path__)
    if module.name not in SHARED
    and not re.search(rf"^::: lstm_jax\.interop\.{module.name}\b", page, re.M)
  }
  assert missing == set()


def imported(entry):
  """Return the module of an entry of the reference, or else the name in it."""
  try:
    return importlib.import_module(entry)
  except ModuleNotFoundError:
    home, name = entry.rsplit(".", 1)
    return getattr(importlib.import_module(home), name)
