"""Configurations, their records in config.json, and their flags."""

import dataclasses
import json
import math
import re

import jax.numpy as jnp
import pytest
from absl import flags

from experiments.comparison.cells import CompareConfig
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


def test_a_record_names_cells_and_dtypes():
  for name, cell in CELLS.items():
    record = to_record(replace(TrainConfig(), cell=cell))
    assert record["cell"] == name
    assert from_record(TrainConfig(), record).model.cell is cell
  lower = replace(TrainConfig(), compute_dtype=jnp.bfloat16)
  assert to_record(lower)["compute_dtype"] == "bfloat16"
  assert to_record(TrainConfig())["compute_dtype"] == "float32"


@pytest.mark.parametrize(
  ("wrong", "message"),
  [
    ({"seed": None}, "seed must be int, got None"),
    ({"seed": True}, "seed must be int, got True"),
    ({"num_layers": 2.0}, "num_layers must be int, got 2.0"),
    ({"tied": 1}, "tied must be bool, got 1"),
    ({"corpus": 3}, "corpus must be str, got 3"),
    ({"learning_rate": "1"}, "learning_rate must be float, got '1'"),
    ({"learning_rate": math.nan}, "learning_rate must be float, got nan"),
    ({"learning_rate": 10**400}, "learning_rate must be float, got 1000"),
    ({"learning_rate": 0}, r"learning_rate must be in \(0, inf\), got 0"),
    ({"cell": "gpt"}, "cell must be one of lstm, .*, got 'gpt'"),
    ({"tokenizer": "syllable"}, "tokenizer must be one of .*, got 'syllable'"),
    ({"mesh": "rows:2"}, "a mesh must be data:N, model:M or both"),
    (
      {"mesh": "data:8", "late_batch_size": 12},
      "^late_batch_size must be a multiple of the mesh's 8 devices, got 12",
    ),
    ({"implementation": "cuda"}, "implementation must be one of xla, mosaic_g"),
    ({"implementation": 1}, "implementation must be str or null, got 1"),
    (
      {"implementation": "mosaic_gpu", "mesh": "data:2"},
      "^implementation='mosaic_gpu' takes no mesh, got data:2",
    ),
    ({"rate": 0.1}, "rate must be a list of float, got 0.1"),
    ({"rate": [0.1, "x"]}, r"rate must be a list of float, got \[0.1, 'x'\]"),
  ],
)
def test_a_record_with_a_wrong_value_is_refused(wrong, message):
  record = to_record(SweepConfig()) | wrong
  with pytest.raises(ValueError, match=message):
    from_record(SweepConfig(), record)


def test_a_record_must_have_every_field():
  for name in to_record(TrainConfig()):
    record = to_record(TrainConfig())
    del record[name]
    with pytest.raises(ValueError, match=f"the configuration lacks {name}$"):
      from_record(TrainConfig(), record)


# dtype is a field of the model's configuration, but one of NOT_FLAGS.
@pytest.mark.parametrize("name", ["depth", "dtype"])
def test_a_name_that_is_no_flag_cannot_be_replaced(name):
  message = f"the configuration has no flag '{name}'"
  with pytest.raises(TypeError, match=message):
    replace(TrainConfig(), **{name: jnp.float64})


def test_names_are_unique_among_nested_configs():
  for default in (TrainConfig(), SweepConfig()):
    names = [leaf.name for leaf in leaves(default)]
    assert len(names) == len(set(names))


def fields(config):
  """Yield the dataclass fields of a nested configuration, and their values."""
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if dataclasses.is_dataclass(value):
      yield from fields(value)
    else:
      yield field, value


@pytest.mark.parametrize("default", [TrainConfig(), SweepConfig()])
def test_a_flag_has_the_default_help_and_bounds_of_its_field(
  default, flag_values
):
  holders = define_flags(default, flag_values)
  record = to_record(default)
  assert {h.name: h.default for h in holders} == record
  for field, _ in fields(default):
    if field.name == "dtype":  # the only one of NOT_FLAGS
      assert field.name not in record
      continue
    flag, metadata = flag_values[field.name], field.metadata
    assert metadata["help"] and metadata["help"] in flag.help
    if metadata["choices"]:
      assert list(flag.parser.enum_values) == list(metadata["choices"])
    if bounds := metadata["bounds"]:
      low, high = map(float, bounds[1:-1].split(","))
      assert flag.parser.lower_bound == low
      for value in outside(bounds, low, high):
        with pytest.raises((flags.Error, ValueError), match=field.name):
          flag_values(["train", f"--{field.name}={value:g}"])
          config_from_flags(default, holders)
        flag.unparse()


def outside(bounds, low, high):
  """Return a number below an interval, and one above if `high` < LARGEST."""
  values = [low if bounds.startswith("(") else low - 1]
  if high < LARGEST:  # `:g` writes a larger one as no integer
    values.append(high if bounds.endswith(")") else high + 1)
  return values


def test_integers_that_are_too_large_are_refused_also_if_repeated(flag_values):
  define_flags(CompareConfig(), flag_values)
  for name in ("delay", "num_steps"):
    message = rf"^flag --{name}={LARGEST + 1}: .* {LARGEST}\]"
    with pytest.raises(flags.IllegalFlagValueError, match=message):
      flag_values(["compare_cells", f"--{name}={LARGEST + 1}"])
    flag_values[name].unparse()


@pytest.mark.parametrize("default", [TrainConfig(), SweepConfig()])
def test_the_flags_make_the_config_of_the_same_record(default, flag_values):
  holders = define_flags(default, flag_values)
  record = to_record(default) | changes(default) | {"asgd_patience": 0}
  arguments = []
  for name, value in record.items():
    for each in value if isinstance(value, list) else [value]:
      arguments.append(f"--{name}={each}")
  flag_values(["train", *arguments])
  config = config_from_flags(default, holders)
  assert config == from_record(default, record)
  assert type(config) is type(default)


def test_flags_refuse_numbers_that_are_not_finite(flag_values):
  define_flags(TrainConfig(), flag_values)
  floats = [leaf.name for leaf in leaves(TrainConfig()) if leaf.kind is float]
  assert {"learning_rate", "init_std"} <= {*floats}  # init_std may be None
  for name in floats:
    for value in ("nan", "inf"):
      message = f"^flag --{name}={value}: must be a finite number$"
      with pytest.raises(flags.IllegalFlagValueError, match=message):
        flag_values(["train", f"--{name}={value}"])
    flag_values[name].unparse()  # or later parses would refuse it again


@pytest.mark.parametrize("default", [TrainConfig(), SweepConfig()])
def test_help_lists_every_flag(default, flag_values):
  define_flags(default, flag_values)
  check_help(default, grouped_help(flag_values))


def test_help_groups_the_flags_of_each_nested_config(flag_values):
  define_flags(TrainConfig(), flag_values)
  first, *groups = grouped_help(flag_values).split(" flags:\n")
  assert first.startswith("\nflags:\n  --init_from: ")
  titles = [text.rsplit("\n", 1)[1] for text in (first, *groups[:-1])]
  nested = [
    field
    for field in dataclasses.fields(TrainConfig())
    if dataclasses.is_dataclass(field.type)
  ]
  assert titles == [field.name for field in nested]
  for field, text in zip(nested, groups, strict=True):
    listed = set(re.findall(r"^  --(?:\[no\])?(\w+):", text, re.MULTILINE))
    assert listed == {leaf.name for leaf in leaves(field.default)}


def test_help_has_bounds_and_defaults_and_fits_a_terminal(flag_values):
  define_flags(TrainConfig(), flag_values)
  text = grouped_help(flag_values)
  assert max(map(len, text.splitlines())) <= 80
  _, *parts = re.split(r"^  --(?:\[no\])?(\w+): ", text, flags=re.MULTILINE)
  texts = dict(zip(parts[::2], parts[1::2], strict=True))
  for leaf in leaves(TrainConfig()):
    if leaf.kind is float and leaf.bounds:
      assert f"(in {leaf.bounds})" in texts[leaf.name], leaf.name
      if leaf.value is not None:
        assert f"(default: '{leaf.value}')" in texts[leaf.name], leaf.name
  (fraction,) = re.findall(r"  --val_fraction: [^-]*", text)
  assert "(default: '0.1')" in fraction and "(in (0, 1))" in fraction
  assert "None for" not in text  # None cannot be given as a flag's value
  (weights,) = re.findall(r"  --ema_decay: [^-]*", text)
  assert "(in [0, 1))" in weights


def check_help(default, text):
  """Check that every leaf field stands in a help text, with its own help."""
  shown = " ".join(text.split())
  for leaf in leaves(default):
    dash = "--[no]" if leaf.kind is bool else "--"
    assert f" {dash}{leaf.name}: " in shown
    assert " ".join(leaf.help.split()) in shown


def test_a_dtype_of_products_has_a_name_or_is_refused():
  config = replace(TrainConfig(), compute_dtype=jnp.dtype("bfloat16"))
  assert to_record(config)["compute_dtype"] == "bfloat16"
  for dtype in (jnp.float16, "float32"):
    message = "^compute_dtype must be None or bfloat16, got .*float(16|32)"
    with pytest.raises(ValueError, match=message):
      to_record(replace(TrainConfig(), compute_dtype=dtype))


def test_an_argument_that_python_read_as_ascii_is_decoded_as_utf_8():
  read = [
    decoded_as_utf8(text) for text in ("\udcc3\udca9t", "\udcff", "\xe9t")
  ]
  assert read == ["\xe9t", "\udcff", "\xe9t"]
