"""The columns of a case, and the titles by which two runs are compared."""

from experiments.benchmarks.tables import RESULTS, case_table, change_table

CASE = {"part": "gpu layer", "cell": "gru", "backward": True, "seq_len": 3}


def cells(*rows):
  """Return (heading, *entries) of the columns after the peers' in a table."""
  table = case_table([CASE | {"peer": "other"} | row for row in rows])
  assert table.title == "gpu layer, gru, backward True, seq_len 3"
  return [(column.header, *column.cells) for column in table.columns[1:]]


def test_a_kernel_has_its_time_its_floor_and_its_memory():
  row = {
    "us_per_step": 6.0,
    "quartiles_us": [5.5, 7.0],
    "floor_us": 2.4,
    "temporary_bytes": 0,
    "peak_bytes": 500 * 2**20,
  }
  other = {"us_per_step": 2.4, "quartiles_us": [2.0, 3.0]}
  assert cells(row, other) == [
    ("µs/step", "6", "2.4"),
    ("quartiles", "5.5 – 7", "2 – 3"),
    ("× floor", "2.5", ""),
    ("temp MiB", "0", ""),
    ("peak MiB", "500", ""),
  ]


def test_a_peer_has_its_ratio_and_the_share_of_the_matrix_products():
  row = {"median_ms": 4.0, "quartiles_ms": [3.0, 5.0], "ratio_to_ours": 1.25}
  products = {"peer": "products alone", "median_ms": 3.0}
  products["bytes"] = 0
  assert cells(row | {"bytes": 3 * 2**19, "compile_s": 0.25}, products) == [
    ("ms", "4", "3"),
    ("quartiles", "3 – 5", ""),
    ("ratio", "1.25", ""),
    ("products", "75%", "100%"),
    ("compile s", "0.2", ""),
    ("MiB", "1.5", "0.0"),
  ]


def test_a_time_of_1000_or_more_has_no_exponent():
  row = {"median_ms": 0.1234, "quartiles_ms": [999.4, 999.6]}
  assert cells(row, {"median_ms": 1234.5}) == [
    ("ms", "0.123", "1,234"),
    ("quartiles", "999 – 1,000", ""),
  ]
  old = CASE | {"peer": "kernel", "us_per_step": 6.0}
  _, before, after, _ = change_table(
    [old], [old | {"us_per_step": 15_900}]
  ).columns
  assert [*before.cells, *after.cells] == ["6", "15,900"]


def test_launches_say_whether_a_graph_holds_them():
  row = {
    "forward_launches": 3.25,
    "forward_in_graph": True,
    "backward_launches": 4.0,
    "backward_in_graph": False,
  }
  assert cells(row) == [
    ("forward launches", "3.25, in a graph"),
    ("backward launches", "4"),
  ]


def test_a_result_is_no_part_of_the_name_of_a_case():
  row = CASE | {"peer": "kernel"}
  old = row | {"us_per_step": 4.0}
  new = row | dict.fromkeys(RESULTS, 0) | {"us_per_step": 6.0}
  names, *_, ratios = change_table([old], [new]).columns
  assert [*names.cells] == ["gpu layer, gru, backward True, seq_len 3: kernel"]
  assert [*ratios.cells] == ["1.50"]
