"""Flags that other flags make useless; the heading of a run warns of them."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from experiments.trainer.config import (
  EARLY_STEPS,
  EvaluationConfig,
  TrainConfig,
)
from experiments.trainer.own_cell import shapes_of
from experiments.trainer.records import to_record
from lstm_jax.language.epochs import LATE_DIVISOR
from lstm_jax.sequence.regularize import has_w_h


class Rule(NamedTuple):
  """When a flag has no effect, and why."""

  flag: str
  reason: str
  is_idle: Callable[..., bool]  # (config, *facts) -> whether it has no effect
  # The value that turns the flag off and needs no warning; None if none does.
  off: Any = 0


RULES = (  # of a run; the only fact is the number of its training steps
  Rule(
    "min_count",
    "it applies to words only, and the tokens are characters",
    lambda config, _: config.data.tokenizer == "character",
  ),
  Rule(
    "layer_dropout",
    "there is one layer",
    lambda config, _: config.model.num_layers == 1,
  ),
  *(
    Rule(
      flag,
      "--init_from gives the initial weights",
      lambda config, _: bool(config.init_from),
      None,
    )
    for flag in ("init_std", "readout_std")
  ),
  *(
    Rule(
      flag,
      "--teacher is not given",
      lambda config, _: not config.distillation.teacher,
      None,
    )
    for flag in ("teacher_weight", "teacher_checkpoint")
  ),
  Rule(
    "zoneout_c",
    "the state of this cell has no c",
    lambda config, _: not hasattr(shapes_of(config.model.cell)[1], "c"),
  ),
  Rule(
    "weight_drop",
    "the cell has no recurrent weights w_h",
    lambda config, _: not has_w_h(shapes_of(config.model.cell)[0]),
  ),
  Rule(
    "tar_coef",
    "--seq_len is 1",
    lambda config, _: config.batching.seq_len == 1,
  ),
  Rule(
    "short_seq_prob",
    "--seq_len is 1",
    lambda config, _: config.batching.seq_len == 1,
  ),
  Rule(
    "late_batch_size",
    f"--num_epochs is below {LATE_DIVISOR}",
    lambda config, _: config.batching.num_epochs < LATE_DIVISOR,
  ),
  Rule(
    "weight_decay",
    "it applies to adamw only",
    lambda config, _: config.optimizer.optimizer != "adamw",
  ),
  Rule(
    "asgd_patience",
    "the run has too few evaluations",
    # With --asgd_patience=n, an average starts at evaluation n + 2 or later,
    # and needs training steps after that one.
    lambda config, num_steps: (
      num_evaluations(config.evaluation, num_steps)
      <= config.averaging.asgd_patience + 2
    ),
  ),
  Rule(
    "patience",
    "the run has too few evaluations",
    # With --patience=n, evaluation n + 1 is the first that can end the run; if
    # it is the last evaluation, the run ends there in any case.
    lambda config, num_steps: (
      num_evaluations(config.evaluation, num_steps)
      <= config.evaluation.patience + 1
    ),
  ),
  Rule(
    "overwrite",
    "without --run the directory is new",
    lambda config, _: not config.job.run,
  ),
)
SWEEP_RULES = (
  Rule("sample_length", "a sweep draws no samples", lambda config: True),
  Rule("temperature", "a sweep draws no samples", lambda config: True, None),
  Rule("learning_rate", "--rate is given", lambda config: bool(config.rate)),
)

EVALUATE_RULES = (
  Rule(
    "window",
    "--protocol leaves out cold",
    lambda config: "cold" not in config.protocol,
  ),
  *(
    Rule(
      flag,
      "--protocol leaves out dynamic and mixed",
      lambda config: not {"dynamic", "mixed"} & {*config.protocol},
      None,
    )
    for flag in ("segment", "rate", "decay")
  ),
)


def without_effect(
  config: Any, rules: Sequence[Rule], *facts: int
) -> dict[str, str]:
  """Return {flag: why it has no effect} of the flags that have none.

  A flag that has its default value or is off is left out.

  Args:
    config: the configuration.
    rules: of its flags.
    facts: further arguments of each rule: for RULES, the number of training
      steps of the run.
  """
  record, default = to_record(config), to_record(type(config)())
  given = [
    rule
    for rule in rules
    if record[rule.flag] not in (default[rule.flag], rule.off)
  ]
  return {
    flag: f"--{flag}={record[flag]} has no effect: {reason}"
    for flag, reason in idle_flags(config, given, *facts).items()
  }


def idle_flags(
  config: Any, rules: Sequence[Rule], *facts: int
) -> dict[str, str]:
  """Return {flag: why} of the flags without an effect, also those that are off.

  The arguments are those of `without_effect`.
  """
  return {
    rule.flag: rule.reason for rule in rules if rule.is_idle(config, *facts)
  }


def run_warnings(config: TrainConfig, num_steps: int) -> list[str]:
  """Return warnings: flags without effect, and a warm-up as long as the run."""
  lines = [*without_effect(config, RULES, num_steps).values()]
  warmup_steps = config.optimizer.warmup_steps
  if warmup_steps >= num_steps:
    lines.append(
      f"--warmup_steps={warmup_steps} is not below the {num_steps} training "
      "steps: the learning rate rises until the last"
    )
  return lines


def num_evaluations(config: EvaluationConfig, num_steps: int) -> int:
  """Return how often a run is evaluated; the last training step always is."""
  early = (s < num_steps and s % config.eval_every > 0 for s in EARLY_STEPS)
  return (num_steps - 1) // config.eval_every + sum(early) + 1
