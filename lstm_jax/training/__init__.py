"""Training: optimizers, training steps, ensembles, meshes, checkpoints."""

from lstm_jax.training.averaging import Average as Average
from lstm_jax.training.averaging import is_nonmonotonic as is_nonmonotonic
from lstm_jax.training.averaging import start_average as start_average
from lstm_jax.training.checkpoint import CheckpointError as CheckpointError
from lstm_jax.training.checkpoint import CheckpointWriter as CheckpointWriter
from lstm_jax.training.checkpoint_reader import Checkpoint as Checkpoint
from lstm_jax.training.checkpoint_reader import has_state as has_state
from lstm_jax.training.checkpoint_reader import (
  list_checkpoints as list_checkpoints,
)
from lstm_jax.training.checkpoint_reader import (
  read_checkpoint as read_checkpoint,
)
from lstm_jax.training.checkpoint_reader import read_params as read_params
from lstm_jax.training.checkpoint_reader import read_state as read_state
from lstm_jax.training.collectives import Collective as Collective
from lstm_jax.training.collectives import find_collectives as find_collectives
from lstm_jax.training.ensemble import each_member as each_member
from lstm_jax.training.ensemble import init_ensemble as init_ensemble
from lstm_jax.training.ensemble import (
  make_ensemble_train_step as make_ensemble_train_step,
)
from lstm_jax.training.ensemble import make_members_mesh as make_members_mesh
from lstm_jax.training.ensemble import member as member
from lstm_jax.training.ensemble import members_shardings as members_shardings
from lstm_jax.training.ensemble import on_one_device as on_one_device
from lstm_jax.training.ensemble import over_members as over_members
from lstm_jax.training.ensemble import place_members as place_members
from lstm_jax.training.norms import part_norms as part_norms
from lstm_jax.training.optimizer import OptimizerConfig as OptimizerConfig
from lstm_jax.training.optimizer import make_optimizer as make_optimizer
from lstm_jax.training.sharding import check_mesh as check_mesh
from lstm_jax.training.sharding import gather as gather
from lstm_jax.training.sharding import make_mesh as make_mesh
from lstm_jax.training.sharding import (
  make_mesh_train_step as make_mesh_train_step,
)
from lstm_jax.training.sharding import parse_mesh as parse_mesh
from lstm_jax.training.sharding import place as place
from lstm_jax.training.sharding import state_shardings as state_shardings
from lstm_jax.training.train_step import Epoch as Epoch
from lstm_jax.training.train_step import Metrics as Metrics
from lstm_jax.training.train_step import TrainState as TrainState
from lstm_jax.training.train_step import TrainStep as TrainStep
from lstm_jax.training.train_step import eval_params as eval_params
from lstm_jax.training.train_step import init_state as init_state
from lstm_jax.training.train_step import make_train_step as make_train_step
from lstm_jax.training.train_step import remaining_batches as remaining_batches
from lstm_jax.training.train_step import take_step as take_step
from lstm_jax.training.train_step import train as train
from lstm_jax.training.train_step import zero_carry as zero_carry
