import re
from pathlib import Path

import jax

README = Path(__file__).parents[1] / "README.md"


def test_the_example_of_the_readme_prints_what_it_says(capsys):
  text = README.read_text(encoding="utf-8")
  blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
  assert len(blocks) == 2
  names = {}
  for code in blocks:
    with jax.enable_x64(False):  # as a reader runs it
      exec(code, names)
    assert capsys.readouterr().out.strip() == code.strip().split("# ")[-1]
