"""The tests run from a read-only checkout, and under `python -B`."""

import os
import runpy
import shutil
import sys

import pytest
from hypothesis import settings

from tests import conftest


@pytest.fixture
def conftest_copy(tmp_path, monkeypatch):
  """Yield the path of a copy of conftest.py.

  The two variables in which it names directories of a checkout are unset. The
  parent of the copy's directory stands for the checkout: it writes there.
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


def test_bytecode_is_written_even_under_python_b(conftest_copy, monkeypatch):
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
