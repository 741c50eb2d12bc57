"""Activations, and their derivatives as functions of the *output*.

If y = σ(a) or y = tanh(a) is known, the derivative needs neither the
pre-activation a nor another exponential:

  σ'(a) = y (1 − y)          tanh'(a) = 1 − y²
  relu'(a) = 1 if y > 0      s'(a) = slope if 0 < y < 1      (0 elsewhere)

with s the hard sigmoid, clip(slope·a + ½, 0, 1). At a kink, of ReLU or the hard
sigmoid, the derivative is that of the flat side, 0.

ReLU and softplus are written with `where`, not taken from `jax.nn`: in a scan
that is differentiated twice, JAX 0.10 takes a wrong derivative of those two at
a = 0, as it is with weights of zeros.

An `Activation` is an activation with its derivative, for the functions that
make a cell, such as `rnn.with_activation`.

  >>> TANH
  tanh
  >>> make_hard_sigmoid(slope=0.2)
  hard_sigmoid(0.2)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


def sigmoid(a: jax.Array) -> jax.Array:
  """Return σ(a) = 1 / (1 + e⁻ᵃ)."""
  return jax.nn.sigmoid(a)


def dsigmoid(y: jax.Array) -> jax.Array:
  """Return σ'(a), given y = σ(a)."""
  return y * (1 - y)


def tanh(a: jax.Array) -> jax.Array:
  """Return the hyperbolic tangent of a."""
  return jnp.tanh(a)


def dtanh(y: jax.Array) -> jax.Array:
  """Return tanh'(a), given y = tanh(a)."""
  return 1 - y * y


def relu(a: jax.Array) -> jax.Array:
  """Return max(a, 0)."""
  return jnp.where(a <= 0, 0, a)  # at a = 0, autodiff of `maximum` is ½


def drelu(y: jax.Array) -> jax.Array:
  """Return the derivative of relu at a, given y = relu(a)."""
  return (y > 0).astype(y.dtype)


def hard_sigmoid(a: jax.Array, slope: float) -> jax.Array:
  """Return clip(slope·a + ½, 0, 1), piecewise linear in place of σ."""
  y = slope * a + 0.5  # at a kink, autodiff of `clip` is half the slope
  return jnp.where(y <= 0, 0, jnp.where(y >= 1, 1, y))


def dhard_sigmoid(y: jax.Array, slope: float) -> jax.Array:
  """Return the derivative of the hard sigmoid at a, given its output y."""
  return slope * ((y > 0) & (y < 1)).astype(y.dtype)


def softplus(a: jax.Array) -> jax.Array:
  """Return log(1 + eᵃ), which is −log σ(−a)."""
  minus_abs = jnp.where(a > 0, -a, a)  # −|a|; autodiff at 0 then gives ½
  return jnp.where(a > 0, a, 0) + jnp.log1p(jnp.exp(minus_abs))


@dataclass(frozen=True)
class Activation:
  """An activation, and its derivative as a function of the output.

  The derivative must be a function of y alone. Those of SiLU and GELU are not:
  two different a can give the same y, but different derivatives. Two
  activations are equal if they have the same name, functions and parameters.
  """

  name: str
  function: Callable[..., jax.Array]  # (a, *parameters) -> y
  derivative_from_output: Callable[..., jax.Array]  # (y, *parameters) -> dy/da
  parameters: tuple[float, ...] = ()

  def __repr__(self) -> str:
    return self.name

  def __deepcopy__(self, memo: dict[int, Any]) -> "Activation":
    return self  # a copied function of `jax.jit` would not equal the original

  def apply(self, a: jax.Array) -> jax.Array:
    """Return y, the activation of a."""
    return self.function(a, *self.parameters)

  def derivative(self, y: jax.Array) -> jax.Array:
    """Return dy/da, given y = apply(a)."""
    return self.derivative_from_output(y, *self.parameters)


SIGMOID = Activation("sigmoid", sigmoid, dsigmoid)
TANH = Activation("tanh", tanh, dtanh)
RELU = Activation("relu", relu, drelu)


class Activations(NamedTuple):
  """The activations of a cell with gates."""

  gates: Activation = SIGMOID
  candidate: Activation = TANH
  output: Activation = TANH  # φ in h' = o ⊙ φ(c') of an LSTM


STANDARD = Activations()


def check_activations(**values: object) -> None:
  """Raise ValueError unless each is an `Activation` that can be hashed."""
  for name, value in values.items():
    if not isinstance(value, Activation):
      raise ValueError(
        f"{name} must be an Activation, such as RELU, got {value!r}"
      )
    if not isinstance(value.parameters, tuple):  # an Activation is hashed
      found = type(value.parameters).__name__
      raise ValueError(f"{name}.parameters must be a tuple, got {found}")
    try:
      hash(value.parameters)
    except TypeError:
      raise ValueError(
        f"{name}.parameters must be hashable, such as Python floats, got "
        f"{value.parameters}"
      ) from None


def make_hard_sigmoid(slope: float) -> Activation:
  """Return the hard sigmoid with this slope, clip(slope·a + ½, 0, 1).

  Args:
    slope: 0.2 in Keras 2 and ONNX (where it is called alpha), 1/6 in Keras 3
      and PyTorch.

  Raises:
    ValueError: the slope is not a positive number.
  """
  is_number = isinstance(slope, Real) and not isinstance(slope, bool)
  try:
    value = float(slope) if is_number else 0.0
  except OverflowError:
    value = math.inf
  if not 0 < value < math.inf:
    raise ValueError(f"slope must be a number in (0, inf), got {slope!r}")
  name = f"hard_sigmoid({value:g})"
  return Activation(name, hard_sigmoid, dhard_sigmoid, (value,))
