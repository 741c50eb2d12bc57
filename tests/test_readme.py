"""The README: its code runs with the library alone and prints what it says."""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

README = Path(__file__).parents[1] / "README.md"

# A fresh interpreter, as a reader's: it refuses to import what `pip install .`
# does not install, and this project's programs and tests.
READER = """
import sys

refused = set({refused!r})


class Refuse:
  def find_spec(self, name, path=None, target=None):
    if name.partition(".")[0] in refused:
      raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)


sys.meta_path.insert(0, Refuse())
for code in {blocks!r}:
  exec(code, names := {{}})
  print("end of block")
"""


def dependencies(name):
  """Return a package and all that it requires, by canonical names."""
  found, left = set(), [name]
  while left:
    package = canonicalize_name(left.pop())
    if package in found:
      continue
    try:
      lines = importlib.metadata.requires(package) or []
    except importlib.metadata.PackageNotFoundError:
      continue  # for another platform or Python
    found.add(package)
    for requirement in map(Requirement, lines):
      if not requirement.marker or requirement.marker.evaluate({"extra": ""}):
        left.append(requirement.name)
  return found


def modules_of_others(name):
  """Return the top-level modules of every package that `name` does without."""
  needed = dependencies(name)
  return {
    module
    for module, packages in importlib.metadata.packages_distributions().items()
    if not needed & set(map(canonicalize_name, packages))
  }


def test_the_example_of_the_readme_prints_what_it_says(tmp_path):
  text = README.read_text(encoding="utf-8")
  blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
  assert blocks
  refused = modules_of_others("lstm-jax") | {"experiments", "tests"}
  assert "pytest" in refused and not refused & {"jax", "optax", "lstm_jax"}
  script = READER.format(refused=sorted(refused), blocks=blocks)
  done = subprocess.run(
    [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  *printed, last = done.stdout.split("end of block\n")
  assert not last and len(printed) == len(blocks)
  for code, output in zip(blocks, printed, strict=True):
    assert output.strip() == code.strip().split("# ")[-1]


def test_both_commands_stand_in_the_readme():
  text = README.read_text(encoding="utf-8")
  for command in ("python -m experiments.train", "pytest"):
    assert f"\npip install uv && uv run {command}\n" in text
