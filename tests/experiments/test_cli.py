"""The programs as a user starts them: exit statuses, output, interruption."""

import signal
import subprocess
import sys
import time

import pytest

from experiments.trainer import records
from lstm_jax.training import read_checkpoint
from tests import processes

SMALL = (
  "--hidden_size=12",
  "--embedding_size=4",
  "--batch_size=3",
  "--seq_len=8",
)

pytestmark = pytest.mark.programs


def start(program, *flags):
  return processes.start(f"experiments.{program}", *flags)


def finish(process):
  (result,) = processes.finish(process, timeout=120)
  return result


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  path = tmp_path_factory.mktemp("corpus") / "verse.txt"
  path.write_text("Shall I compare thee to a summer's day?\n" * 60)
  return path


def test_train_then_sample(corpus, tmp_path):
  run = tmp_path / "run"
  flags = f"--corpus={corpus}", f"--run={run}", "--num_epochs=1"
  recipe = tmp_path / "small.flags"
  recipe.write_text("\n".join(SMALL))
  status, out, err = finish(start("train", f"--flagfile={recipe}", *flags))
  assert (status, err) == (0, "")
  for words in ("untrained", "validation loss", "nats per character", str(run)):
    assert words in out
  options = "--prompt=Shall I", "--length=40", "--num_samples=2", "--top_k=3"
  status, out, err = finish(start("sample", f"--run={run}", *options))
  assert (status, err) == (0, "")
  first, second = out.split("=== sample 1 ===\n")[1].split("=== sample 2 ===\n")
  assert len(first) == len(second) == len("Shall I") + 40 + 1
  assert first.startswith("Shall I")

  # A damaged checkpoint is an error of one line: the objects that orbax leaves
  # behind must print nothing as the program exits.
  for manifest in run.glob("checkpoints/*/params/manifest.ocdbt"):
    manifest.unlink()
  status, out, err = finish(start("sample", f"--run={run}"))
  assert (status, out, err.count("\n")) == (2, "", 1)
  assert err.startswith(f"error: the checkpoint {run}/checkpoints/")


@pytest.mark.exhaustive
def test_an_interrupt_exits_before_python_shuts_jax_down():
  """A thread of JAX that still compiles would crash at the shutdown.

  So no exit handler runs: the one here would change the status to 3.
  """
  code = """
import atexit, os
from experiments.cli import launch

def main():
  print("shown")
  raise KeyboardInterrupt

atexit.register(os._exit, 3)
launch(main)
"""
  ended = subprocess.run(
    [sys.executable, "-c", code],
    cwd=processes.ROOT,
    env=processes.environment(),
    capture_output=True,
    text=True,
  )
  found = ended.returncode, ended.stdout, ended.stderr
  assert found == (130, "shown\n", "error: interrupted\n")


@pytest.mark.exhaustive
def test_ctrl_c_stops_a_run_and_leaves_a_checkpoint(corpus, tmp_path):
  run = tmp_path / "run"
  flags = f"--corpus={corpus}", f"--run={run}", "--num_epochs=100000"
  process = start("train", *SMALL, *flags)
  deadline = time.monotonic() + 90
  metrics = run / "metrics.jsonl"
  while time.monotonic() < deadline and process.poll() is None:
    # Seven rows: of steps 10 to 50, and of the evaluations after 10 and 30.
    if metrics.exists() and metrics.read_text().count("\n") > 6:
      break
    time.sleep(0.2)
  process.send_signal(signal.SIGINT)
  status, out, err = finish(process)
  assert (status, err) == (130, "")
  assert "SIGINT: stopped after step" in out
  assert "best validation loss" in out
  assert "to resume the training:\n  " in out
  assert f"python -m experiments.train {SMALL[0]}" in out
  assert read_checkpoint(run / "checkpoints").step > 0
  assert (run / "loss.png").exists()


@pytest.mark.exhaustive
def test_a_model_too_large_is_an_error_of_one_line_after_the_heading():
  size = "--embedding_size=2000000000"
  status, out, err = finish(start("train", size))
  assert (status, err.count("\n")) == (2, 1)
  assert err.startswith("error: out of memory: ")
  assert out.startswith("model       ")


@pytest.mark.exhaustive
def test_gradcheck_passes_and_a_planted_error_fails(corpus):
  good = start("gradcheck", f"--corpus={corpus}")
  planted = start("gradcheck", f"--corpus={corpus}", "--plant=rnn.dh")
  status, out, err = finish(planted)
  assert (status, err) == (1, "")
  assert "DISAGREE" in out
  assert "✗" in out
  status, out, err = finish(good)
  assert (status, err) == (0, "")
  assert "✗" not in out
  for cell in ("lstm", "gru", "rnn"):
    assert f"{cell}, unrolled" in out
    assert f"2 layers of {cell}" in out


def test_the_help_of_a_program_without_docstrings_has_its_flags_alone(
  capsys, monkeypatch
):
  monkeypatch.setattr(sys.modules["__main__"], "__doc__", None)  # python -OO
  monkeypatch.setattr(records, "grouped_help", lambda: "flags:")
  with pytest.raises(SystemExit):
    records.HelpFlag().parse(True)
  assert capsys.readouterr().out == "flags:\n"
