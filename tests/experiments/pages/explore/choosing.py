"""What is chosen on the page of `experiments.explore`."""


def chosen(chromium, name):
  """Return the value of a menu."""
  return chromium.run("return document.getElementById(args[0]).value", name)
