"""Edit the configuration of a run."""

import json

from experiments.trainer import run_dir


def edit_config(directory, **changes):
  path = directory / run_dir.CONFIG
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))
