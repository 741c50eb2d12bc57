"""The page of `experiments.explore`, opened in a browser."""

import pytest

from tests.experiments.pages.browser import viewing


@pytest.fixture
def opened(chromium, explored_page):
  with viewing(chromium, explored_page):
    yield chromium
