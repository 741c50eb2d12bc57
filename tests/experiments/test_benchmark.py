import json
from types import SimpleNamespace

import jax
import pytest

from experiments import benchmark
from experiments.benchmarks import parts, plots
from experiments.benchmarks.tables import Found, case_table, change_table
from tests.patterns import exact
from tests.processes import ROOT

SIZES = {"hidden_size": 5, "seq_len": 4, "batch_size": 3}
MODEL = SIZES | {"num_layers": 2, "vocabulary_size": 7}
RESULTS = ROOT / "experiments/results/benchmark"
KEPT = ROOT / "experiments/results/tinyshakespeare-coupled"


@pytest.fixture(autouse=True)
def standard_ranks():
  """Let the other libraries add a bias [K] to an array [..., K]."""
  with jax.numpy_rank_promotion("allow"):
    yield


def check(rows, names):
  """Check the peers (timed programs) of the first rows, and all times.

  The first of `names` is our program, to which the times are relative.
  """
  assert [row["peer"] for row in rows][: len(names)] == names
  assert rows[0]["ratio_to_ours"] == 1
  for row in rows:
    low, high = row["quartiles_ms"]
    assert 0 < low <= row["median_ms"] <= high
  assert case_table(rows).row_count == len(rows)


def measure(part, sizes=SIZES):
  """Return the rows of each case, and what was skipped in any."""
  found = [*parts.PARTS[part].measure(sizes, 2)]
  skipped = {name: why for each in found for name, why in each.skipped.items()}
  return [each.rows for each in found], skipped


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_models_are_proven_equal_and_timed(dtype):
  (rows,), skipped = measure("model", MODEL | {"dtype": dtype})
  ours = ["lstm_jax", "autodiff", "lstm_jax layer"]  # the last: float32 only
  check(rows, ours if dtype == "float32" else ours[:2])
  assert {"flax linen", "flax nnx"} <= {r["peer"] for r in rows} | set(skipped)
  assert rows[0]["compile_s"] > 0 and rows[0]["bytes"] > 0
  assert rows[-1]["peer"] == "products alone"


@pytest.mark.exhaustive
@pytest.mark.parametrize(
  ("part", "cells", "names"),
  [
    (
      "layer",
      ["lstm", "gru", "rnn"],
      ["lstm_jax", "autodiff", "flax linen", "flax nnx"],
    ),
    (
      "linear",
      ["min_gru", "min_lstm", "lru"],
      ["lstm_jax", "scan of steps, autodiff", "lax.scan, autodiff"],
    ),
    ("resets", [None], ["lstm_jax", "recompute", "autodiff", "flax scan"]),
  ],
)
def test_layers_are_proven_equal_and_timed(part, cells, names):
  cases, _ = measure(part)
  for rows in cases:
    check(rows, names)
  found = [(rows[0].get("cell"), rows[0]["backward"]) for rows in cases]
  assert found == [(cell, mode) for cell in cells for mode in (False, True)]


@pytest.mark.exhaustive
def test_sampling_is_proven_equal_and_timed(monkeypatch):
  monkeypatch.setattr(parts, "SAMPLE_LENGTH", 3)
  case = {"hidden_size": 5, "num_samples": 2}
  monkeypatch.setattr(parts, "SAMPLING", [case])
  (rows,), _ = measure("sampling")
  check(rows, ["lstm_jax", "flax linen"])
  assert rows[0]["tokens_per_second"] > 0


@pytest.mark.exhaustive
def test_models_are_timed_as_one_size_grows(monkeypatch):
  growth = {"growth in steps": ("seq_len", (1, 2))}
  monkeypatch.setattr(parts, "GROWTH", growth)
  cases, _ = measure("growth")
  assert [rows[0]["seq_len"] for rows in cases] == [1, 2]
  for rows in cases:
    assert rows[0]["part"] == "growth in steps"
    check(rows, ["lstm_jax", "flax linen"])


@pytest.mark.exhaustive
def test_the_memory_of_the_compiled_programs_is_measured():
  (rows,), _ = measure("memory", SIZES | {"seq_len": 50})
  needed = {row["peer"]: row["bytes"] for row in rows}
  assert needed["lstm_jax"] > 0 and needed["autodiff"] > 0
  assert case_table(rows).row_count == len(rows)


@pytest.mark.exhaustive
def test_a_run_prints_its_cases_and_is_compared_with_an_earlier_one(
  console, monkeypatch
):
  monkeypatch.setattr(parts, "STEPS", 2)
  saved = []
  record = benchmark.run(["original"], {}, 1, console, saved.append)
  assert saved == [record]
  old = record["rows"]
  check(old, ["lstm_jax", "lstm_jax, 2 a call", "numpy"])
  printed = console.file.getvalue()
  assert all(row["peer"] in printed for row in old)
  assert record["environment"]["versions"]["jax"] == jax.__version__
  new = [row | {"median_ms": 2 * row["median_ms"]} for row in old]
  other = {"part": "new", "peer": "lstm_jax", "median_ms": 1.0}
  table = change_table(old, [*new, other])
  # The last column has the ratio of the new times to the old ones.
  assert list(table.columns[3].cells) == ["2.00"] * len(old)
  assert "original: lstm_jax, 2 a call" in table.columns[0].cells
  with pytest.raises(ValueError, match="no case is in both runs"):
    change_table(old, [other])


@pytest.fixture
def given(console, monkeypatch):
  """Return a function that sets flags by name, the others to defaults."""

  def set_flags(**values):
    defaults = {"PART": ["original"], "OUT": "", "COMPARE": "", "ROUNDS": 1}
    for name, value in (defaults | values).items():
      flag = SimpleNamespace(value=value)
      monkeypatch.setattr(benchmark, name, flag, raising=False)

  monkeypatch.setattr(benchmark, "SIZES", [], raising=False)
  monkeypatch.setattr(benchmark, "make_console", lambda: console)
  return set_flags


def record_of(rows, **environment):
  return {"environment": environment, "rows": rows}


def test_flags_are_refused_before_measuring(given, tmp_path, monkeypatch):
  monkeypatch.setattr(benchmark, "run", None)  # a call would fail
  old, row = tmp_path / "old.json", {"part": "original", "median_ms": 1.0}
  old.write_text(json.dumps(record_of([row | {"peer": "numpy"}])))
  (tmp_path / "b.png").write_bytes(b"not drawn by this program")
  for flag in ("out", "compare"):
    given(**{flag.upper(): str(tmp_path)})
    message = f"^--{flag} must be a file, got the directory {exact(tmp_path)}$"
    with pytest.raises(ValueError, match=message):
      benchmark.main()
  for flags, message in (
    ({"OUT": str(tmp_path / "a.png")}, "^--out must not end in .png, as the f"),
    ({"OUT": str(tmp_path / "b.json")}, "^.*/b.png exists, and .*/b.json does"),
    ({"OUT": f"{old}/new.json"}, f"^{old} is not a directory$"),
    ({"OUT": str(KEPT / "a.json")}, "^--out must be outside the run directory"),
    ({"PART": ["memory"]}, "^--compare needs a part with times, got memory$"),
    ({"PART": ["gpu"]}, "^.*json has times of --part=original, not of gpu$"),
  ):
    given(COMPARE=str(old), **flags)
    with pytest.raises(ValueError, match=message):
      benchmark.main()


def test_a_part_is_measured_once_and_another_device_count_is_printed(
  given, console, tmp_path, monkeypatch
):
  row = {"part": "original", "peer": "numpy", "median_ms": 1.0}
  measured = []

  def original_part(sizes, rounds):
    measured.append(rounds)
    yield Found([row], {})

  monkeypatch.setitem(parts.PARTS, "original", parts.Part(original_part, {}))
  untimed = parts.Part(lambda *_: iter(()), {}, timed=False)
  monkeypatch.setitem(parts.PARTS, "memory", untimed)
  old = tmp_path / "old.json"
  here = jax.device_count()
  for environment, said in (
    ({"num_devices": here}, None),
    ({"num_devices": 77}, f"devices of JAX: 77 there and {here} here"),
    ({}, f"devices of JAX: an unknown number there and {here} here"),
  ):
    before = row | {"median_ms": 4.0}
    old.write_text(json.dumps(record_of([before], **environment)))
    given(PART=["original", "memory", "original"], COMPARE=str(old))
    console.file.truncate(0)
    assert benchmark.main() == 0
    lines = console.file.getvalue().splitlines()
    found = [line for line in lines if line.startswith("devices of JAX")]
    assert found == ([said] if said else [])
    assert ["4", "1", "0.25"] in [line.split()[-3:] for line in lines]
  # Each call measures the part once, though --part names it twice.
  assert measured == [1, 1, 1]


def test_results_are_saved_after_each_case_and_a_reason_printed_once(
  given, console, tmp_path, monkeypatch
):
  rows = [{"part": "original", "peer": "numpy", "median_ms": 1.0}]
  out, skipped = tmp_path / "new" / "out.json", {"torch": "not installed"}

  def original_part(sizes, rounds):
    out.with_suffix(".png").write_bytes(b"the figure of earlier results")
    yield Found(rows, skipped)
    assert json.loads(out.read_text())["rows"] == rows
    assert not out.with_suffix(".png").exists()
    yield Found(rows, skipped)

  monkeypatch.setitem(parts.PARTS, "original", parts.Part(original_part, {}))
  given(OUT=str(out))
  assert benchmark.main() == 0
  assert json.loads(out.read_text())["rows"] == 2 * rows
  printed = console.file.getvalue()
  assert printed.count("skipped: torch: not installed") == 1
  assert printed.endswith(f"saved in {out}\n")


def test_a_failure_is_printed_and_sets_the_exit_status(
  given, console, tmp_path, monkeypatch
):
  failures, out = ["a kernel differs"], tmp_path / "gpu.json"

  def gpu_part(sizes, rounds):
    yield Found([], {}, failures)

  monkeypatch.setitem(parts.PARTS, "gpu", parts.Part(gpu_part, {}))
  monkeypatch.setattr(parts.gpu, "check_device", lambda: None)
  given(PART=["gpu"], OUT=str(out))
  assert benchmark.main() == benchmark.CHECK_FAILED
  assert json.loads(out.read_text())["failures"] == failures
  printed = console.file.getvalue()
  assert "FAILED a kernel differs\n1 case failed\n" in printed
  failures.clear()
  assert benchmark.main() == 0


# Of 4 cores, 4 devices share the default batch of 32, and 2 one of 6.
@pytest.mark.parametrize(("batch_size", "devices"), [(None, 4), (6, 2)])
def test_the_devices_of_a_model_divide_its_batch(
  batch_size, devices, given, monkeypatch
):
  def model_part(sizes, rounds):
    assert sizes == ({"batch_size": batch_size} if batch_size else {})
    row = {"part": "model", "peer": "lstm_jax", "median_ms": 1.0}
    yield Found([row], {})

  counts, part = [], parts.PARTS["model"]._replace(measure=model_part)
  monkeypatch.setitem(parts.PARTS, "model", part)
  monkeypatch.setattr(benchmark, "num_cores", lambda: 4)
  monkeypatch.setattr(benchmark, "start_cpu_devices", counts.append)
  given(PART=["model"])
  flag = SimpleNamespace(name="batch_size", value=batch_size)
  monkeypatch.setattr(benchmark, "SIZES", [flag])
  assert benchmark.main() == 0 and counts == [devices]


def test_a_record_that_cannot_be_compared_is_refused_before_measuring(
  given, tmp_path, monkeypatch
):
  old = tmp_path / "old.json"
  old.write_text('{"environment": {}}')
  given(PART=["model"], COMPARE=str(old))
  monkeypatch.setattr(benchmark, "run", None)  # a call would fail
  with pytest.raises(ValueError, match=r"old.json is damaged: it has no rows$"):
    benchmark.main()
  row = {"part": "model", "peer": "lstm_jax", "median_ms": 1}
  for environment, rows, message in (
    ({}, [{"median_ms": 1}], "old.json is damaged: it lacks 'peer'$"),
    ({}, [1], "old.json is damaged: "),
    ({}, [row | {"median_ms": "1"}], "damaged: median_ms .* numbers, got '1'$"),
    ("CPU", [row], "old.json is damaged: .*'str' .* no attribute 'get'"),
    ({}, [], "old.json has no row with a time"),
  ):
    old.write_text(json.dumps({"environment": environment, "rows": rows}))
    with pytest.raises(ValueError, match=message):
      benchmark.main()


def test_a_size_that_no_part_has_is_refused(console):
  message = "--num_layers needs --part=model, got layer, sampling"
  with pytest.raises(ValueError, match=message):
    benchmark.run(["layer", "sampling"], {"num_layers": 2}, 1, console)


@pytest.mark.exhaustive
def test_the_kept_results_are_drawn(tmp_path, console):
  record = json.loads((RESULTS / "models.json").read_text("utf-8"))
  path = tmp_path / "models.json"
  benchmark.draw(record, path, console)
  assert path.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
  assert f"{path} and " in console.file.getvalue()
  assert not plots.draw([{"part": "memory"}], tmp_path / "none.png")
