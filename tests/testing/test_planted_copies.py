"""What the copy of a module with a planted error shares with the module."""

import importlib

import jax
import jax.numpy as jnp
import pytest

from lstm_jax.testing import plant
from tests.testing.sources import module_of


def test_a_module_may_import_from_its_package_and_know_its_path(tmp_path):
  (tmp_path / "a_package").mkdir()
  source = """
from . import other

PATH = __file__


def recur_backward(params, gates, residuals, d_state):
  da = other.FACTOR * d_state
  return da
"""
  for name, text in (
    ("__init__", ""),
    ("other", "FACTOR = 2"),
    ("cell", source),
  ):
    (tmp_path / "a_package" / f"{name}.py").write_text(text)
  with pytest.MonkeyPatch.context() as monkeypatch:
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("a_package.cell")
  planted = plant(module, "da", 3.0)
  assert planted.recur_backward(None, None, None, 5.0) == 30
  assert planted.PATH == module.PATH


def test_a_copy_shares_types_that_are_made_or_registered_by_a_call(tmp_path):
  source = """
import dataclasses
from collections import namedtuple
import jax
from jax import export

State = namedtuple("State", "h")
export.register_namedtuple_serialization(
  nodetype=State, serialized_name="calls.S"
)
listed = []
listed.append(State)


@dataclasses.dataclass
class Params:
  w_x: jax.Array


jax.tree_util.register_dataclass(Params, ["w_x"], [])


@jax.custom_vjp
def step(params, x):
  return State(params.w_x * x)


def backward(saved, d_state):
  params, x = saved
  dx = params.w_x * d_state.h
  return Params(x * d_state.h), dx


step.defvjp(lambda *saved: (State(saved[0].w_x * saved[1]), saved), backward)
"""
  module = module_of(tmp_path, "calls", source)
  planted = plant(module, "dx", 3.0)
  params = module.Params(jnp.array(2.0))
  assert type(planted.step(params, 5.0)) is module.State
  assert planted.listed == [module.State]
  dx = jax.grad(lambda x: planted.step(params, x).h)(5.0)
  assert dx == 6


def test_the_copy_of_a_script_does_not_run_it(tmp_path, monkeypatch):
  source = """
def recur_backward(params, gates, residuals, d_state):
  da = 2 * d_state
  return da


if __name__ == "__main__":
  raise SystemExit("the script runs again")
"""
  script = module_of(tmp_path, "script", source)
  monkeypatch.setattr(script, "__name__", "__main__")
  planted = plant(script, "da", 3.0)
  assert planted.recur_backward(None, None, None, 5.0) == 30
