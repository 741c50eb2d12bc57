"""A training run: its configuration, data, directory, logs and checkpoints."""
