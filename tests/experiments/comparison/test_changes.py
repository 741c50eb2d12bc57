"""What a change makes of the flags of a recipe."""

from experiments.comparison.changes import apply_change
from experiments.trainer.config import TrainConfig


def test_a_change_of_a_repeated_flag_is_one_value_or_none():
  changed = apply_change(TrainConfig(), "teacher=runs/a")
  assert changed.distillation.teacher == ("runs/a",)
  none = apply_change(changed, "teacher=")
  assert none.distillation.teacher == ()
