"""The programs as a user starts them: exit statuses, output, interruption."""

import signal
import time

import pytest

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

  # A damaged checkpoint is one line, whatever orbax leaves behind.
  for manifest in run.glob("checkpoints/*/params/manifest.ocdbt"):
    manifest.unlink()
  status, out, err = finish(start("sample", f"--run={run}"))
  assert (status, out, err.count("\n")) == (2, "", 1)
  assert err.startswith("error: the checkpoint in ")


@pytest.mark.exhaustive
def test_ctrl_c_stops_and_keeps_the_best(corpus, tmp_path):
  run = tmp_path / "run"
  flags = f"--corpus={corpus}", f"--run={run}", "--num_epochs=100000"
  process = start("train", *SMALL, *flags)
  deadline = time.monotonic() + 90
  metrics = run / "metrics.jsonl"
  while time.monotonic() < deadline and process.poll() is None:
    if metrics.exists() and metrics.read_text().count("\n") > 6:
      break
    time.sleep(0.2)
  process.send_signal(signal.SIGINT)
  status, out, err = finish(process)
  assert (status, err) == (130, "")
  assert "SIGINT: stopped after step" in out
  assert "best validation loss" in out
  assert (
    f"to resume the training:\n  python -m experiments.train {SMALL[0]}" in out
  )
  assert read_checkpoint(run / "checkpoints").step > 0
  assert (run / "loss.png").exists()


@pytest.mark.exhaustive
def test_errors_are_a_line_and_a_status(corpus, tmp_path):
  cases = {
    ("train", "verse"): (2, "error: unknown argument 'verse'"),
    ("train", "--corpus=nowhere.txt"): (2, "error: corpus nowhere.txt cannot"),
    ("train", "--embedding_size=2000000000"): (2, "error: out of memory: "),
    ("train", "--hidden_size=0"): (1, "0 is not an integer in the range [1, "),
    ("train", "--learning_rate=nan"): (1, "must be a finite number"),
    ("train", "--hiden_size=3"): (1, "Unknown command line flag 'hiden_size'"),
    ("train", "--tokenizer=word", "--min_count=99999"): (2, "leaves no word"),
    ("sample", f"--run={tmp_path}"): (2, "there is no run in "),
    ("explore",): (1, "flag --run=None: Flag --run must have a value"),
    ("explore", f"--run={tmp_path}"): (2, "there is no run in "),
    ("explore", f"--run={tmp_path}", "--length=1"): (
      1,
      "1 is not an integer in the range [2, ",
    ),
    ("report",): (2, "error: expected run directories"),
    ("report", f"{tmp_path}", "--output=here"): (2, "there is no run in "),
    ("report", "a", "--outptu=b"): (1, "Unknown command line flag 'outptu'"),
    ("compare_cells", "--replot", f"--out={tmp_path}"): (
      2,
      "error: there is no comparison in ",
    ),
    ("compare_cells", "--corpus=nowhere.txt"): (2, "nowhere.txt cannot be"),
    ("compare_cells", "--delay=0"): (1, "0 is not a positive integer"),
    ("sample",): (1, "flag --run=None: Flag --run must have a value"),
    ("gradcheck", "--plant=lstm.dq"): (2, "no backward has a term 'lstm.dq'"),
  }
  waiting, running = list(cases), {}
  for case, (status, message) in cases.items():
    while waiting and len(running) < 3:  # more would wait for each other
      another = waiting.pop(0)
      running[another] = start(*another)
    exited, out, err = finish(running.pop(case))
    assert exited == status, (case, err)
    assert message in err
    assert "Traceback" not in err
    # Memory runs out after the heading, which says how large the model is.
    heading = "model       " if "out of memory" in message else ""
    assert out.startswith(heading) and bool(out) == bool(heading)
    if status == 2:
      assert err.count("\n") == 1


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
