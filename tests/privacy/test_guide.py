"""The Python of the guide runs as it stands, and does what it says."""

import pathlib
import re

import numpy as np
import pytest

from fedjax_het.core.errors import UserError

GUIDE = pathlib.Path(__file__).parents[2] / "docs/robustness_and_privacy.md"


@pytest.mark.slow
def test_the_snippets_run():
  pytest.importorskip("dp_accounting", reason="pip install .[privacy]")
  blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
  names = {}
  for block in blocks:
    exec(compile(block, str(GUIDE), "exec"), names)
  assert names["without"] < 0.3 and names["median"] > 0.8
  assert names["wrong"] < 0.7 < names["success"]
  assert names["right"] > 0.85
  assert names["spent"] > 0 and 0.1 < names["z"] < 10
  np.testing.assert_array_equal(names["same_accuracy"], names["open_accuracy"])


@pytest.mark.parametrize("name", ["fed_per", "mime", "fed_nova", "scaffold"])
def test_it_wraps_the_methods_that_it_names(name):
  import tiny

  from fedjax_het.algorithms import example
  from fedjax_het.privacy import differentially_private

  algorithm = example(name, tiny.mlp(), tiny.INPUT_SHAPE, tiny.CLIENTS)
  try:
    differentially_private(
      algorithm, clip=1.0, noise_multiplier=1.0, cohort_size=5
    )
  except UserError as error:
    pytest.fail(str(error))
