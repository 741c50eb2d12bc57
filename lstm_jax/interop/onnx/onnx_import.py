"""The optional package onnx, and the versions of the files written with it."""

from types import ModuleType

from lstm_jax.interop.extra import from_extra

# The opset of the files that `language_model_to_onnx` writes: that of ONNX 1.12
# (2022), which most programs read.
OPSET = 17
IR_VERSION = 8  # the file format of that opset


def import_onnx() -> ModuleType:
  """Return the package onnx.

  Raises:
    ModuleNotFoundError: it is not installed; the message names the extra.
  """
  with from_extra("onnx"):
    import onnx.checker
    import onnx.helper
    import onnx.numpy_helper
  return onnx
