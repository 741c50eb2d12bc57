"""The kind of device that a program is traced for."""

import jax

from lstm_jax.cells.platform import is_cpu, platform, traced_for


def test_the_device_is_the_default_one_of_jax(monkeypatch):
  """Also on a machine with a GPU, where JAX's default backend is another."""
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  for device in ("cpu", jax.devices("cpu")[0]):
    with jax.default_device(device):
      assert is_cpu()
      with traced_for("cuda"):
        assert platform() == "cuda"
    assert platform() == "gpu"


def test_the_end_of_an_inner_context_leaves_the_outer_one():
  with traced_for("cuda"):
    with traced_for("cpu"):
      assert is_cpu()
    assert platform() == "cuda"
  assert is_cpu()
