"""The README's Python runs as it stands, and learns."""

import pathlib
import re

README = pathlib.Path(__file__).parents[1] / "README.md"


def test_the_algorithm_of_the_readme_runs(capsys):
  blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
  assert len(blocks) == 2
  names = {}
  for block in blocks:
    exec(compile(block, str(README), "exec"), names)
  assert names["history"]["eval"]["accuracy"] > 0.6
  assert capsys.readouterr().out


def test_the_algorithm_is_as_short_as_its_title_says():
  code = re.search(r"def fed_prox.*?```", README.read_text(), re.DOTALL)
  assert len(code.group().splitlines()) - 1 <= 31
