"""Which cases of a test with `everyday(n)` run every day."""

from itertools import product
from types import SimpleNamespace

import pytest

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
