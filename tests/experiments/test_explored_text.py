"""Which text the page of `experiments.explore` is about."""

import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import explore
from experiments.explore import ExploreConfig
from experiments.pages.packed_model import describe_cost
from experiments.pages.quantized import (
  dequantize_params,
  measure_cost,
  quantize_params,
)
from experiments.trainer import run_dir
from experiments.trainer.records import replace
from experiments.trainer.trained import load
from lstm_jax.language import read_text, split
from tests.experiments.pages.explored import (
  HOSTILE,
  LENGTH,
  PageData,
  val_text,
  write_run,
)
from tests.patterns import exact


@pytest.mark.exhaustive
def test_the_text_is_the_beginning_of_the_validation_split(
  explored_page, explored_run
):
  data = PageData(explored_page)
  assert data.text == val_text(explored_run)
  assert len(data.header["pieces"]) == len(data.text) == LENGTH
  assert "lstm, 2 × 12 units" in data.header["about"]
  assert (
    "400 characters of the validation split of verse.txt"
    in (data.header["source"])
  )
  trained = load(explored_run)
  rounded = dequantize_params(quantize_params(trained.params))
  tokens = trained.tokenizer.encode(data.text)
  cost = describe_cost(
    measure_cost(trained, rounded, tokens), trained.tokenizer
  )
  assert data.header["cost"] == f"{cost} of the page’s text."


def test_a_run_with_a_test_split_is_explored_on_that_split(
  config, console, monkeypatch
):
  config = replace(config, test_fraction=0.2, val_fraction=0.3)
  directory, calls = write_run(config), []
  monkeypatch.setattr(explore, "make_page", lambda *a: calls.append(a) or "")
  explore.run(ExploreConfig(str(directory), length=50), console)
  ((trained, tokens, source),) = calls
  text = read_text(config.data.corpus)
  assert trained.tokenizer.decode(tokens) == split(text, 0.2)[1][:50]
  assert source == f"the test split of {Path(config.data.corpus).name}"
  assert console.file.getvalue().startswith(
    f"run     {directory}: lstm, 1 × 12 units, after 0 training steps; 50 "
    f"characters of {source}\n"
  )


def test_the_page_holds_no_part_of_the_text_unpacked(explored_page):
  html = explored_page.read_text(encoding="utf-8")
  assert HOSTILE in PageData(explored_page).text
  for part in ("document.title", "First Lord", "Shall I", "lovely"):
    assert part not in html
  scripts = html.count("<script")
  assert (
    scripts
    == html.count("</script")
    == len(PageData(explored_page).scripts) + 13  # head, and twelve of the page
  )
  assert not re.search(r"https?:|\bsrc=|@import|url\(", html)


@pytest.mark.exhaustive
def test_another_text_is_read_from_its_beginning(
  explored_run, tmp_path, console
):
  text, output = tmp_path / "text.txt", tmp_path / "page.html"
  text.write_text("Shall I more\r\nlovely été", encoding="utf-8")
  config = ExploreConfig(
    str(explored_run), str(text), length=15, out=str(output)
  )
  page = explore.run(config, console)
  assert page == (output, output.stat().st_size)
  printed = " ".join(console.file.getvalue().split())
  assert f"{output}: {page.size / 1e6:.2f} MB" in printed
  header = PageData(output).header
  assert "".join(header["pieces"]) == "Shall I more\nlo"
  assert header["constant"] == ["inside quotes", "speaker names"]
  assert f"15 characters of {text}" in header["source"]


@pytest.mark.exhaustive
def test_a_prompt_is_shown_in_place_of_a_text(explored_run, tmp_path, console):
  output = tmp_path / "page.html"
  prompt = "more\nShall"
  explore.run(
    ExploreConfig(str(explored_run), prompt=prompt, out=str(output)), console
  )
  header = PageData(output).header
  assert "".join(header["pieces"]) == prompt
  assert "10 characters of a prompt" in header["source"]
  with pytest.raises(ValueError, match=r"exclude each .*--prompt='more\\nSh"):
    ExploreConfig(str(explored_run), text="a.txt", prompt=prompt)
  with pytest.raises(ValueError, match="character 'é' at position 1 is not in"):
    explore.run(ExploreConfig(str(explored_run), prompt="Sé"), console)


@pytest.mark.exhaustive
def test_a_word_model_is_shown_word_by_word(words_page, tmp_path, console):
  directory, text = words_page.parent, tmp_path / "text.txt"
  data, trained = PageData(words_page), load(directory)
  line = ["Thou", " art", " more", " lovely", ",", " more", "\n  "]
  line += ["<unk>", " Thou", " art", "\n", "more"]
  assert data.header["pieces"] == [*line, "\n", *line, "\n", *line]
  assert data.header["unit"] == "word"
  # Three times 12 pieces, and two line breaks between them.
  assert "38 words of" in data.header["source"]
  tokens = data.array(data.header["tokens"], "<u4")
  assert (tokens == trained.tokenizer.encode(text.read_text())).all()
  model, state = trained.model, trained.model.initial_state(())
  _, logits = model.apply(trained.params, state, tokens)
  p = np.asarray(jax.nn.softmax(logits))[np.arange(37), tokens[1:]]
  actual = data.array(data.header["next"]["actual"], "<f4")
  assert np.abs(actual - p).max() < 1e-6
  names = [feature["name"] for feature in data.header["features"]]
  assert names == ["line position", "word starts"]
  short = ExploreConfig(str(directory), str(text), length=3)
  assert len(PageData(explore.run(short, console).path).header["pieces"]) == 3


def test_what_cannot_be_explored_is_an_error_that_says_why(
  explored_run, tmp_path, word_config, console
):
  path = tmp_path / "text.txt"

  def refused(match, run=explored_run, text=None, output=""):
    if text is not None:
      path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=match) as error:
      config = ExploreConfig(str(run), str(path), out=str(output))
      explore.run(config, console)
    assert "\n" not in str(error.value)

  refused(f"^{exact(path)} cannot be read: no such file")
  refused(f"^{exact(path)} is empty", text="")
  refused("at least 2 characters, got 1", text="S")
  refused("character 'é' at position 3 is not in the", text="Shaéll")
  nowhere = tmp_path / "nowhere"
  refused("page cannot be written: no such dir", output=nowhere / "page")
  for name in ("config.json", "checkpoints"):
    output = explored_run / name
    refused("^out must be outside the run dir", text="Shall", output=output)
  assert (explored_run / "config.json").read_text().startswith("{")
  refused("^out must be another file than text", text="Shall", output=path)
  assert path.read_text() == "Shall"
  refused("there is no run in .*nowhere: no such directory", nowhere)
  words = write_run(word_config)
  refused("at least 2 words, got 1", words, text="Shall")
  assert not (words / run_dir.PAGE).exists()
  shutil.rmtree(words / run_dir.CHECKPOINTS)
  refused("holds no checkpoint", words)
  with pytest.raises(ValueError, match=r"length must be in \[2, inf\), got 1"):
    ExploreConfig(str(explored_run), length=1)


@pytest.mark.parametrize(
  "given", [{}, {"text": "x.txt"}, {"prompt": "Shall I"}]
)
def test_the_corpus_of_the_run_is_not_overwritten(
  explored_run, given, tmp_path, console
):
  corpus = Path(load(explored_run).config.data.corpus)
  path = tmp_path / "link"
  path.symlink_to(corpus)
  text = corpus.read_bytes()
  message = f"^out must be no file with the run's corpus, got {exact(path)}$"
  with pytest.raises(ValueError, match=message):
    config = ExploreConfig(str(explored_run), out=str(path), **given)
    explore.run(config, console)
  assert corpus.read_bytes() == text
