"""Flags without an effect are named, and the others are not."""

import io

import jax
import pytest
from rich.console import Console

from experiments import ablate, sweep
from experiments.evaluate import EvaluateConfig
from experiments.trainer.config import (
  CELLS,
  EARLY_STEPS,
  EvaluationConfig,
  TrainConfig,
)
from experiments.trainer.effects import (
  EVALUATE_RULES,
  RULES,
  num_evaluations,
  run_warnings,
  without_effect,
)
from experiments.trainer.records import replace
from experiments.trainer.setup import heading, make_setup
from lstm_jax import gru, rnn
from lstm_jax.sequence.regularize import drop_connect
from tests.experiments.sweep.sweeps import as_sweep

STEPS = 1000  # training steps of the runs
# For each rule: a flag, other flags beside which it has no effect, and others
# beside which it has one. {} stands for the defaults. With --eval_every=400 a
# run is evaluated 5 times: at training steps 10, 30, 400, 800 and 1000.
# From 6 evaluations on, --asgd_patience=3 has an effect, --patience=3 from 5.
CASES = [
  ({"min_count": 3}, {}, {"tokenizer": "word"}),
  ({"layer_dropout": 0.5}, {}, {"num_layers": 2}),
  ({"init_std": 0.1}, {"init_from": "runs/a"}, {}),
  ({"readout_std": 0.1}, {"init_from": "runs/a"}, {}),
  ({"teacher_weight": 0.9}, {}, {"teacher": ("runs/a",)}),
  ({"teacher_checkpoint": "last"}, {}, {"teacher": ("runs/a",)}),
  ({"zoneout_c": 0.1}, {"cell": gru}, {}),
  ({"zoneout_c": 0.1}, {"cell": rnn}, {}),
  ({"weight_drop": 0.1}, {"cell": CELLS["min_gru"]}, {}),
  ({"tar_coef": 1.0}, {"seq_len": 1}, {"seq_len": 2}),
  ({"short_seq_prob": 0.1}, {"seq_len": 1}, {"seq_len": 2}),
  ({"late_batch_size": 64}, {"num_epochs": 2}, {"num_epochs": 3}),
  ({"weight_decay": 0.2}, {"optimizer": "sgd"}, {}),
  ({"asgd_patience": 3}, {"eval_every": 400}, {"eval_every": 300}),
  ({"patience": 3}, {"eval_every": 500}, {"eval_every": 400}),
  ({"overwrite": True}, {}, {"run": "runs/a"}),
]


@pytest.mark.parametrize(("flag", "idle", "used"), CASES)
def test_a_flag_without_effect_is_named(flag, idle, used):
  ((name, value),) = flag.items()
  config = replace(TrainConfig(), **flag)
  (line,) = run_warnings(replace(config, **idle), STEPS)
  assert line.startswith(f"--{name}={value} has no effect: ")
  assert run_warnings(replace(config, **used), STEPS) == []


def test_every_rule_has_a_case():
  assert {name for flag, _, _ in CASES for name in flag} == {
    rule.flag for rule in RULES
  }


def test_what_is_off_or_the_default_is_not_named():
  config = replace(TrainConfig(), optimizer="sgd", cell=gru, num_epochs=1)
  assert run_warnings(config, STEPS) == []
  assert run_warnings(replace(config, weight_decay=0.0), STEPS) == []


def cells_where_idle(**flag):
  """Return the cells for which a flag has no effect."""
  config = replace(TrainConfig(), **flag)
  return [
    cell
    for cell in CELLS.values()
    if run_warnings(replace(config, cell=cell), STEPS)
  ]


@pytest.mark.exhaustive
def test_the_cells_without_c_are_those_whose_state_has_none():
  def has_c(cell):
    params = cell.init(jax.random.key(0), 2, 3)
    return "c" in cell.initial_state(params, ())._fields

  found = [cell for cell in CELLS.values() if not has_c(cell)]
  assert found == cells_where_idle(zoneout_c=0.1)


@pytest.mark.exhaustive
def test_the_cells_without_w_h_are_those_that_drop_connect_refuses():
  def refused(cell):
    params = cell.init(jax.random.key(0), 2, 4)
    try:
      drop_connect(jax.random.key(0), params, 0.5)
    except ValueError:
      return True
    return False

  found = [cell for cell in CELLS.values() if refused(cell)]
  assert found == cells_where_idle(weight_drop=0.1)


@pytest.mark.parametrize("eval_every", [1, 7, 10, 15, 100])
@pytest.mark.parametrize("num_steps", [1, 9, 10, 11, 30, 31, 99, 100, 101])
def test_evaluations_are_counted(eval_every, num_steps):
  config = EvaluationConfig(eval_every=eval_every)
  due = [s for s in range(1, num_steps + 1) if config.is_due(s)]
  expected = len({*due, num_steps})
  assert num_evaluations(config, num_steps) == expected


def test_evaluations_of_any_number_of_steps_are_counted_at_once():
  config = EvaluationConfig(eval_every=100)
  assert num_evaluations(config, 10**15) == 10**13 + len(EARLY_STEPS)


def test_a_warmup_as_long_as_the_run_is_named(config):
  shown = heading(make_setup(replace(config, warmup_steps=47)))
  line = "warning     --warmup_steps=47 is not below the 47 training steps: "
  assert shown.splitlines()[-1].startswith(line)
  assert "warning" not in heading(make_setup(replace(config, warmup_steps=46)))


@pytest.mark.exhaustive
def test_a_sweep_names_what_it_does_not_use(config):
  shared = as_sweep(config)  # with a sample_length of 30; the default is 200
  for changes, names in (
    (
      {"rate": (0.01,), "learning_rate": 0.03, "temperature": 0.3},
      ["sample_length", "temperature", "learning_rate"],
    ),
    ({"rate": (), "learning_rate": 0.03, "sample_length": 200}, []),
    # A temperature of 0 is greedy sampling, and not off.
    ({"temperature": 0.0, "sample_length": 200}, ["temperature"]),
  ):
    unused = without_effect(replace(shared, **changes), sweep.SWEEP_RULES)
    assert [*unused] == names
  console = Console(file=io.StringIO(), width=80)
  sweep.run(replace(shared, zoneout_c=0.1, cell=gru), console)
  shown = console.file.getvalue()
  assert (
    "\nwarning     --zoneout_c=0.1 has no effect: the state of this cell"
    in shown
  )
  assert "\nwarning     --sample_length=30 has no effect: a sweep" in shown


def test_an_evaluation_names_flags_of_protocols_that_it_leaves_out():
  given = {"window": 64, "segment": 5, "rate": 0.1, "decay": 0.2}
  for protocols, unused in (
    (("cold", "stateful", "dynamic"), []),
    (("dynamic",), ["window"]),
    (("cold",), ["segment", "rate", "decay"]),
    (("stateful",), [*given]),
    (("mixed",), ["window"]),
    (("mixed_stateful",), [*given]),
  ):
    config = EvaluateConfig(protocol=protocols, **given)
    assert [*without_effect(config, EVALUATE_RULES)] == unused
  # A rate or decay of 0 is a value, and not off.
  config = EvaluateConfig(protocol=("cold",), rate=0.0, decay=0.0)
  assert [*without_effect(config, EVALUATE_RULES)] == ["rate", "decay"]


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ("layer_dropout=0.3", "in --change=layer_dropout=0.3, --layer_dropout=0.3"),
    ("hidden_size=7,cell=gru,zoneout_c=0.1", "--zoneout_c=0.1 has no effect"),
    ("hidden_size=12", "--change=hidden_size=12 is the recipe itself"),
  ],
)
def test_a_change_without_effect_is_refused(change, message, config, console):
  with pytest.raises(ValueError, match=message):
    ablate.run(config, [change], console)
