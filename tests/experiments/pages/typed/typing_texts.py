"""Type texts into the page of a run."""

import io

from rich.console import Console

from experiments import explore

LENGTH = 300  # characters of the text that a page opens with
# The states of a gradient path: that at the cursor and up to 95 steps back.
WINDOW = 96
# Moves the cursor to a character and waits for its gradients.
GRADIENTS = """
  moveTo(args[0]);
  while (text.path && text.path.back < text.path.steps) {
    await new Promise(requestAnimationFrame);
  }
  // Until it is drawn.
  for (const _ of [1, 2]) await new Promise(requestAnimationFrame);
"""


def page_of(run):
  """Write the page of a run, on LENGTH characters, and return its path."""
  config = explore.ExploreConfig(str(run), length=LENGTH)
  return explore.run(config, Console(file=io.StringIO())).path


def type_text(chromium, *texts):
  """Put one text after another into the page's box, as if they were typed."""
  chromium.run(
    "$('typing').open = true; for (const text of args[0]) {"
    " $('own').value = text; $('own').dispatchEvent(new Event('input')); }",
    texts,
  )
  chromium.settle()
