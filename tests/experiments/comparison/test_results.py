"""The directory of a program's results, and the errors of damaged records."""

import pytest

from experiments.comparison.results import (
  naming_damaged,
  open_results,
  print_held,
  read_record,
)
from experiments.trainer.run_dir import LOCK
from tests.patterns import exact

NAMES = "record.json", "figure.png", "samples.txt"


def test_results_are_replaced_only_with_overwrite(tmp_path, console):
  directory = tmp_path / "new" / "out"
  with open_results(directory, NAMES, overwrite=False):
    (directory / "record.json").write_text("{}")
  message = f"{exact(directory)} holds results already"
  with (
    pytest.raises(ValueError, match=message),
    open_results(directory, NAMES, overwrite=False),
  ):
    pass
  (directory / "samples.txt").write_text("")
  with open_results(directory, NAMES, overwrite=True):
    pass
  found = {path.name for path in directory.iterdir()}
  assert found == {"record.json", "samples.txt"}
  print_held(directory, NAMES, console)
  shown = "".join(console.file.getvalue().split())
  assert shown == f"{directory}holdsrecord.json,samples.txt"


@pytest.mark.parametrize("is_new", [True, False])
def test_a_program_that_is_refused_leaves_no_new_directory(is_new, tmp_path):
  directory = tmp_path / "runs" / "out"
  if not is_new:
    directory.mkdir(parents=True)
  with (
    pytest.raises(ValueError, match="too short"),
    open_results(directory, NAMES, overwrite=False),
  ):
    raise ValueError("the corpus is too short")
  assert directory.exists() != is_new
  assert directory.parent.exists() != is_new


def test_a_file_in_place_of_the_directory_is_kept(tmp_path):
  path = tmp_path / "out"
  path.write_text("kept")
  with (
    pytest.raises(ValueError, match=f"^{exact(path)} is not a directory$"),
    open_results(path, NAMES, overwrite=True),
  ):
    pass
  assert path.read_text() == "kept"


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
  "names",
  [
    *(["config.json"], ["samples.txt"], ["figure.png"]),
    ["config.json", "record.json"],
  ],
)
def test_a_run_directory_or_another_file_is_not_written_over(
  names, overwrite, tmp_path
):
  for name in names:
    (tmp_path / name).write_text("kept")
  message = "holds results" if names[1:] and not overwrite else names[0]
  with (
    pytest.raises(ValueError, match=f"{message}.* --out"),
    open_results(tmp_path, NAMES, overwrite),
  ):
    pass
  assert (tmp_path / names[0]).read_text() == "kept"


def test_one_process_writes_into_a_directory(tmp_path):
  with (
    open_results(tmp_path, NAMES, overwrite=False),
    pytest.raises(ValueError, match=f"{exact(tmp_path)} is in use by process"),
    open_results(tmp_path, NAMES, overwrite=True),
  ):
    pass
  assert not (tmp_path / LOCK).exists()


@pytest.mark.parametrize("text", ["{", "[1]", '{"rows": 1}'])
def test_a_damaged_record_is_an_error_that_names_it(text, tmp_path):
  path = tmp_path / "record.json"
  path.write_text(text)
  with pytest.raises(ValueError, match=f"{exact(path)} is damaged"):
    read_record(path, "there is no record", ["rows", "config"])


@pytest.mark.parametrize(
  "check", [lambda: {}["config"], lambda: [][0], lambda: None + 1]
)
def test_the_error_of_a_failed_check_names_the_damaged_record(check, tmp_path):
  with (
    pytest.raises(ValueError, match=r"record\.json is damaged: "),
    naming_damaged(tmp_path / "record.json"),
  ):
    check()
