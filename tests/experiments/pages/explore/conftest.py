"""The page of `experiments.explore`, opened in a browser."""

import pytest


@pytest.fixture
def opened(chromium, explored_page):
  chromium.emulate(1100, 900)
  chromium.errors(), chromium.requests()
  chromium.open(explored_page)
  yield chromium
  assert chromium.errors() == []
  # The page requests nothing but itself.
  assert set(chromium.requests()) == {explored_page.resolve().as_uri()}
