"""Configurations, their records in config.json, and their flags."""

import dataclasses
import json
import math
import re

import jax.numpy as jnp
import pytest
from absl import flags

from experiments.trainer.config import CELLS, LARGEST, TrainConfig
from experiments.trainer.records import (
  config_from_flags,
  decoded_as_utf8,
  define_flags,
  from_record,
  grouped_help,
  leaves,
  replace,
  to_record,
)
from experiments.trainer.sweep_members import SweepConfig
from lstm_jax.language.options import in_bounds


def change(leaf):
  """Return a valid value of a flag, as in a record, that is not the default."""
  if leaf.choices:
    return next(name for name in leaf.choices if name != leaf.value)
  if leaf.kind is bool:
    return not leaf.value
  if leaf.kind is str:
    valid = {"mesh": "data:1", "devices": "1", "cell": "gru"}
    value = valid.get(leaf.name, "other")
    return [value, "another"] if leaf.repeated else value
  if leaf.repeated:
    return [0.25, 0.5]
  usual = leaf.value or 0
  for value in map(leaf.kind, (usual + 1, usual / 2 + 0.25, usual / 2)):
    if value != leaf.value and (
      leaf.bounds is None or in_bounds(value, leaf.bounds)
    ):
      return value
  raise AssertionError(leaf)


def changes(default):
  """Return, for every flag, a valid value that is not its default."""
  return {leaf.name: change(leaf) for leaf in leaves(default)}


@pytest.fixture
def flag_values():
  return flags.FlagValues()


@pytest.mark.parametrize("default", [TrainConfig(), SweepConfig()])
def test_a_config_is_the_same_after_its_record_in_json(default):
  record = to_record(default)
  assert from_record(default, json.loads(json.dumps(record))) == default
  for name, value in changes(default).items():
    if name != "asgd_patience":  # may not be set beside ema_decay
      record[name] = value
  other = from_record(default, json.loads(json.dumps(record)))
  assert to_record(other) == record
  assert from_record(default, to_record(other)) == other
  for leaf in leaves(other):
    if leaf.name != "asgd_patience":
      assert leaf.value != to_record(default)[leaf.name]
  patient = replace(default, asgd_patience=3)
  assert from_record(default, to_record(patient)) == patient


# dtype is a field of the model's configuration, but one of NOT_FLAGS.
@pytest.mark.parametrize("name", ["depth", "dtype"])
def test_a_name_that_is_no_flag_cannot_be_replaced(name):
  message = f"the configuration has no flag '{name}'"
  with pytest.raises(TypeError, match=message):
    replace(TrainConfig(), **{name: jnp.float64})


def test_an_argument_that_python_read_as_ascii_is_decoded_as_utf_8():
  read = [
    decoded_as_utf8(text) for text in ("\udcc3\udca9t", "\udcff", "\xe9t")
  ]
  assert read == ["\xe9t", "\udcff", "\xe9t"]


def test_a_record_names_cells_and_dtypes():
  for name, cell in CELLS.items():
    record = to_record(replace(TrainConfig(), cell=cell))
    assert record["cell"] == name
    assert from_record(TrainConfig(), record).model.cell is cell
  for dtype in (jnp.bfloat16, jnp.dtype("bfloat16")):
    lower = replace(TrainConfig(), compute_dtype=dtype)
    assert to_record(lower)["compute_dtype"] == "bfloat16"
  assert to_record(TrainConfig())["compute_dtype"] == "float32"
  for dtype in (jnp.float16, "float32"):
    with pytest.raises(ValueError, match=r"compute_dtype .* bfloat16, got"):
      to_record(replace(TrainConfig(), compute_dtype=dtype))


@pytest.mark.parametrize(
  ("name", "wrong", "expected"),
  [
    ("seed", None, "int"),
    ("seed", True, "int"),
    ("num_layers", 2.0, "int"),
    ("tied", 1, "bool"),
    ("corpus", 3, "str"),
    ("learning_rate", "1", "float"),
    ("learning_rate", math.nan, "float"),
    ("learning_rate", 0, r"in \(0, inf\)"),
    ("cell", "gpt", "one of lstm, "),
    ("tokenizer", "syllable", "one of "),
    ("implementation", "cuda", "one of xla, mosaic_g"),
    ("implementation", 1, "str or null"),
    ("rate", 0.1, "a list of float"),
    ("rate", [0.1, "x"], "a list of float"),
  ],
)
def test_a_record_with_a_wrong_value_is_refused(name, wrong, expected):
  record = to_record(SweepConfig()) | {name: wrong}
  with pytest.raises(ValueError, match=f"{name} must be {expected}.*, got "):
    from_record(SweepConfig(), record)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"mesh": "rows:2"}, "a mesh must be data:N, model:M or both"),
    ({"mesh": "data:8", "late_batch_size": 12}, "late_batch_size .* 8 devices"),
    ({"mesh": "data:2", "implementation": "mosaic_gpu"}, "takes no mesh"),
  ],
)
def test_a_mesh_that_does_not_fit_is_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    from_record(TrainConfig(), to_record(TrainConfig()) | changes)


def test_a_record_must_have_every_field():
  record = to_record(TrainConfig())
  for name in record:
    part = {n: value for n, value in record.items() if n != name}
    with pytest.raises(ValueError, match=f"the configuration lacks {name}$"):
      from_record(TrainConfig(), part)


@pytest.mark.parametrize("default", [TrainConfig(), SweepConfig()])
def test_a_flag_has_the_default_help_and_bounds_of_its_field(
  default, flag_values
):
  holders = define_flags(default, flag_values)
  assert {h.name: h.default for h in holders} == to_record(default)
  for leaf in leaves(default):
    flag, wrong = flag_values[leaf.name], []
    assert leaf.help and leaf.help in flag.help
    if leaf.choices:
      assert list(flag.parser.enum_values) == list(leaf.choices)
    if leaf.kind is float:
      wrong += ["nan", "inf"]
    if leaf.bounds:
      low, high = map(float, leaf.bounds[1:-1].split(","))
      wrong.append(f"{low if leaf.bounds[0] == '(' else low - 1:g}")
      if high < LARGEST:  # `:g` writes a larger one as no integer
        wrong.append(f"{high if leaf.bounds[-1] == ')' else high + 1:g}")
    for value in wrong:
      with pytest.raises((flags.Error, ValueError), match=leaf.name):
        flag_values(["train", f"--{leaf.name}={value}"])
        config_from_flags(default, holders)
      flag.unparse()  # or later parses would refuse it again


@pytest.mark.parametrize("default", [TrainConfig(), SweepConfig()])
def test_the_flags_make_the_config_of_the_same_record(default, flag_values):
  holders = define_flags(default, flag_values)
  record = to_record(default) | changes(default) | {"asgd_patience": 0}
  arguments = [
    f"--{name}={each}"
    for name, value in record.items()
    for each in (value if isinstance(value, list) else [value])
  ]
  flag_values(["train", *arguments])
  config = config_from_flags(default, holders)
  assert config == from_record(default, record)
  assert type(config) is type(default)


@pytest.mark.parametrize("default", [TrainConfig(), SweepConfig()])
def test_help_lists_each_flag_in_its_group_and_fits_a_terminal(
  default, flag_values
):
  define_flags(default, flag_values)
  text = grouped_help(flag_values)
  assert max(map(len, text.splitlines())) <= 80
  assert "None for" not in text  # None cannot be given as a flag's value
  groups = dict(re.findall(r"(\w+) flags:\n((?:  .*\n?|\n)*)", text))
  nested = [
    field
    for field in dataclasses.fields(default)
    if dataclasses.is_dataclass(field.type)
  ]
  assert list(groups) == [field.name for field in nested]
  for field in nested:
    listed = re.findall(r"^  --(?:\[no\])?(\w+):", groups[field.name], re.M)
    assert {*listed} == {leaf.name for leaf in leaves(field.default)}
  shown = " ".join(text.split())
  _, *parts = re.split(r" --(?:\[no\])?(\w+): ", shown)
  own = dict(zip(parts[::2], parts[1::2], strict=True))
  for leaf in leaves(default):
    assert " ".join(leaf.help.split()) in own[leaf.name]
    if leaf.kind is float and leaf.bounds:
      assert f"(in {leaf.bounds})" in own[leaf.name]
      if leaf.value is not None and not leaf.repeated:
        assert f"(default: '{leaf.value}')" in own[leaf.name]
