"""The device and the package versions that a run computes with."""

from importlib.metadata import version
from typing import Any

import jax


def environment() -> dict[str, Any]:
  """Return package versions and the device, to record with results."""
  packages = "jax", "jaxlib", "optax", "flax", "lstm-jax"
  versions = {name: version(name) for name in packages}
  return {"versions": versions, "device": device_name()}


def device_name() -> str:
  """Return the platform and kind of the device."""
  device = jax.devices()[0]
  return f"{device.platform}, {device.device_kind}"
