"""Weights to and from other libraries, and Flax modules that call `unroll`.

Import the module of a library, such as `lstm_jax.interop.torch`: the package
itself imports none of them.
"""
