"""Which cases of a test with `everyday(n)` run every day; read-only clones."""

import os
import runpy
import shutil
import sys
from itertools import product
from types import SimpleNamespace

import pytest
from hypothesis import settings

from tests import conftest
from tests.conftest import pick, pytest_collection_modifyitems

ROWS, COLUMNS = "abcd", [1, 2, 3]
GRID = [{"row": r, "column": c} for r, c in product(ROWS, COLUMNS)]


@pytest.mark.parametrize("count", range(1, len(GRID) + 1))
def test_each_parameter_takes_as_many_values_as_it_can(count):
  picked = [GRID[k] for k in pick(count, GRID)]
  assert len({(case["row"], case["column"]) for case in picked}) == count
  for name, values in (("row", ROWS), ("column", COLUMNS)):
    times = [[case[name] for case in picked].count(v) for v in values]
    assert max(times) - min(times) <= 1


def test_cases_of_one_parameter_are_spread():
  assert sorted(pick(3, [{"value": k} for k in range(9)])) == [0, 4, 8]


def test_there_may_be_fewer_cases_than_are_asked_for():
  assert sorted(pick(20, GRID)) == list(range(len(GRID)))


class Item:
  """Stands for a test that pytest has collected."""

  def __init__(self, test, case, *marks):
    self.nodeid, self.marks = f"tests/test_a.py::{test}[{case}]", list(marks)
    self.callspec = SimpleNamespace(params=case)

  def get_closest_marker(self, name):
    return next((mark for mark in self.marks if mark.name == name), None)

  def add_marker(self, mark):
    self.marks.append(mark)


def test_all_other_cases_are_exhaustive():
  everyday, exhaustive = pytest.mark.everyday(2), pytest.mark.exhaustive
  slow = Item("test_one", {"row": "e", "column": 4}, exhaustive, everyday)
  one, two = (
    [Item(name, case, everyday) for case in GRID]
    for name in ("test_one", "test_two")
  )
  unmarked = [Item("test_three", case) for case in GRID]
  pytest_collection_modifyitems([slow, *one, *two, *unmarked])

  def kept(items):
    return [i for i in items if not i.get_closest_marker("exhaustive")]

  assert len(kept(one)) == len(kept(two)) == 2
  assert kept([slow]) == [] and kept(unmarked) == unmarked


@pytest.fixture
def conftest_copy(tmp_path, monkeypatch):
  """Yield a copy of conftest.py, and leave out what it sets until it is run.

  It keeps its files beside the copy.
  """
  monkeypatch.setattr(sys, "pycache_prefix", sys.pycache_prefix)
  for name in (conftest.CACHE, "PYTHONPYCACHEPREFIX"):
    monkeypatch.setenv(name, "")  # so that it is restored, even if it is unset
    monkeypatch.delenv(name)
  (tmp_path / "tests").mkdir()
  profile = settings.get_profile("everyday")
  yield shutil.copy(conftest.__file__, tmp_path / "tests")
  settings.register_profile("everyday", profile)
  settings.load_profile("everyday")


def test_python_may_be_told_not_to_write_bytecode(conftest_copy, monkeypatch):
  monkeypatch.setattr(sys, "dont_write_bytecode", True)  # `python -B`
  monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
  runpy.run_path(conftest_copy)
  assert not sys.dont_write_bytecode


def test_a_checkout_that_cannot_be_written_is_tested_too(
  conftest_copy, monkeypatch
):
  monkeypatch.setattr(os, "access", lambda path, mode: False)
  runpy.run_path(conftest_copy)
  assert conftest.CACHE not in os.environ  # nothing was made in the checkout
  assert settings.default.database is None
