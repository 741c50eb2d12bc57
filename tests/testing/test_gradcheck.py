"""`gradcheck`: which gradients pass, what it refuses, and how it reports."""

import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import gradcheck
from lstm_jax.testing import Error, Report, TensorReport
from tests.draws import normal_like


def test_coordinates_near_zero_raise_no_alarm(key):
  """Gradients of 1 and of 1e-30: a rounding of the latter is no error."""
  x = {"a": jnp.ones(2), "b": jnp.ones(3)}

  def f(wrong):
    def g(x):
      return x["a"][0] + (1e-30 + wrong) * x["a"][1] + 0 * x["b"].sum()

    return g

  report = gradcheck(f(1e-30), f(0.0), x, key)
  assert report.passes()
  assert report.tensors[0].explicit_autodiff.relative < 1e-28
  wrong = gradcheck(f(0.01), f(0.0), x, key)
  assert wrong.tensors[0].explicit_autodiff.where == (1,)
  assert not wrong.passes()


def test_an_error_is_relative_to_its_tensor_unless_that_is_tiny(key):
  """Errors of 1 % in gradients of 1e-2 and of 1e-6, beside a gradient of 1."""
  none = {"max_coordinates": 0, "num_directions": 0}

  def f(factor):
    return lambda x: x[0] + factor * (1e-2 * x[1] + 1e-6 * x[2])

  report = gradcheck(f(1.01), f(1.0), (1.0, 1.0, 1.0), key, **none)
  found = [t.explicit_autodiff.relative for t in report.tensors]
  # Divided by the larger gradient, but at least by 1e-3 of the rms of all.
  rms = np.sqrt((1 + 1e-4 + 1e-12) / 3)
  np.testing.assert_allclose(found, [0, 0.01 / 1.01, 1e-8 / (1e-3 * rms)])
  # If all gradients are 0, an error of 0 is not divided by 0.
  zero = gradcheck(jnp.zeros_like, jnp.zeros_like, jnp.ones(2), key, **none)
  assert zero.passes()


def test_a_report_passes_within_the_tolerance_of_each_comparison():
  fine = Error(coordinates=1, absolute=0.0, relative=0.9e-12, where=(0,))
  row = TensorReport("x", 1, *[fine] * 5)  # one element, five comparisons
  report = Report(value=0.9e-12, tensors=(row,))
  assert report.passes()
  assert not report._replace(value=1.1e-12).passes()
  for field, tolerance in (
    ("explicit_autodiff", 1e-12),
    ("explicit_central", 1e-6),
    ("explicit_directional", 1e-6),
    ("autodiff_central", np.inf),
    ("autodiff_directional", np.inf),
  ):
    for error in (0.9e-12, 1.1e-12, 0.9e-6, 1.1e-6, 1.0):
      changed = row._replace(**{field: fine._replace(relative=error)})
      passes = report._replace(tensors=(row, changed)).passes()
      assert passes == (error <= tolerance)


def test_max_coordinates_limits_the_differences(key):
  x = normal_like(key, {"a": np.zeros((3, 50)), "b": np.zeros(4)})

  def f(x):
    return jnp.sin(x["a"]), x["b"] ** 2

  report = gradcheck(f, f, x, key, max_coordinates=7, num_directions=2)
  assert [t.explicit_central.coordinates for t in report.tensors] == [7, 4]
  assert [t.explicit_autodiff.coordinates for t in report.tensors] == [150, 4]
  assert report.passes()
  assert report.tensors[0].explicit_central.where > (0, 6)  # not the first 7


def test_no_coordinate_is_drawn_twice(key):
  """Of three coordinates, any two include one of two that are wrong."""
  x = [jnp.ones(3)] * 40
  factors = jnp.array([1.0, 1.01, 1.01])
  options = {"max_coordinates": 2, "num_directions": 0}
  report = gradcheck(
    lambda x: [factors * t for t in x], lambda x: x, x, key, **options
  )
  assert all(t.explicit_central.relative > 1e-3 for t in report.tensors)


def test_a_function_whose_variable_has_changed_is_checked_anew(key):
  factor = 1.0

  def f(x):
    return factor * x**2

  assert gradcheck(f, jnp.square, jnp.ones(2), key).passes()
  factor = 1.01
  assert not gradcheck(f, jnp.square, jnp.ones(2), key).passes()


def test_a_gradient_of_nan_is_an_error_of_its_own_tensor_alone(key):
  def f(x):  # at x[1] = 0, autodiff multiplies 0 by infinity
    return x[0], jnp.where(x[1] > 0, jnp.sqrt(x[1]), 0)

  for autodiff in (f, lambda x: x):
    report = gradcheck(f, autodiff, (jnp.ones(2), jnp.zeros(3)), key)
    right, wrong = report.tensors
    assert np.isinf(wrong.explicit_autodiff.relative) and not report.passes()
    assert max(error.relative for error in right[2:]) < 1e-9


def test_what_is_infinite_or_nan_does_not_pass(key):
  for f in (lambda x: x + jnp.inf, lambda x: jnp.inf * x, jnp.arccosh):
    assert not gradcheck(f, f, 0.5 * jnp.ones(3), key).passes()
    assert not gradcheck(f, jnp.sin, 0.5 * jnp.ones(3), key).passes()


@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_an_error_is_found_where_squares_of_gradients_overflow_or_vanish(
  size, key
):
  def f(factor):
    return lambda x: factor * size * x

  report = gradcheck(f(1.01), f(1.0), jnp.ones(3), key)
  assert not report.passes()
  for error in report.tensors[0][2:4]:  # vs autodiff, vs central differences
    assert error.relative == pytest.approx(0.01 / 1.01, rel=1e-9)


@pytest.mark.parametrize(
  ("x", "message"),
  [
    (jnp.arange(3), r"^x must be a float array .*, got int64 \(3,\)$"),
    (
      {"a": jnp.ones(2), "b": (jnp.ones((0, 2)),)},
      r"^b\.0 must be a float array with elements, got float64 \(0, 2\)$",
    ),
    ({}, "^x must be a tree of float arrays, got no array$"),
    ({"k": jax.random.key(0)}, r"^k must be .*, got key<fry> \(\)$"),
    (["text"], "^x must hold arrays, got str: "),
  ],
)
def test_leaves_that_are_empty_missing_or_not_float_are_an_error(
  x, message, key
):
  with pytest.raises(ValueError, match=message):
    gradcheck(lambda x: x, lambda x: x, x, key)


def test_outputs_of_different_shapes_are_an_error(key):
  message = r"^explicit must return outputs of shapes \[\(\)\], .*\[\(1,\)\]$"
  with pytest.raises(ValueError, match=message):
    gradcheck(lambda x: x, lambda x: x.sum(), jnp.ones(1), key)
  message = r"^explicit must return outputs of shapes \[\(2,\)\], .*\[\(3,\)\]"
  with pytest.raises(ValueError, match=message):
    gradcheck(lambda x: x, lambda x: x[:2], jnp.ones(3), key)
  message = r"^explicit must return .*\[\*\].*, as autodiff does, got .*\(\*,\)"
  with pytest.raises(ValueError, match=message):
    gradcheck(lambda x: (x,), lambda x: [x], jnp.ones(3), key)


@pytest.mark.parametrize(
  ("f", "got"), [(lambda x: x[:0], "[(0,)]"), (lambda x: (), "[]")]
)
def test_outputs_without_elements_are_an_error(f, got, key):
  message = re.escape(f"the outputs must have elements, got {got}")
  with pytest.raises(ValueError, match=f"^{message}$"):
    gradcheck(f, f, jnp.ones(3), key)


def test_outputs_that_are_not_float_are_an_error(key):
  with pytest.raises(ValueError, match=r"must be floats, got bool \(3,\)$"):
    gradcheck(lambda x: x > 0, lambda x: x > 0, jnp.ones(3), key)


def test_precision_of_the_differences_is_that_of_the_docstring(key):
  """ "near 1e-13 |L| at the default ε = 1e-3", within a factor of 100."""
  text = " ".join(inspect.getmodule(gradcheck).__doc__.split())
  ((error, epsilon),) = re.findall(
    r"near (\S+) \|L\| at the default ε = (\d\S*)\.", text
  )
  parameters = inspect.signature(gradcheck).parameters
  assert float(epsilon) == parameters["epsilon"].default
  x = jax.random.normal(key, (20,), jnp.float64)
  report = gradcheck(jnp.exp, jnp.exp, x, key).tensors[0]
  assert report.explicit_central.relative < 1e-10
  # The cotangents are Gaussian, so |L| is of the size of the outputs' norm.
  size = float(jnp.linalg.norm(jnp.exp(x)))
  assert 0 < report.explicit_central.absolute < 100 * float(error) * size


def test_outputs_are_compared_by_their_size(key):
  """1e6 sin x, computed in two ways, differs by 1e-10."""
  x = jax.random.normal(key, (5,))

  def other_way(x):
    return 2e6 * jnp.sin(x / 2) * jnp.cos(x / 2)

  report = gradcheck(lambda x: 1e6 * jnp.sin(x), other_way, x, key)
  assert 0 < report.value < 1e-15 and report.passes()
  several = gradcheck(
    lambda x: (jnp.sin(x), jnp.cos(x) + 1e-3, x),
    lambda x: (jnp.sin(x), jnp.cos(x), x),
    x,
    key,
    max_coordinates=0,
    num_directions=0,
  )
  assert abs(several.value - 1e-3) < 1e-12
  other = gradcheck(jnp.sin, lambda x: jnp.sin(x) + 1e-11, x, key)
  assert abs(other.value - 1e-11) < 1e-14 and not other.passes()


def test_the_default_tolerances_are_refused_to_other_dtypes_than_float64(key):
  message = (
    r"^the default tolerances need tensors of float64, got {}: use float64, or "
    "pass autodiff and differences$"
  )
  narrow = jnp.ones(3, jnp.float32)
  with jax.numpy_dtype_promotion("standard"):
    report = gradcheck(jnp.sin, jnp.sin, narrow, key)
    both = gradcheck(lambda x: x, lambda x: x, (narrow, jnp.ones(3)), key)
  for given in ({}, {"autodiff": 1e-5}, {"differences": 1.0}):
    with pytest.raises(ValueError, match=message.format("float32")):
      report.passes(**given)
  assert report.passes(autodiff=0.0, differences=1.0)
  assert report.passes(autodiff=1e-12, differences=1e-1)  # the default, passed
  assert not report.passes(autodiff=0.0, differences=0.0)
  with pytest.raises(ValueError, match=message.format("float32, float64")):
    both.passes()


def test_a_report_is_printed_as_a_table(key):
  def double(x):
    return 2 * x["a"], x["long"]["name"]

  def wrong(x):
    outputs = double(x)
    return outputs[0], 1.5 * outputs[1] - 0.5 * jax.lax.stop_gradient(
      outputs[1]
    )

  x = {"a": jnp.ones(2), "long": {"name": jnp.ones((2, 3))}}
  report = gradcheck(wrong, double, x, key, max_coordinates=0)
  lines = str(report).splitlines()
  assert lines[0] == "tensor     vs autodiff  vs central  vs directional"
  assert lines[1].startswith("a              0.0e+00           -         ")
  # The gradient is 1.5 in place of 1: an error of 0.5 / 1.5.
  assert lines[2] == "long.name      3.3e-01           -         3.3e-01"
  assert lines[3:] == ["(outputs)      0.0e+00"]
  assert report.tensors[0].explicit_directional.relative < 1e-6
  (row,) = gradcheck(jnp.sin, jnp.sin, 1.0, key).tensors
  assert str(report._replace(tensors=(row,))).splitlines()[1].startswith("x ")


def test_a_number_is_a_tensor(key):
  (row,) = gradcheck(jnp.sin, jnp.sin, 1.0, key).tensors
  assert row.size == 1 and row.explicit_central.relative < 1e-9
  (same,), (other,) = (
    gradcheck(jnp.sin, jnp.sin, 1.0, k).tensors
    for k in (key, jax.random.key(1))
  )
  assert same == row  # all that is random is drawn by the key
  assert other.explicit_central.absolute != row.explicit_central.absolute


@pytest.mark.exhaustive
def test_a_batch_holds_few_copies_of_a_large_x(key, monkeypatch):
  batches = []

  def slopes(directions):
    batches.append(directions.shape)
    return jnp.zeros(len(directions))

  monkeypatch.setattr(jax, "vmap", lambda slope: slopes)
  # At most 64 directions, and at most 2²² elements in all of them.
  for size, expected in ((99, 64), (2**17 + 1, 31)):
    gradcheck(jnp.negative, jnp.negative, jnp.ones(size), key)
    assert batches == [(expected, size)]  # one program
    batches.clear()
