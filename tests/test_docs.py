"""The pages of docs/: their code runs, and their table names its tests."""

import ast
import importlib.util
import re
from pathlib import Path

import jax
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
NEEDS = {
  "Haiku": "haiku",
  "Equinox": "equinox",
  "PyTorch": "torch",
}


def code_blocks(text):
  return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def run(code, names):
  """Run a block as a reader does: in float32, with JAX's own settings."""
  with (
    jax.enable_x64(False),
    jax.numpy_rank_promotion("allow"),
    jax.numpy_dtype_promotion("standard"),
  ):
    exec(code, names)


def sections(page):
  """Return what stands before the first heading, and each heading's text."""
  first, *rest = re.split(r"^## ", (DOCS / page).read_text("utf-8"), flags=re.M)
  return first, dict(part.split("\n", 1) for part in rest)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
  "page", ["sequences.md", "recurrent-policy.md", "clusters.md"]
)
def test_the_code_of_a_page_runs(page):
  names = {}
  for code in code_blocks((DOCS / page).read_text("utf-8")):
    run(code, names)


FIRST, PAIRS = sections("coming-from.md")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("library", PAIRS)
def test_both_sides_compute_the_same(library):
  package = NEEDS.get(library)
  if package and importlib.util.find_spec(package) is None:
    pytest.skip(f"{library} is not installed")
  names = {}
  for code in code_blocks(FIRST):
    run(code, names)
  compared = 0
  for code in code_blocks(PAIRS[library]):
    run(code, names)
    if "ours" in names:
      ours, theirs = (
        np.asarray(names.get(side)) for side in ("ours", "theirs")
      )
      assert ours.shape == theirs.shape and np.abs(theirs).max() > 0.01
      assert np.abs(ours - theirs).max() < 1e-5
      del names["ours"]
      compared += 1
  assert compared


def rows():
  """Return (feature, this project's entry) of every row of the table."""
  text = (DOCS / "features.md").read_text("utf-8")
  lines = [line for line in text.splitlines() if line.startswith("|")]
  return [tuple(c.strip() for c in line.split("|")[1:3]) for line in lines[2:]]


def names_of_tests(*paths):
  """Return the names of the tests in some files."""
  return {
    node.name
    for path in paths
    for node in ast.parse(path.read_text("utf-8")).body
    if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
  }


def test_every_promise_of_a_run_names_tests_that_there_are():
  page = (DOCS / "running.md").read_text("utf-8")
  table = page.split("## What is promised")[1].splitlines()
  promises = [line for line in table if line.startswith("| ")][1:]
  assert len(promises) > 15
  for promise in promises:
    named = re.findall(r"`([\w/]+\.py)?(?:::(test_\w+))?`", promise)
    assert named, promise
    for file, test in named:
      if file:  # else one more of the same
        (path,) = (ROOT / "tests").rglob(file)
      assert not test or test in names_of_tests(path), promise


def test_every_yes_of_the_feature_table_has_a_test_of_that_name():
  tests = names_of_tests(*(ROOT / "tests").rglob("test_*.py"))
  yes = 0
  for feature, entry in rows():
    assert entry.split(":")[0] in ("yes", "no"), feature
    if entry.startswith("yes"):
      name = re.fullmatch(r"yes: `(test_\w+)`", entry)
      assert name and name[1] in tests, f"{feature}: {entry}"
      yes += 1
  assert yes > 20
