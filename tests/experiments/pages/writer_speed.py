"""Measure the speed of the page of docs/write.md, in a headless Chromium.

  python -m tests.experiments.pages.writer_speed

prints, for LSTMs of the sizes that docs/write.md has, the characters per second
of the model alone and of the page that shows them: the lowest and the highest
of five intervals, which last 1 s for the model and 2 s for the page. The models
are untrained: a trained one takes as long.
"""

import tempfile
from pathlib import Path

from experiments import export
from experiments.trainer.config import TrainConfig
from experiments.trainer.records import replace
from tests.experiments.pages import browser
from tests.experiments.pages.explored import write_run

SIZES = (1, 256), (2, 512)  # layers, units
ALONE = """
  writing.pause();
  const state = model.zeroState(), y = new Float64Array(model.bias.length);
  const found = [];
  for (let n = 0; n < 5; n++) {
    const start = performance.now();
    let count = 0;
    for (; performance.now() - start < 1000; count++) {
      model.step(state, count % y.length);
      model.logits(state, y);
    }
    found.push(count / (performance.now() - start) * 1000);
  }
  return found;
"""
WRITING = """
  $("speed").value = 8;  // the highest
  $("speed").dispatchEvent(new Event("input"));
  $("again").click();
  const found = [];
  for (let n = 0; n < 5; n++) {
    const start = performance.now(), before = writing.track.length;
    await new Promise((done) => setTimeout(done, 2000));
    found.push((writing.track.length - before)
      / (performance.now() - start) * 1000);
  }
  writing.pause();
  return found;
"""


def main():
  with (
    tempfile.TemporaryDirectory() as directory,
    browser.chromium() as chromium,
  ):
    chromium.emulate(1100, 900)
    for layers, units in SIZES:
      run = Path(directory, f"{layers}x{units}")
      config = replace(
        TrainConfig(), num_layers=layers, hidden_size=units, run=str(run)
      )
      page = Path(directory, f"{layers}x{units}.html")
      export.run(str(write_run(config)), "html", str(page))
      chromium.open(page)
      for name, script in (("alone", ALONE), ("writing", WRITING)):
        found = chromium.run(script)
        print(
          f"{layers} × {units}  {name}: {min(found):,.0f} to {max(found):,.0f} "
          "characters per second",
          flush=True,
        )


if __name__ == "__main__":
  main()
