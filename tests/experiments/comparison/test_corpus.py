import pytest

from experiments.comparison.corpus import read_corpus
from experiments.trainer.records import replace


def test_the_text_of_each_split_is_described(comparison):
  corpus = read_corpus(comparison)
  assert corpus.statistics["num_val_characters"] == len(corpus.val)
  texts = corpus.statistics["text_statistics"]
  assert texts["training text"]["words_in_train"] == 1
  assert texts["validation text"]["words_in_val"] == 1
  assert 20 < texts["training text"]["line_length"] < 40


@pytest.mark.parametrize("name", ["context", "gradient_steps"])
def test_a_validation_split_shorter_than_a_window_is_an_error(comparison, name):
  config = replace(comparison, **{name: 1000})
  with pytest.raises(ValueError, match="at least 1,001 characters, got 3"):
    read_corpus(config)
