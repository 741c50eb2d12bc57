"""Programs as a shell starts them: their help, errors, status and output."""

import re
import subprocess
import sys

import pytest

from tests.experiments.starting import PROGRAMS, start_all
from tests.processes import ROOT

pytestmark = pytest.mark.programs


def test_the_list_has_every_program():
  files = {path.stem for path in (ROOT / "experiments").glob("*.py")}
  assert {*PROGRAMS} == files - {"__init__", "cli"}


@pytest.mark.exhaustive
def test_every_program_prints_its_own_flags_in_80_columns(tmp_path):
  # For its help, no program imports matplotlib, or PyTorch, which takes 5 s.
  for package in ("torch", "matplotlib"):
    (tmp_path / f"{package}.py").write_text(f"raise SystemExit('{package}')")
  results = start_all(
    [(program, "--help") for program in PROGRAMS],
    {"PYTHONPATH": str(tmp_path)},
  )
  shown = dict(zip(PROGRAMS, results, strict=True))
  for program, (status, out, err) in shown.items():
    assert (status, err) == (0, ""), program
    assert f"python -m experiments.{program}" in out
    assert max(map(len, out.splitlines())) <= 80, program
  for program in ("train", "sweep", "ablate", "collectives"):
    assert "\nmodel flags:\n  --cell: Recurrent cell" in shown[program][1]
    assert "\noptimizer flags:\n" in shown[program][1]
  for program, flag in (
    ("train", "dry_run"),
    ("train", "process_id"),
    ("sweep", "num_seeds"),
    ("ablate", "change"),
    ("compare_cells", "replot"),
    ("policy", "burn_in"),
    ("evaluate", "protocol"),
    ("reproduce", "seeds"),
    ("board", "out"),
    ("sample", "top_k"),
    ("export", "format"),
    ("explore", "length"),
    ("report", "out"),
    ("gradcheck", "plant"),
    ("benchmark", "rounds"),
  ):
    assert re.search(rf"\n  --(\[no\])?{flag}: ", shown[program][1]), flag


def test_an_error_is_a_line_and_a_status(tmp_path):
  full = tmp_path / "full"
  full.mkdir()
  for record in ("comparison.json", "policy.json"):
    (full / record).write_text("{}")
  marked = tmp_path / "marked.flags"
  marked.write_text("\ufeff--seed=1")
  cases = {
    ("train", "verse"): "unknown argument 'verse': flags begin with --",
    ("sample", "runs/a"): "unknown argument 'runs/a': did you mean --run=runs",
    ("evaluate", "runs/a"): "argument 'runs/a': did you mean --run=runs/a?",
    ("explore", "my run"): "'my run': did you mean --run='my run'?",
    ("sample",): "--run must be given",
    ("export", "--run=a"): "--out must be given",
    ("evaluate",): "--run must be given",
    ("explore",): "--run must be given",
    ("ablate",): "--run must be the directory of the runs, got none",
    ("report",): "expected run directories",
    ("reproduce",): "must be one of tinyshakespeare-",
    ("reproduce", "gpt"): "tinyshakespeare-coupled-small, poems, got 'gpt'",
    ("reproduce", "poems", "--seeds=-1"): "-1 is not in [0, 2147483647]",
    ("board", "--out=nowhere"): "nowhere/loss-by-parameters.png cannot be",
    ("train", "--corpus=nowhere.txt"): "corpus nowhere.txt cannot be read",
    ("gradcheck", "--corpus="): "corpus must be a file or a name, got ''",
    ("sweep", "--teacher="): "teacher must have no empty value, got ",
    ("evaluate", "--run=", "--run=a"): "run must have no empty value, got ('",
    ("report", "", "a"): "RUN must be a run directory, got ''",
    ("train", "--run=README.md"): "README.md is not a directory",
    (
      "export",
      "--run=a",
      "--out=none/b",
    ): "b cannot be written: no such",
    (
      "train",
      "--hidden_size=0",
    ): "--hidden_size=0: 0 is not in [1, 2147483647]",
    ("train", "--learning_rate=nan"): "must be a finite number",
    ("train", "--ar_coef=nan", "--tar_coef=nan"): "number; flag --tar_coef=nan",
    **{
      ("sample", "--run=a", f"--{name}=nan"): f"flag --{name}=nan: must be a "
      for name in ("temperature", "top_p", "min_p")
    },
    **{
      ("sample", "--run=a", f"--{name}={2**31}"): f"flag --{name}={2**31}: "
      for name in ("length", "num_samples", "best_of", "beam")
    },
    ("train", "--compute_dtype=int8"): "should be one of <float32|bfloat16>",
    ("train", "--implementation=mosaic_gpu"): "='mosaic_gpu' needs ",
    ("train", "--implementation=mosaic_gpu", "--dry_run"): "_gpu' needs ",
    ("train", "--dry_run", "--profile=2"): "traces a run, and --dry_run makes",
    ("sweep", "--implementation=mosaic_gpu"): "not support --implementation",
    ("train", "--implementation=cuda"): "should be one of <xla|mosaic_gpu>",
    ("train", "--hiden_size=3"): "Unknown command line flag 'hiden_size'",
    ("train", "--noresume=true"): "--noresume=true does not take an argument",
    ("train", f"--flagfile={marked}"): "begins with a byte order mark",
    ("train", "--flagfile=nowhere"): "Unable to open flagfile",
    ("train", "--tokenizer=word", "--min_count=99999"): "leaves no word",
    ("sample", f"--run={tmp_path}"): "there is no run in ",
    ("explore", "--run=a", "--length=1"): "1 is not in [2, 2147483647]",
    ("report", f"{tmp_path}", "--out=here"): "there is no run in ",
    ("report", "a", "--outptu=b"): "Unknown command line flag 'outptu'",
    ("compare_cells", "--out="): "--out must be given",
    ("policy", "--out="): "--out must be given",
    ("compare_cells", "--replot", f"--out={tmp_path}"): "there is no compari",
    ("compare_cells", "--corpus=nowhere.txt"): "nowhere.txt cannot be",
    ("compare_cells", f"--out={full}"): "holds results already: --overwrite ",
    ("compare_cells", "--delay=0"): "0 is not in [1, 2147483647]",
    ("policy", "--replot", f"--out={tmp_path}"): "there are no policies in ",
    ("policy", f"--out={full}"): "full holds results already: --overwrite rep",
    ("policy", "--num_envs=6"): "num_envs must be a multiple of num_miniba",
    (
      "policy",
      "--network=gpu",
    ): "with a cell (docs/own-cell.md), got 'gpu': there is no module",
    (
      "policy",
      "--network=json",
    ): "got 'json': it has no function init, initial_st",
    ("benchmark", "--compare=nowhere"): "nowhere: no such file or directory",
    ("gradcheck", "--plant=lstm.dq"): "no backward pass has a term 'lstm.dq'",
  }
  results = start_all([*cases])
  for (case, message), result in zip(cases.items(), results, strict=True):
    status, out, err = result
    assert (status, err.count("\n")) == (2, 1), (case, result)
    # Only a run whose directory cannot be opened has output: its heading, which
    # is printed before.
    heading = "is not a directory" in message
    assert bool(out) == heading, (case, result)
    assert err.startswith("error: ") and message in err, (case, err)


@pytest.mark.exhaustive
def test_a_platform_without_a_device_is_an_error_of_one_line():
  (result,) = start_all([("train", "--dry_run")], {"JAX_PLATFORMS": "tpu"})
  status, out, err = result
  assert (status, out) == (2, "") and err.count("\n") == 1
  assert err.startswith("error: JAX_PLATFORMS=tpu has no device here: ")


@pytest.mark.exhaustive
def test_errors_of_other_kinds_are_a_line_and_their_status():
  """A lack of host memory is not reported as an error of a device."""
  code = """
import os, jax
from experiments.cli import launch
from experiments.trainer.loop import Diverged

def fail():
  raise error

for error in (
  MemoryError(),
  MemoryError("no room"),
  OverflowError("too large"),
  jax.errors.JaxRuntimeError("INTERNAL: lost"),
  Diverged("the loss is nan"),
):
  if not os.fork():
    launch(fail)
  print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""
  # Python 3.12 and later warn of a fork in a process with threads, which NumPy
  # may have started.
  process = subprocess.run(
    [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code],
    cwd=ROOT,
    text=True,
    capture_output=True,
  )
  assert process.stdout.split() == ["2", "2", "2", "2", "3"]
  assert process.stderr.splitlines() == [
    "error: out of memory",
    "error: no room",
    "error: too large",
    "error: device error: INTERNAL: lost",
    "error: the loss is nan",
  ]


@pytest.mark.exhaustive
def test_a_required_flag_is_required_beside_positional_arguments():
  code = """
from absl import flags
from experiments.cli import launch
flags.DEFINE_string("run", "", "Run directory.")
launch(lambda arguments: 0, takes_arguments=True, required=("run",))
"""
  process = subprocess.run(
    [sys.executable, "-c", code, "a"], cwd=ROOT, text=True, capture_output=True
  )
  missing = "error: --run must be given\n"
  assert (process.returncode, process.stderr) == (2, missing)


@pytest.mark.exhaustive
def test_help_on_a_full_disk_is_an_error_of_one_line():
  code = "from experiments.cli import launch; launch(lambda: 0)"
  command = [sys.executable, "-c", code, "--help"]
  with open("/dev/full", "w") as full:
    process = subprocess.run(
      command, cwd=ROOT, text=True, stdout=full, stderr=subprocess.PIPE
    )
  message = "error: no space left on device\n"
  assert (process.returncode, process.stderr) == (2, message)


@pytest.mark.exhaustive
def test_a_closed_pipe_ends_quietly(tmp_path):
  corpus, run = tmp_path / "verse.txt", tmp_path / "run"
  corpus.write_text("Shall I compare thee to a summer's day?\n" * 20)
  train = ["train", f"--corpus={corpus}", "--hidden_size=12", "--seq_len=8"]
  train += ["--batch_size=3", "--num_epochs=1", f"--run={run}"]
  # "pipe": nobody reads the output.
  cases = [
    ("pipe", "train", "--help"),
    ("pipe", *train),
    train,
    ("pipe", "sample", f"--run={run}"),
    ("sample", f"--run={run}", "--temperature=0", "--top_k=3", "--length=5"),
  ]
  *results, (status, out, err) = start_all(cases)
  assert (status, len(out)) == (0, 5 + 1)
  greedy = "--top_k=3 has no effect: --temperature=0 is greedy"
  assert err == f"warning: {greedy}\n"
  statuses = [status for status, _, _ in results]
  assert statuses == [141, 141, 0, 141]  # 141: 128 + SIGPIPE
  assert "".join(err for _, _, err in results) == ""
  assert (run / "result.json").exists()
