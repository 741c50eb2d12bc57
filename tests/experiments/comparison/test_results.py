"""The directory of a program's results, and the errors of damaged records."""

import pytest

from experiments.comparison.results import (
  check_length,
  naming_damaged,
  open_results,
  print_held,
  read_record,
)
from experiments.trainer.files import ensure_directory
from experiments.trainer.run_dir import LOCK
from tests.patterns import exact

NAMES = "record.json", "figure.png", "samples.txt"


def test_results_are_replaced_only_with_overwrite(tmp_path):
  directory = tmp_path / "new" / "out"
  with open_results(directory, NAMES, overwrite=False):
    (directory / "record.json").write_text("{}")
  with (
    pytest.raises(
      ValueError, match=f"{exact(directory)} holds results already"
    ),
    open_results(directory, NAMES, overwrite=False),
  ):
    pass
  with open_results(directory, NAMES, overwrite=True):
    pass
  assert [path.name for path in directory.iterdir()] == ["record.json"]


def test_what_a_kill_has_left_half_written_is_removed(tmp_path):
  for name in ("record.json", "samples.txt.0a1b2c3d.part", "mine.part"):
    (tmp_path / name).write_text("{}")
  with open_results(tmp_path, NAMES, overwrite=True):
    pass
  found = {path.name for path in tmp_path.iterdir()}
  assert found == {"record.json", "mine.part"}


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


def test_a_parent_that_is_a_file_is_named(tmp_path):
  path = tmp_path / "out"
  path.touch()
  for wrong in (path, path / "a" / "b"):
    with pytest.raises(ValueError, match=f"^{exact(path)} is not a directory"):
      ensure_directory(wrong)


@pytest.mark.parametrize("name", ["config.json", "samples.txt", "figure.png"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_run_directory_or_another_file_is_not_written_over(
  name, overwrite, tmp_path
):
  (tmp_path / name).write_text("kept")
  with (
    pytest.raises(ValueError, match=f"holds {name} but no record.json: choose"),
    open_results(tmp_path, NAMES, overwrite),
  ):
    pass
  assert (tmp_path / name).read_text() == "kept"


def test_a_record_beside_a_run_is_not_replaced(tmp_path):
  for name in ("record.json", "config.json"):
    (tmp_path / name).write_text("kept")
  with (
    pytest.raises(ValueError, match=r"holds config.json, of a run: choose ano"),
    open_results(tmp_path, NAMES, overwrite=True),
  ):
    pass


def test_the_files_that_a_directory_holds_are_printed(tmp_path, console):
  for name in ("samples.txt", "record.json"):
    (tmp_path / name).write_text("")
  print_held(tmp_path, NAMES, console)
  lines = console.file.getvalue().splitlines()
  assert lines == ["", f"{tmp_path} holds record.json, samples.txt"]


def test_one_process_writes_into_a_directory(tmp_path):
  with (
    open_results(tmp_path, NAMES, overwrite=False),
    pytest.raises(ValueError, match=f"{exact(tmp_path)} is in use by process"),
    open_results(tmp_path, NAMES, overwrite=True),
  ):
    pass
  assert not (tmp_path / LOCK).exists()


@pytest.mark.parametrize("text", ["{", "[1]", '{"rows": 1}', "[" * 100_000])
def test_a_damaged_record_is_an_error_that_names_it(
  text, tmp_path, no_collection
):
  path = tmp_path / "record.json"
  path.write_text(text)
  with pytest.raises(ValueError, match=f"{exact(path)} is damaged"):
    read_record(path, "there is no record", ["rows", "config"])


@pytest.mark.parametrize(
  "check",
  [
    *(lambda: {}["config"], lambda: [][0], lambda: None + 1),
    lambda: float(10**400),
    lambda: check_length("norms", [1.0], 2),
  ],
)
def test_the_error_of_a_failed_check_names_the_damaged_record(check, tmp_path):
  with (
    pytest.raises(ValueError, match=r"record\.json is damaged: "),
    naming_damaged(tmp_path / "record.json"),
  ):
    check()
