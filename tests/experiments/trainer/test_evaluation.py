"""The results of several evaluations in one file."""

import pytest

from experiments.trainer.evaluation import FIGURES, SAME, merge_earlier
from experiments.trainer.files import write_json


def results(protocol, nats):
  return dict.fromkeys(SAME, 1) | {name: {protocol: nats} for name in FIGURES}


def test_the_results_of_other_protocols_are_kept(tmp_path):
  path = tmp_path / "evaluation.json"
  write_json(path, results("cold", 3.0))
  merged = merge_earlier(path, results("stateful", 2.0))
  assert merged["nats"] == {"cold": 3.0, "stateful": 2.0}
  again = merge_earlier(path, results("cold", 1.0))
  assert again == results("cold", 1.0)


@pytest.mark.parametrize(
  "name",
  ["corpus_sha256", "begin", "end", "device", "runs", "step", "val_loss"],
)
def test_the_results_of_another_text_model_or_device_are_not_kept(
  name, tmp_path
):
  path = tmp_path / "evaluation.json"
  write_json(path, results("cold", 3.0) | {name: 2})
  record = results("stateful", 2.0)
  assert merge_earlier(path, record) == record
