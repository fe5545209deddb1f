"""What is timed."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fedjax_het_kernels.pack_signs import reference as pack_reference
from fedjax_het_kernels.pack_signs import rivals as pack_rivals
from fedjax_het_kernels.pack_signs import specs as pack_specs
from fedjax_het_kernels.sign_votes import reference as votes_reference
from fedjax_het_kernels.sign_votes import rivals as votes_rivals
from fedjax_het_kernels.sign_votes import specs as votes_specs


class Op(NamedTuple):
  """What the benchmark needs to know of an op.

  specs: all named shapes; those with `bench` set run by default, those with
    `gpu` set on a GPU, too.
  inputs: spec -> arrays.
  expected: (spec, *arrays) -> what every variant has to return.
  variants: spec -> {name: (prepare, run)}, ours first.
  tolerance: largest absolute error allowed.
  """

  specs: tuple
  inputs: Callable[[Any], tuple]
  expected: Callable[..., np.ndarray]
  variants: Callable[[Any], dict[str, tuple[Callable, Callable]]]
  tolerance: float


OPS = {
  "sign_votes": Op(
    votes_specs.SPECS,
    votes_specs.inputs,
    lambda spec, *args: votes_reference.sign_votes(*args, size=spec.size),
    votes_rivals.variants,
    1e-5,
  ),
  "pack_signs": Op(
    pack_specs.SPECS,
    pack_specs.inputs,
    lambda spec, values: np.stack(
      [pack_reference.pack_signs(row) for row in values]
    ),
    pack_rivals.variants,
    0,
  ),
}
