"""Modules that a test writes, to plant errors in them."""

import importlib

import pytest


def module_of(tmp_path, name, source):
  """Return a module of this source, imported: `plant` reads its file."""
  (tmp_path / f"{name}.py").write_text(source)
  with pytest.MonkeyPatch.context() as monkeypatch:
    monkeypatch.syspath_prepend(tmp_path)
    return importlib.import_module(name)
