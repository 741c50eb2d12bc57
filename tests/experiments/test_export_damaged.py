"""Exports of runs whose files are damaged or missing."""

import json
import shutil

import pytest

from experiments import export
from lstm_jax.training import CheckpointError
from tests.experiments.pages.explored import VERSE


def size(path):
  return path.stat().st_size


@pytest.mark.exhaustive
def test_a_flipped_bit_is_an_error_of_one_line_or_changes_nothing(
  explored_run, tmp_path
):
  """One bit is flipped at each of 15 places of the weights' largest file.

  If it changes the weights, their checksum differs. If it damages compressed
  data, the file may be unreadable. Nothing reads the parts of the file that
  were superseded while it was written. What a place holds differs between
  runs of this test.
  """
  run, page, untouched = (tmp_path / name for name in ("run", "a", "b"))
  shutil.copytree(explored_run, run)
  export.run(str(run), "html", str(untouched))
  (*_, data) = sorted((run / "checkpoints/0/params").rglob("d/*"), key=size)
  whole, found = data.read_bytes(), []
  for sixteenth in range(1, 16):
    changed = bytearray(whole)
    changed[len(changed) * sixteenth // 16] ^= 1
    data.write_bytes(changed)
    try:
      export.run(str(run), "html", str(page))
    except (ValueError, CheckpointError) as error:
      found.append(str(error))
      assert not page.exists()
    else:
      assert page.read_bytes() == untouched.read_bytes()
      page.unlink()
  damaged = [line for line in found if "is not what was written" in line]
  assert damaged and all("0 is damaged: params" in line for line in damaged)
  others = [line for line in found if line not in damaged]
  assert all("checkpoints/0 cannot be read: " in line for line in others)
  assert not any("\n" in line for line in found)


@pytest.mark.parametrize("damage", ["no run", "params", "corpus"])
def test_a_page_of_a_damaged_run_is_an_error_that_leaves_no_file(
  explored_run, tmp_path, damage
):
  run, page = tmp_path / "run", tmp_path / "page.html"
  message = "there is no run in "
  if damage != "no run":
    shutil.copytree(explored_run, run)
  if damage == "params":
    shutil.rmtree(run / "checkpoints/0/params")
    message = "checkpoint .*0 cannot be read: "
  if damage == "corpus":
    record = json.loads((run / "config.json").read_text())
    other = tmp_path / "other.txt"
    other.write_text(VERSE * 19 + "!", "utf-8")  # the run's is VERSE * 20
    (run / "config.json").write_text(
      json.dumps(record | {"corpus": str(other)})
    )
    message = "has changed"
  with pytest.raises((ValueError, CheckpointError), match=message) as raised:
    export.run(str(run), "html", str(page))
  assert "\n" not in str(raised.value)
  assert not page.exists()
