"""Layers from and to ONNX, and language models to it (the extra `interop`).

`from_onnx` and `to_onnx` convert a node of ONNX's operators LSTM, GRU and RNN,
`run_node` computes one by `unroll`, `load` reads the layers of a file, and
`language_model_to_onnx` writes a whole language model.
"""

from lstm_jax.interop.onnx.files import load as load
from lstm_jax.interop.onnx.language import (
  language_model_to_onnx as language_model_to_onnx,
)
from lstm_jax.interop.onnx.node_runner import run_node as run_node
from lstm_jax.interop.onnx.nodes import Layer as Layer
from lstm_jax.interop.onnx.nodes import from_onnx as from_onnx
from lstm_jax.interop.onnx.nodes import to_onnx as to_onnx
