"""Small files that unpack to much are refused; a large one is held once."""

import io
import struct
import tracemalloc
import zipfile
import zlib
from contextlib import contextmanager

import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import lstm
from lstm_jax.interop import keras as interop
from lstm_jax.interop.keras import files
from tests.draws import worst
from tests.interop.keras_written import configured, hdf5, model, write

h5py = pytest.importorskip("h5py", reason="h5py is not installed")
MIB = 1 << 20
# The 1,032 of the messages is the most by which gzip shrinks an array. With
# 1,500 units, a kernel [1500, 6000] of float32 has the 36,000,000 bytes.


def with_datasets(units, **options):
  """Return the bytes of an HDF5 file of an LSTM, for D = H = units.

  No values are written into its arrays.
  """
  content = io.BytesIO()
  shapes = (units, 4 * units), (units, 4 * units), (4 * units,)
  with h5py.File(content, "w") as file:
    for k, shape in enumerate(shapes):
      name = f"layers/lstm/cell/vars/{k}"
      file.create_dataset(name, shape, "float32", **options)
  return content.getvalue()


@contextmanager
def peak_below(limit):
  """Assert that Python holds fewer bytes than `limit`; JAX's are not seen."""
  tracemalloc.start()
  try:
    yield
    assert tracemalloc.get_traced_memory()[1] < limit
  finally:
    tracemalloc.stop()


def test_arrays_that_were_never_written_are_refused(tmp_path):
  content = with_datasets(1500, chunks=True)
  assert len(content) < 10_000
  message = (
    "^layer {}: kernel must have at most 1032 times the 0 bytes that are "
    "stored, got 36000000$"
  )
  path = tmp_path / "model.weights.h5"
  path.write_bytes(content)
  with (
    peak_below(4 * MIB),
    pytest.raises(ValueError, match=message.format("lstm")),
  ):
    interop.load_weights(path)
  path = tmp_path / "model.keras"
  write(path, model(configured("LSTM", "a", units=1500)), content)
  with (
    peak_below(4 * MIB),
    pytest.raises(ValueError, match=message.format("a")),
  ):
    interop.load(path)


def test_an_array_is_measured_by_the_file_on_disk(tmp_path):
  """Gzip writes repeated bytes into the HDF5 file; the zip compresses these."""
  content = io.BytesIO(with_datasets(1500, compression="gzip", chunks=True))
  with h5py.File(content, "a") as file:
    for data in file["layers/lstm/cell/vars"].values():
      data[...] = 1
  plain, path = tmp_path / "plain.keras", tmp_path / "model.keras"
  config = model(configured("LSTM", "a", units=1500))
  write(plain, config, content.getvalue())
  assert list(interop.load(plain)) == ["a"]
  with (
    zipfile.ZipFile(plain) as source,
    zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
  ):
    for name in source.namelist():
      archive.writestr(name, source.read(name))
  size = path.stat().st_size
  message = f"must have at most 1032 times the {size} bytes .* got 36000000$"
  with peak_below(4 * MIB), pytest.raises(ValueError, match=message):
    interop.load(path)


def test_a_chunk_is_measured_too(tmp_path):
  """HDF5 unpacks a whole chunk, and a filter set twice shrinks it twice."""
  path, size = tmp_path / "model.weights.h5", 1024
  path.write_bytes(with_datasets(5))
  packed = zlib.compress(zlib.compress(bytes(4 * size**2), 9), 9)
  with h5py.File(path, "a") as file:
    group = file["layers/lstm/cell/vars"]
    del group["0"]
    create = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    create.set_chunk((size, size))
    create.set_deflate(9)
    create.set_deflate(9)
    space = h5py.h5s.create_simple((5, 20), (h5py.h5s.UNLIMITED,) * 2)
    kind = h5py.h5t.IEEE_F32LE
    data = h5py.h5d.create(group.id, b"0", kind, space, create)
    data.write_direct_chunk((0, 0), packed)
  message = f"must have at most 1032 times the {len(packed)} .* got 4194304$"
  with pytest.raises(ValueError, match=f"^layer lstm: kernel {message}"):
    interop.load_weights(path)


def test_references_to_one_object_are_not_read(tmp_path):
  path = tmp_path / "model.weights.h5"
  path.write_bytes(with_datasets(5))
  kind = h5py.vlen_dtype("float32")
  with h5py.File(path, "a") as file:
    group = file["layers/lstm/cell/vars"]
    one = group.create_dataset("one", (1, 1), kind, chunks=(1, 1))
    one[0, 0] = np.zeros(MIB // 4, "float32")
    file.flush()
    _, reference = one.id.read_direct_chunk((0, 0))
    del group["0"]
    many = group.create_dataset("0", (4, 4), kind, chunks=(4, 4))
    many.id.write_direct_chunk((0, 0), 16 * reference)
    del group["one"]
  message = "^layer lstm: kernel must hold floats, got object$"
  with peak_below(4 * MIB), pytest.raises(ValueError, match=message):
    interop.load_weights(path)


@pytest.mark.parametrize("value", [0, 1.5])
def test_compressed_arrays_are_read(value, tmp_path):
  """Even those of equal numbers in one chunk, which gzip shrinks most."""
  units = 256
  content = io.BytesIO()
  shapes = (units, 4 * units), (units, 4 * units), (4 * units,)
  arrays = [np.full(shape, value, "float32") for shape in shapes]
  with h5py.File(content, "w") as file:
    for k, x in enumerate(arrays):
      file.create_dataset(
        f"layers/lstm/cell/vars/{k}",
        data=x,
        chunks=x.shape,
        compression="gzip",
        compression_opts=9,
      )
    ratio = (
      arrays[0].nbytes / file["layers/lstm/cell/vars/0"].id.get_storage_size()
    )
  assert ratio > 1000
  path = tmp_path / "model.weights.h5"
  path.write_bytes(content.getvalue())
  _, params = interop.load_weights(path)["lstm"]
  assert worst(params, lstm.LSTMParams(*map(jnp.asarray, arrays))) == 0


def test_a_large_hdf5_file_in_a_small_zip_is_not_unpacked(tmp_path):
  path = tmp_path / "model.keras"
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr("config.json", "{}")
    archive.writestr("metadata.json", '{"keras_version": "3.15.1"}')
    archive.writestr("model.weights.h5", bytes(65 * MIB))
  message = (
    "is not a .keras file: model.weights.h5 must have at most 67108864 bytes, "
    "got 68157440$"
  )
  with peak_below(4 * MIB), pytest.raises(ValueError, match=message):
    interop.load(path)


def test_a_large_hdf5_file_in_a_large_zip_is_read(tmp_path, monkeypatch):
  monkeypatch.setattr(files, "LARGEST", 1 << 10)
  arrays = [np.ones((3, 20)), np.ones((5, 20)), np.ones(20)]
  content = hdf5({"layers/lstm/cell": arrays})
  assert len(content) > files.LARGEST
  path = tmp_path / "model.keras"
  write(path, model(configured("LSTM", "a", units=5)), content)
  assert list(interop.load(path)) == ["a"]


def test_a_member_is_unpacked_no_further_than_its_stated_size(tmp_path):
  """The zip's directory may state a size that is not the real one."""
  path, size = tmp_path / "model.keras", 32 * MIB + 1
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr("config.json", bytes(size))
  sizes = (struct.pack("<I", n) for n in (size, 10))
  path.write_bytes(path.read_bytes().replace(*sizes))
  with (
    peak_below(4 * MIB),
    pytest.raises(ValueError, match=r"is not a .keras file: Bad CRC-32"),
  ):
    interop.load(path)


def test_a_file_is_held_in_memory_at_most_once(tmp_path):
  """Loading holds the arrays, and for a .keras file also its HDF5 data."""
  units = 512
  arrays = [np.ones((units, 4 * units), "f")] * 2 + [np.ones(4 * units, "f")]
  content = hdf5({"layers/lstm/cell": arrays})
  path = tmp_path / "model.keras"
  write(path, model(configured("LSTM", "a", units=units)), content)
  with peak_below(2.2 * len(content)):
    interop.load(path)
  path = tmp_path / "model.weights.h5"
  path.write_bytes(content)
  with peak_below(1.2 * len(content)):
    interop.load_weights(path)


@pytest.mark.parametrize(
  ("error", "expected", "message"),
  [
    (MemoryError(), MemoryError, "^$"),
    (EOFError(), ValueError, r"is not a .keras file: EOFError$"),
  ],
)
def test_an_error_without_a_text_is_told_by_its_type(
  error, expected, message, tmp_path, monkeypatch
):
  def fail(*arguments):
    raise error

  path = tmp_path / "model.keras"
  write(path, model(configured("LSTM", "a")), b"")
  monkeypatch.setattr(zipfile.ZipExtFile, "read", fail)
  with pytest.raises(expected, match=message):
    interop.load(path)
