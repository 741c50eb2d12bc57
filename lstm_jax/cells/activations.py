"""Activations, and their derivatives as functions of the *output*.

Backpropagation already holds y = σ(a) or y = tanh(a), so a derivative needs
neither the pre-activation nor a second transcendental function:

  σ'(a) = y (1 − y)          tanh'(a) = 1 − y²
"""

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
