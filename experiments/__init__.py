"""Programs over `lstm_jax`: `python -m experiments.NAME --help`."""
