"""The least time that a layer needs on a device, its roofline bound: the floor.

The floor is the longer of two times: that of moving the bytes that every
implementation must move, at the bandwidth of the device's memory, and that of
the operations of the matrix products, at the peak for their operands. With
D = H, G gates, and W = G·H·(D + H) + G·H weights and biases:

             operations           numbers moved
  forward    2·T·B·G·H·(D + H)    W + xs + hs
  gradient   three times that     3·W + 2·xs + 2·hs + dhs + dxs

xs and hs are T·B·H numbers each, and so are their cotangents dxs and dhs. For
the gradient, weights and inputs are read by the forward and by the backward; hs
is written and read; the gradients of the weights are written. Gates are not
counted, because they can be recomputed. Latencies are not counted either: a
recurrence also waits T times for one product, so that small layers take much
longer than this floor.
"""

import re
from typing import NamedTuple

GATES = {"lstm": 4, "gru": 3, "rnn": 1}


class Device(NamedTuple):
  """The peaks of a device."""

  name: str
  bandwidth: float  # bytes per second
  operations: dict[str, float]  # per second, by the operands of the products


# NVIDIA H100 Tensor Core GPU data sheet, SXM5: 3.35 TB/s; 1,979 TFLOP/s in
# bfloat16 and 989 in TF32 with sparsity, so half of these for dense products;
# 67 in float32, for which there are no tensor cores.
PEAKS = {"bfloat16": 989e12, "TF32": 495e12, "float32": 67e12}
H100 = Device("H100 SXM", 3.35e12, PEAKS)
# NVIDIA H200 data sheet: the same processor with 4.8 TB/s.
H200 = Device("H200", 4.8e12, PEAKS)


def find_device(kind: str) -> Device:
  """Return H200 if the kind, such as "NVIDIA H200", names one; else H100.

  Others of compute capability 9.0 count as an H100 (`gpu.check_device`).
  """
  return H200 if re.search(r"\bH200\b", kind) else H100  # not GH200


def layer_floor(
  device: Device,
  cell: str,
  backward: bool,
  operands: str,
  hidden_size: int,
  seq_len: int,
  batch_size: int,
  number_bytes: int = 4,
) -> float:
  """Return the floor of a layer, in milliseconds.

  Args:
    device: its peaks.
    cell: lstm, gru or rnn.
    backward: whether to compute all gradients as well as the outputs.
    operands: of the products, a key of PEAKS. XLA and the kernels multiply
      float32 as TF32 by default.
    hidden_size: H, and D.
    seq_len: T.
    batch_size: B.
    number_bytes: bytes of each number in memory.
  """
  gates = GATES[cell]
  products = gates * hidden_size * 2 * hidden_size  # G·H·(D + H), of one token
  weights = products + gates * hidden_size
  activations = seq_len * batch_size * hidden_size
  operations = 2 * seq_len * batch_size * products
  numbers = weights + 2 * activations
  if backward:
    operations, numbers = 3 * operations, 3 * weights + 6 * activations
  return _longest(device, operands, operations, number_bytes * numbers)


def training_step_floor(
  device: Device,
  cell: str,
  operands: str,
  num_params: int,
  vocabulary_size: int,
  hidden_size: int,
  seq_len: int,
  batch_size: int,
) -> float:
  """Return the floor of a model's Adam step, in milliseconds.

  The operations are those of the recurrent products and of the readout, three
  times each. The input product is not counted: for a small V it multiplies only
  the V rows of the embedding (`reads_table`). The bytes are those of hs and its
  cotangent, each written once and read once, and those of Adam, which reads
  each parameter, its gradient and its two averages, and writes all but the
  gradient. All numbers are float32.
  """
  per_token = hidden_size * (GATES[cell] * hidden_size + vocabulary_size)
  operations = 3 * 2 * seq_len * batch_size * per_token
  numbers = 7 * num_params + 4 * seq_len * batch_size * hidden_size
  return _longest(device, operands, operations, 4 * numbers)


def _longest(
  device: Device, operands: str, operations: float, bytes_moved: float
) -> float:
  """Return the longer of the two times, in milliseconds."""
  seconds = max(
    operations / device.operations[operands], bytes_moved / device.bandwidth
  )
  return 1e3 * seconds
