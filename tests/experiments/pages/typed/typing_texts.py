"""Type texts into the page of a run."""

import io

from rich.console import Console

from experiments import explore

WINDOW = 96  # steps of a gradient path
# Moves the cursor to a character and waits for its gradients.
GRADIENTS = """
  moveTo(args[0]);
  while (text.path && text.path.back < text.path.steps) {
    await new Promise(requestAnimationFrame);
  }
  for (const _ of [1, 2]) await new Promise(requestAnimationFrame);
"""


def page_of(run):
  """Return the page of a run."""
  config = explore.ExploreConfig(str(run), length=300)
  return explore.run(config, Console(file=io.StringIO())).path


def type_text(chromium, *texts):
  """Put one text after another into the page's box, as if they were typed."""
  chromium.run(
    "$('typing').open = true; for (const text of args[0]) {"
    " $('own').value = text; $('own').dispatchEvent(new Event('input')); }",
    texts,
  )
  chromium.settle()
