"""What a change makes of the flags of a recipe."""

from types import SimpleNamespace

import pytest

from experiments.comparison import changes
from experiments.comparison.ablations import BASE
from experiments.comparison.changes import apply_change, check_changes
from experiments.trainer.config import TrainConfig
from experiments.trainer.records import replace


def test_a_change_of_a_repeated_flag_is_one_value_or_none():
  changed = apply_change(TrainConfig(), "teacher=runs/a")
  assert changed.distillation.teacher == ("runs/a",)
  none = apply_change(changed, "teacher=")
  assert none.distillation.teacher == ()


def test_the_number_of_devices_makes_no_change_of_a_recipe(tmp_path):
  """A resumed run keeps its own number, which may differ from the base's."""
  corpus = tmp_path / "corpus.txt"
  corpus.write_text("abc\n" * 500)
  base = replace(TrainConfig(), corpus=str(corpus), batch_size=2, seq_len=4)
  elsewhere = replace(base, devices="2")
  with pytest.raises(ValueError, match="=seed=0 is the recipe itself"):
    check_changes({BASE: base, "seed=0": elsewhere})
  seed, other = (replace(c, seed=1) for c in (base, elsewhere))
  with pytest.raises(ValueError, match="=seed=01 is the same as seed=1"):
    check_changes({BASE: base, "seed=1": seed, "seed=01": other})


def test_a_change_need_not_fit_the_mesh_of_the_recipe(monkeypatch):
  """`share_batches` gives a mesh only to configurations that can use one."""
  steps = SimpleNamespace(num_steps=100)
  monkeypatch.setattr(changes, "make_setup", lambda config: steps)
  base = replace(TrainConfig(), batch_size=4, mesh="data:2", devices="2")
  odd = replace(base, batch_size=3, mesh="", devices="1")
  check_changes({BASE: base, "batch_size=3": odd})
  with pytest.raises(ValueError, match="=batch_size=03 is the same as batch_s"):
    check_changes({BASE: base, "batch_size=3": odd, "batch_size=03": odd})
