import sys
from typing import NamedTuple

import jax
import pytest


@pytest.fixture
def flax_promotion():
  """Let Flax add a bias [K] to an array [..., K], and mix dtypes."""
  with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
    yield


class Missing(NamedTuple):
  """An import finder that refuses one package, as if it were not installed."""

  package: str

  def find_spec(self, name, path, target=None):
    if name == self.package:
      raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@pytest.fixture
def uninstall(monkeypatch):
  """Return a function that makes a package seem not installed."""

  def hide(package):
    for name in [*sys.modules]:
      if name.partition(".")[0] == package:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Missing(package), *sys.meta_path])

  return hide
