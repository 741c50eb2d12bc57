"""The flags of a training run: one for each field of `TrainConfig`."""

from typing import get_args

from absl import flags

from experiments.cli import LARGEST, finite
from experiments.trainer.config import (
  CELLS,
  COMPUTE_DTYPES,
  SKIPPED,
  Nonfinite,
  Tokens,
  TrainConfig,
)
from lstm_jax.training import optimizer


def define_flags() -> list[flags.FlagHolder]:
  """Define one flag for each field of TrainConfig, with its default."""
  default = TrainConfig()

  def integer(name, text, low=1):
    value = getattr(default, name)
    return flags.DEFINE_integer(name, value, text, low, LARGEST)

  def number(name, text, low=0.0):
    value = getattr(default, name)
    flag = flags.DEFINE_float(name, value, text, lower_bound=low)
    return finite(flag)

  def boolean(name, text):
    return flags.DEFINE_boolean(name, getattr(default, name), text)

  def choice(name, values, text):
    return flags.DEFINE_enum(name, getattr(default, name), values, text)

  def string(name, text):
    return flags.DEFINE_string(name, getattr(default, name), text)

  return [
    string("corpus", "The text to learn: any UTF-8 file."),
    number(
      "val_fraction", "Share of the corpus held out, at its end, in (0, 1)."
    ),
    number(
      "development",
      "Share of the training split, at its end, that is not trained on but "
      "watched, so that the held-out split chooses nothing; 0 to watch that.",
    ),
    choice(
      "tokenizer",
      get_args(Tokens),
      "What is read and written one by one; marks and line breaks are words.",
    ),
    integer("min_count", "Words that training has less often are unknown."),
    string("run", "Folder of the run; empty for a new one under runs/."),
    boolean("overwrite", "Replace the run that --run holds."),
    boolean("resume", "Go on with an unfinished run that --run holds."),
    string(
      "mesh",
      "How all devices share the training, such as data:8, or data:4,model:2 "
      "where weights and moments are kept in halves; empty for one device.",
    ),
    boolean("quiet", "Show neither a bar nor samples while training."),
    integer("seed", "Seed of the initial weights and of the samples.", 0),
    choice("cell", list(CELLS), "The recurrent cell."),
    integer("embedding_size", "Length of a token's vector."),
    integer("hidden_size", "Hidden units of each layer."),
    integer("num_layers", "Layers of cells."),
    boolean(
      "tied",
      "Read out with the embedding; --embedding_size must be that of the top "
      "layer's outputs.",
    ),
    number(
      "init_std",
      "Deviation of Gaussian initial weights, with every bias 0; 0 for the "
      "cell's own initial weights.",
    ),
    number(
      "readout_std",
      "Deviation of the readout's initial weights; 0 for 1/√hidden_size.",
    ),
    choice(
      "compute_dtype",
      list(COMPUTE_DTYPES),
      "What products read their operands in; sums, weights, states and "
      "gradients stay float32.",
    ),
    number("token_dropout", "Rate at which tokens lose their vector."),
    number("layer_dropout", "Rate of dropout between layers, locked in time."),
    number("output_dropout", "The same of what is read out of the top layer."),
    number("weight_drop", "Rate of DropConnect on recurrent weights."),
    number("zoneout_h", "How often a unit keeps its h for a step."),
    number("zoneout_c", "How often a unit keeps its c for a step."),
    number("ar_coef", "Factor of the mean square of what is read out (AR)."),
    number(
      "tar_coef", "Factor of the mean square of its change in a step (TAR)."
    ),
    integer("batch_size", "Streams of text read in parallel (batch size)."),
    integer("seq_len", "Tokens of a stream in one update."),
    integer("num_epochs", "Passes over the training split."),
    boolean("random_offsets", "Begin each epoch somewhere else in the text."),
    number("short_seq_prob", "How often a block has half of --seq_len."),
    integer(
      "late_batch_size",
      "Streams of the last third of the epochs, for gradients with less noise; "
      "0 for --batch_size.",
      0,
    ),
    choice("optimizer", get_args(optimizer.Rule), "How weights are updated."),
    number("learning_rate", "Peak of the learning-rate schedule."),
    choice(
      "schedule", get_args(optimizer.Schedule), "What follows the warm-up."
    ),
    integer("warmup_steps", "Updates of linear warm-up.", 0),
    number("weight_decay", "Weight decay of adamw, on matrices only."),
    number("clip_norm", "Largest global norm of a gradient; 0 for any."),
    number("clip_value", "Largest element of a gradient; 0 for any."),
    choice(
      "nonfinite",
      get_args(Nonfinite),
      "What an update with a NaN or an infinity in its gradient does: stop the "
      f"run, or be skipped, up to {SKIPPED} in a row.",
    ),
    number(
      "ema_decay",
      "Decay of the weights' exponential average, which is then what is "
      "watched, sampled and kept; 0 for the weights themselves.",
    ),
    integer(
      "asgd_patience",
      "Average the weights (NT-ASGD) from the first look that is worse than "
      "the best of those before the last so many; 0 for never.",
      0,
    ),
    integer("eval_every", "Updates between two looks: held-out loss, sample."),
    integer("sample_length", "Tokens of a sample while training."),
    number("temperature", "Temperature of the samples; 0 is greedy."),
  ]
