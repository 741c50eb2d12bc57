import json
from types import SimpleNamespace

import jax
import pytest

from experiments import benchmark
from experiments.benchmarks import linear, parts, plots
from experiments.benchmarks.tables import case_table, change_table
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


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_models_are_proven_equal_and_timed(dtype):
  ((rows, skipped),) = parts.model_part([MODEL | {"dtype": dtype}], rounds=2)
  ours = ["lstm_jax", "autodiff", "lstm_jax layer"]  # the last: float32 only
  check(rows, ours if dtype == "float32" else ours[:2])
  assert {"flax linen", "flax nnx"} <= {r["peer"] for r in rows} | set(skipped)
  assert rows[0]["compile_s"] > 0 and rows[0]["bytes"] > 0
  assert rows[-1]["peer"] == "products alone"


@pytest.mark.exhaustive
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_layers_are_proven_equal_and_timed(cell):
  outputs, gradients = parts.layer_part([SIZES], rounds=2, cells=(cell,))
  for rows, _ in (outputs, gradients):
    check(rows, ["lstm_jax", "autodiff", "flax linen", "flax nnx"])
  assert [outputs[0][0]["backward"], gradients[0][0]["backward"]] == [0, 1]


@pytest.mark.exhaustive
def test_a_policy_with_resets_is_proven_equal_and_timed():
  outputs, gradients = parts.resets_part([SIZES], rounds=2)
  for rows, _ in (outputs, gradients):
    check(rows, ["lstm_jax", "recompute", "autodiff", "flax scan"])


@pytest.mark.exhaustive
@pytest.mark.parametrize("cell", ["min_gru", "min_lstm", "lru"])
def test_linear_recurrences_are_proven_equal_and_timed(cell):
  assert cell in linear.COEFFICIENTS
  outputs, gradients = parts.linear_part([SIZES], rounds=2, cells=[cell])
  for rows, _ in (outputs, gradients):
    check(rows, ["lstm_jax", "scan of steps, autodiff", "lax.scan, autodiff"])


@pytest.mark.exhaustive
def test_sampling_is_proven_equal_and_timed():
  cases = [{"hidden_size": 5, "num_samples": 2}]
  ((rows, _),) = parts.sampling_part(cases, rounds=2, length=3)
  check(rows, ["lstm_jax", "flax linen"])
  assert rows[0]["tokens_per_second"] > 0


@pytest.mark.exhaustive
def test_models_are_timed_as_one_size_grows():
  growth = {"growth in steps": ("seq_len", (1, 2))}
  cases = [rows for rows, _ in parts.growth_part(growth, rounds=1)]
  assert [rows[0]["seq_len"] for rows in cases] == [1, 2]
  for rows in cases:
    assert rows[0]["part"] == "growth in steps"
    check(rows, ["lstm_jax", "flax linen"])


@pytest.mark.exhaustive
def test_the_memory_of_the_compiled_programs_is_measured():
  ((rows, _),) = parts.memory_part(SIZES | {"seq_len": 50})
  needed = {row["peer"]: row["bytes"] for row in rows}
  assert needed["lstm_jax"] > 0 and needed["autodiff"] > 0
  assert case_table(rows).row_count == len(rows)


@pytest.mark.exhaustive
def test_a_run_prints_its_cases_and_is_compared_with_an_earlier_one(
  console, monkeypatch
):
  def original_part(sizes, rounds):
    yield from parts.original_part(rounds, num_steps=2)

  monkeypatch.setitem(parts.PARTS, "original", parts.Part(original_part, {}))
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
    ({"PART": ["original", "gpu"]}, "^--part=gpu runs alone: its processes"),
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
    yield [row], {}

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
    yield rows, skipped
    assert json.loads(out.read_text())["rows"] == rows
    assert not out.with_suffix(".png").exists()
    yield rows, skipped

  monkeypatch.setitem(parts.PARTS, "original", parts.Part(original_part, {}))
  given(OUT=str(out))
  assert benchmark.main() == 0
  assert json.loads(out.read_text())["rows"] == 2 * rows
  printed = console.file.getvalue()
  assert printed.count("skipped: torch: not installed") == 1
  assert printed.endswith(f"saved in {out}\n")


def test_a_failed_check_on_a_gpu_sets_the_exit_status(
  given, tmp_path, monkeypatch
):
  record = record_of([]) | {"failures": ["a kernel differs"]}
  monkeypatch.setattr(benchmark.gpu, "run", lambda *given: record)
  given(PART=["gpu"], OUT=str(tmp_path / "gpu.json"))
  assert benchmark.main() == benchmark.CHECK_FAILED
  record["failures"] = []
  assert benchmark.main() == 0


# Of 4 cores, 4 devices share the default batch of 32, and 2 one of 6.
@pytest.mark.parametrize(("batch_size", "devices"), [(None, 4), (6, 2)])
def test_the_devices_of_a_model_divide_its_batch(
  batch_size, devices, given, monkeypatch
):
  def model_part(sizes, rounds):
    assert sizes == ({"batch_size": batch_size} if batch_size else {})
    yield [{"part": "model", "peer": "lstm_jax", "median_ms": 1.0}], {}

  counts, part = [], parts.PARTS["model"]._replace(measure=model_part)
  monkeypatch.setitem(parts.PARTS, "model", part)
  monkeypatch.setattr(benchmark, "num_cores", lambda: 4)
  monkeypatch.setattr(benchmark, "start_cpu_devices", counts.append)
  given(PART=["model"])
  flag = SimpleNamespace(name="batch_size", value=batch_size)
  monkeypatch.setattr(benchmark, "SIZES", [flag])
  assert benchmark.main() == 0 and counts == [devices]


def test_a_record_that_cannot_be_compared_is_refused_before_measuring(
  tmp_path, monkeypatch
):
  old = tmp_path / "old.json"
  old.write_text('{"environment": {}}')
  flag = SimpleNamespace(value=str(old))
  monkeypatch.setattr(benchmark, "COMPARE", flag, raising=False)
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


def test_kernels_are_compared_by_the_time_of_a_time_step():
  old = [
    {"part": "gpu", "cell": "gru", "peer": "kernel", "us_per_step": 2.0},
    {"part": "gpu", "cell": "gru", "peer": "scan"},  # was not timed
  ]
  table = change_table(old, [row | {"us_per_step": 3.0} for row in old])
  assert list(table.columns[3].cells) == ["1.50"]


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
