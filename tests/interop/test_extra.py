"""The error of a package that is missing."""

import pytest

from lstm_jax.interop.extra import from_extra


def test_the_error_names_the_package_and_the_extra():
  message = (
    r"^the package nowhere is not installed; it comes with the extra interop: "
    r"pip install '\.\[interop\]' in a clone of lstm_jax$"
  )
  with pytest.raises(ModuleNotFoundError, match=message), from_extra("nowhere"):
    import nowhere.part  # noqa: F401


def test_the_error_of_a_missing_dependency_is_kept():
  message = "^No module named 'nowhere'$"
  with pytest.raises(ModuleNotFoundError, match=message), from_extra("onnx"):
    import nowhere  # noqa: F401


def test_a_damaged_package_is_not_said_to_be_missing():
  message = r"^No module named 'json\.nowhere'$"
  with pytest.raises(ModuleNotFoundError, match=message), from_extra("json"):
    import json.nowhere  # noqa: F401
