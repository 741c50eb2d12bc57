"""Floors (see `gpu.floor`), compared with numbers that are worked out here."""

import pytest

from experiments.benchmarks.gpu import torch_layers
from experiments.benchmarks.gpu.floor import (
  H100,
  H200,
  Device,
  find_device,
  layer_floor,
  training_step_floor,
)
from experiments.benchmarks.gpu.layers import Layer
from experiments.benchmarks.gpu.torch_layers import VARIANTS, TorchLayer
from experiments.benchmarks.gpu.training_step import TrainingStep

# Devices that only one thing slows down: the memory, at 1e6 bytes a second, or
# the products, at 1e9 operations a second in TF32 and 2e9 in bfloat16.
SLOW_MEMORY = Device("a", 1e6, {"bfloat16": 1e15, "TF32": 1e15})
SLOW_PRODUCTS = Device("b", 1e15, {"bfloat16": 2e9, "TF32": 1e9})
SIZES = {"hidden_size": 10, "seq_len": 7, "batch_size": 5}


def test_a_layer_moves_weights_and_activations():
  # Weights: 3 gates of 10 × (10 + 10) + 10 = 630. Activations: 7·5·10 = 350.
  forward = layer_floor(SLOW_MEMORY, "gru", False, "bfloat16", **SIZES)
  assert forward == pytest.approx(4 * (630 + 2 * 350) / 7)
  gradient = layer_floor(SLOW_MEMORY, "gru", True, "bfloat16", **SIZES)
  assert gradient == pytest.approx(4 * (3 * 630 + 6 * 350) / 7)


def test_a_floor_has_the_bytes_that_a_program_holds(monkeypatch):
  monkeypatch.setattr(torch_layers, "device_name", lambda: "NVIDIA H100")
  sizes = [*SIZES.values()]
  torch, flax = TorchLayer("gru", *sizes), Layer("gru", *sizes, ())
  # The counts are those above. In bfloat16, PyTorch holds all of its numbers in
  # 2 bytes, and Flax only hs.
  for mode, rest, hs in (
    ("forward", 630 + 350, 350),
    ("gradient", 3 * 630 + 4 * 350, 2 * 350),
  ):
    floors = {name: torch._row(name, mode)["floor_us"] for name in VARIANTS}
    for name in ("flax bfloat16", "scan bfloat16"):
      floors[name] = flax._row(name, mode)["floor_us"]
    assert floors == {
      name: pytest.approx(1e6 * moved / H100.bandwidth / 7)
      for name, moved in {
        "pytorch bfloat16": 2 * (rest + hs),
        "pytorch TF32": 4 * (rest + hs),
        "pytorch float32": 4 * (rest + hs),
        "flax bfloat16": 4 * rest + 2 * hs,
        "scan bfloat16": 4 * (rest + hs),
      }.items()
    }


def test_a_row_says_what_is_computed_and_multiplied(monkeypatch):
  monkeypatch.setattr(torch_layers, "device_name", lambda: "NVIDIA H100")
  sizes = [*SIZES.values()]
  torch, ours = TorchLayer("gru", *sizes), Layer("gru", *sizes, ())
  for layer, operands in (
    (torch, {f"pytorch {name}": name for name in ("bfloat16", "TF32")}),
    (torch, {"pytorch float32": "float32"}),
    (ours, {"kernel": "TF32", "scan bfloat16": "bfloat16"}),
  ):
    for name, expected in operands.items():
      rows = [layer._row(name, mode) for mode in ("forward", "gradient")]
      assert [row["backward"] for row in rows] == [False, True]
      assert {row["operands"] for row in rows} == {expected}
  for dtype, expected in (("float32", "TF32"), ("bfloat16", "bfloat16")):
    row = TrainingStep("gru", *sizes, dtype)._row("kernel", [])
    assert row["operands"] == expected and row["floor_us"] > 0


def test_a_training_step_multiplies_in_the_dtype_of_its_name():
  case = TrainingStep("rnn", *SIZES.values(), "bfloat16")
  lowered = case.prepare(left_out=case.kernels).lowered
  found = {name: "xbf16>" in each.as_text() for name, each in lowered.items()}
  assert found == {
    "scan: step": True,
    "scan: gradient": True,
    "expected": False,
  }


def test_a_layer_multiplies_inputs_and_states():
  # A time step: 5 sequences × 4 gates of 10 units × 20 terms, two operations.
  operations = 5 * 4 * 10 * 20 * 2
  for backward, times in ((False, 1), (True, 3)):
    for operands, peak in (("bfloat16", 2e9), ("TF32", 1e9)):
      floor = layer_floor(SLOW_PRODUCTS, "lstm", backward, operands, **SIZES)
      assert floor == pytest.approx(1e6 * times * operations / peak)


def test_a_large_layer_on_an_h100_is_bound_by_its_products(monkeypatch):
  # 2·4096·4·1024·2048 operations a time step, at 989 TFLOP/s: 69.5 µs. Its
  # bytes, 2·4·4096·1024 and a share of the weights: 10 µs at 3.35 TB/s.
  monkeypatch.setattr(torch_layers, "device_name", lambda: "NVIDIA H100")
  sizes = "lstm", 1024, 128, 4096
  torch, ours = TorchLayer(*sizes), Layer(*sizes, ())
  for layer, peer, tflops in (
    (ours, "kernel bfloat16", 989),
    (ours, "kernel", 495),
    (torch, "pytorch TF32", 495),
    (torch, "pytorch float32", 67),
  ):
    floor = layer._row(peer, "forward")["floor_us"]
    assert floor == pytest.approx(69.48 * 989 / tflops, rel=1e-3)


def test_a_training_step_moves_the_optimizer_state():
  sizes = {"num_params": 1000, "vocabulary_size": 11, **SIZES}
  # Adam moves 7 numbers for each parameter; hs and dhs are written and read.
  floor = training_step_floor(SLOW_MEMORY, "gru", "TF32", **sizes)
  assert floor == pytest.approx(4 * (7 * 1000 + 4 * 350) / 7)
  # A time step: 5 sequences × (10 × 3·10 of the state, 10 × 11 of the readout).
  floor = training_step_floor(SLOW_PRODUCTS, "gru", "TF32", **sizes)
  assert floor == pytest.approx(1e6 * 3 * 2 * 5 * (300 + 110) / 1e9)


def test_a_device_is_found_by_its_kind():
  assert find_device("NVIDIA H200") is H200
  assert find_device("NVIDIA H100 80GB HBM3") is H100
  assert find_device("NVIDIA GH200 480GB") is H100  # less bandwidth than H200
  assert H200.bandwidth > H100.bandwidth
