"""The pages: code runs, links lead somewhere, tables name existing tests."""

import ast
import importlib
import importlib.util
import re
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest

from lstm_jax.testing import terms
from tests.contract import TABLE
from tests.interpreting import NEEDS_KERNELS, interpreted

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
FOLDERS = "", "data", "docs", "docs/reference", "docs/results", "experiments"
PAGES = sorted(
  page.relative_to(ROOT).as_posix()
  for directory in FOLDERS
  for page in (ROOT / directory).glob("*.md")
)
NEEDS = {  # section of coming-from.md: the package that it imports
  "Haiku": "haiku",
  "Equinox": "equinox",
  "Keras": "keras",
  "PyTorch": "torch",
  "ONNX": "onnxruntime",
}


def code_blocks(text):
  return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def run(code, names):
  """Run a block as a reader does: in float32, with JAX's own promotions."""
  with (
    jax.enable_x64(False),
    jax.numpy_rank_promotion("allow"),
    jax.numpy_dtype_promotion("standard"),
  ):
    exec(code, names)


def sections(page):
  """Return the text before the first section, and that of each, by heading."""
  first, *rest = re.split(r"^## ", (DOCS / page).read_text("utf-8"), flags=re.M)
  return first, dict(part.split("\n", 1) for part in rest)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
  "page",
  [
    "clusters.md",
    "first-steps.md",
    "gradients.md",
    "language-models.md",
    "recurrent-policy.md",
    "sequences.md",
    "words.md",
  ],
)
def test_the_code_of_a_page_runs(page):
  names = {}
  blocks = code_blocks((DOCS / page).read_text("utf-8"))
  assert blocks
  for code in blocks:
    run(code, names)


def test_every_page_with_code_is_run():
  (marks,) = (
    mark.args[1]
    for mark in test_the_code_of_a_page_runs.pytestmark
    if mark.name == "parametrize"
  )
  with_code = {
    page for page in PAGES if code_blocks((ROOT / page).read_text("utf-8"))
  }
  # Their code is run below, and in test_gradbench.py and test_own_cell.py.
  others = {"coming-from.md", "gpu.md", "gradbench.md", "own-cell.md"}
  run_here = {f"docs/{page}" for page in (*marks, *others)}
  # That of the README is run in test_readme.py.
  assert with_code - run_here == {"README.md"}
  assert run_here - with_code == set()


@NEEDS_KERNELS
def test_the_code_of_the_page_on_gpus_runs_in_the_interpreter():
  (code,) = code_blocks((DOCS / "gpu.md").read_text("utf-8"))
  names = {}
  with interpreted():
    run(code, names)
  assert names["hs"].shape == (5, 8, 64)  # T, B, H of the page


def prose(page):
  """Return a page without its blocks of code."""
  return re.sub(r"```.*?```", "", (ROOT / page).read_text("utf-8"), flags=re.S)


def anchors(page):
  """Return the anchors that GitHub gives the headings of a page."""
  headings = re.findall(r"^#+ (.*)$", prose(page), re.M)
  return {
    re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
    for heading in headings
  }


def links(page):
  """Return the targets of a page's links and images to files of the project."""
  targets = re.findall(r"\]\(([^)\s]+)\)", prose(page))
  return [t for t in targets if not re.match(r"https?://", t)]


def leads_somewhere(page, target):
  """Return whether a link of a page leads to a file, and to a heading of it."""
  path, _, anchor = target.partition("#")
  file = (ROOT / page).parent / path if path else ROOT / page
  if not anchor or not file.exists():
    return file.exists()
  return anchor in anchors(file.resolve().relative_to(ROOT).as_posix())


@pytest.mark.parametrize("page", PAGES)
def test_every_relative_link_leads_to_a_file_and_a_heading(page):
  for target in links(page):
    assert leads_somewhere(page, target), target


def test_the_readme_links_every_page():
  """All but those in folders of `docs`."""
  linked = {target.partition("#")[0] for target in links("README.md")}
  pages = {page.relative_to(ROOT).as_posix() for page in DOCS.glob("*.md")}
  assert pages - linked == set()


def test_the_site_lists_every_page():
  """A page belongs in `nav` of mkdocs.yml, and its folder into FOLDERS."""
  nav = (ROOT / "mkdocs.yml").read_text("utf-8").split("\nnav:\n")[1]
  listed = set(re.findall(r": (\S+\.md)$", nav, re.M))
  pages = {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}
  assert pages - listed == set()
  assert {f"docs/{page}" for page in pages} - {*PAGES} == set()


def test_a_dead_link_would_be_found():
  assert "docs/explore.png" in links("README.md")
  page = "docs/gradients.md"
  for target in ("sequences.md", "sequences.md#memory", "../README.md"):
    assert leads_somewhere(page, target)
  for target in (
    "no-such-page.md",
    "sequences.md#no-such-heading",
    "#nor-here",
  ):
    assert not leads_somewhere(page, target)


@pytest.mark.parametrize("page", ["README.md", "docs/gradients.md"])
def test_the_pages_do_not_overstate_how_many_errors_are_planted(page):
  (said,) = re.findall(r"[Mm]ore than (\d+) (?:terms|of them)", prose(page))
  assert sum(len(terms(row.cell)) for row in TABLE.values()) > int(said)


FIRST, PAIRS = sections("coming-from.md")


@pytest.mark.everyday(5)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("library", PAIRS)
def test_both_sides_of_coming_from_compute_the_same(library):
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
  """Return (feature, this project's entry) of every row of features.md."""
  text = (DOCS / "features.md").read_text("utf-8")
  lines = [line for line in text.splitlines() if line.startswith("|")]
  return [tuple(c.strip() for c in line.split("|")[1:3]) for line in lines[2:]]


def names_of_tests(*paths):
  """Return how often each name of a test is in some files."""
  return Counter(
    node.name
    for path in paths
    for node in ast.parse(path.read_text("utf-8")).body
    if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
  )


def test_every_guarantee_of_a_run_names_tests_that_exist():
  page = (DOCS / "running.md").read_text("utf-8")
  table = page.split("## What is guaranteed")[1].splitlines()
  guarantees = [line for line in table if line.startswith("| ")][1:]
  assert len(guarantees) > 15
  for guarantee in guarantees:
    named = re.findall(r"`([\w/]+\.py)?(?:::(test_\w+))?`", guarantee)
    assert named, guarantee
    for file, test in named:
      assert file or test, guarantee
      if file:  # else one more test of the file before
        (path,) = (ROOT / "tests").rglob(file)
      assert not test or test in names_of_tests(path), guarantee


def test_every_yes_of_the_feature_table_names_one_test():
  tests = names_of_tests(*(ROOT / "tests").rglob("test_*.py"))
  yes = 0
  for feature, entry in rows():
    assert entry.split(":")[0] in ("yes", "no"), feature
    if entry.startswith("yes"):
      name = re.fullmatch(r"yes: `(test_\w+)`", entry)
      assert name and tests[name[1]] == 1, f"{feature}: {entry}"
      yes += 1
  assert yes >= 30


def test_the_readme_counts_the_feature_table():
  said = " ".join(prose("README.md").split())
  assert f"compares {len(rows())} features in nine libraries" in said
  header, *_ = (DOCS / "features.md").read_text("utf-8").split("\n| | ")[1:]
  ours, *others = header.split("\n")[0].strip(" |").split(" | ")
  assert ours == "lstm_jax" and len(others) == 8


def functions(code):
  """Return {name: (arguments, body)} of code, without docstrings and types."""
  found = {}
  for node in ast.walk(ast.parse(code)):
    if isinstance(node, ast.FunctionDef):
      body = node.body[1:] if ast.get_docstring(node) else node.body
      for argument in ast.walk(node.args):
        if isinstance(argument, ast.arg):
          argument.annotation = None
      lines = [ast.unparse(line) for line in body]
      found[node.name] = ast.unparse(node.args), lines
  return found


def test_the_functions_of_the_page_on_policies_are_those_of_the_program():
  page = (DOCS / "recurrent-policy.md").read_text("utf-8")
  program = (ROOT / "experiments/policies/ppo.py").read_text("utf-8")
  shown = functions("\n".join(code_blocks(page)))
  shown.pop("__call__")  # of the agent in Flax
  assert set(shown) == {"act", "loss"}
  expected = functions(program)
  assert {name: expected[name] for name in shown} == shown
