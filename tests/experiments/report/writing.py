"""Write the page of `experiments.report`."""

from experiments import report
from experiments.report import ReportConfig
from tests.experiments.pages.explored import PageData


def write_page(console, output, *directories):
  """Write the page of some runs and return its header."""
  config = ReportConfig(str(output))
  assert report.run([*map(str, directories)], config, console).path == output
  return PageData(output).header
