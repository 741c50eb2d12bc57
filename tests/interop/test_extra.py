"""The error of a package that is missing."""

import pytest

from lstm_jax.interop.extra import from_extra


def test_the_error_names_the_package_and_the_extra():
  message = r"package nowhere is not installed; .*lstm-jax\[interop\]"
  with pytest.raises(ModuleNotFoundError, match=message), from_extra("nowhere"):
    import nowhere.part  # noqa: F401


def test_a_package_that_another_one_needs_is_named_itself():
  message = "^No module named 'nowhere'$"
  with pytest.raises(ModuleNotFoundError, match=message), from_extra("onnx"):
    import nowhere  # noqa: F401
