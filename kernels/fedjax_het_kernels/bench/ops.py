"""What is timed."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fedjax_het_kernels.masked_matmul import reference as matmul_reference
from fedjax_het_kernels.masked_matmul import rivals as matmul_rivals
from fedjax_het_kernels.masked_matmul import specs as matmul_specs
from fedjax_het_kernels.overlap_mean import reference as overlap_reference
from fedjax_het_kernels.overlap_mean import rivals as overlap_rivals
from fedjax_het_kernels.overlap_mean import specs as overlap_specs
from fedjax_het_kernels.pack_signs import reference as pack_reference
from fedjax_het_kernels.pack_signs import rivals as pack_rivals
from fedjax_het_kernels.pack_signs import specs as pack_specs
from fedjax_het_kernels.sign_votes import reference as votes_reference
from fedjax_het_kernels.sign_votes import rivals as votes_rivals
from fedjax_het_kernels.sign_votes import specs as votes_specs
from fedjax_het_kernels.sparse_sum import reference as sparse_reference
from fedjax_het_kernels.sparse_sum import rivals as sparse_rivals
from fedjax_het_kernels.sparse_sum import specs as sparse_specs


class Op(NamedTuple):
  """What the benchmark needs to know of an op.

  specs: all named shapes; those with `bench` set run by default, those with
    `gpu` set on a GPU, too.
  inputs: spec -> arrays.
  expected: (spec, *arrays) -> what every variant has to return.
  variants: spec -> {name: (prepare, run)}, ours first.
  tolerance: spec -> largest absolute error allowed.
  """

  specs: tuple
  inputs: Callable[[Any], tuple]
  expected: Callable[..., np.ndarray]
  variants: Callable[[Any], dict[str, tuple[Callable, Callable]]]
  tolerance: Callable[[Any], float]


def _packed(spec, values):
  del spec
  return np.stack([pack_reference.pack_signs(row) for row in values])


def _sampled(spec, probabilities):
  """Of probabilities 0 and 1, where chance has no say."""
  return _packed(spec, np.where(probabilities == 1, 1, -1))


OPS = {
  "sign_votes": Op(
    votes_specs.SPECS,
    votes_specs.inputs,
    lambda spec, *args: votes_reference.sign_votes(*args, size=spec.size),
    votes_rivals.variants,
    lambda spec: 1e-5,
  ),
  "pack_signs": Op(
    pack_specs.SPECS,
    pack_specs.inputs,
    _packed,
    pack_rivals.variants,
    lambda spec: 0,
  ),
  "sample_signs": Op(
    pack_specs.SPECS,
    pack_specs.certain_inputs,
    _sampled,
    pack_rivals.sample_variants,
    lambda spec: 0,
  ),
  "masked_matmul": Op(
    matmul_specs.SPECS,
    matmul_specs.inputs,
    lambda spec, *args: matmul_reference.masked_matmul(*args),
    matmul_rivals.variants,
    lambda spec: matmul_specs.TOLERANCE[spec.dtype],
  ),
  "overlap_mean": Op(
    overlap_specs.SPECS,
    overlap_specs.inputs,
    lambda spec, values, ids, clients, weights, old: (
      overlap_reference.overlap_mean(values, ids, weights[clients], old)
    ),
    overlap_rivals.variants,
    lambda spec: 1e-5,
  ),
  "overlap_mean_blocks": Op(
    overlap_specs.BLOCKS,
    overlap_specs.block_inputs,
    lambda spec, *args: overlap_reference.overlap_mean_blocks(*args),
    overlap_rivals.block_variants,
    lambda spec: 1e-5,
  ),
  "sparse_sum": Op(
    sparse_specs.SPECS,
    sparse_specs.inputs,
    lambda spec, *args: sparse_reference.sparse_sum(*args, size=spec.size),
    sparse_rivals.variants,
    lambda spec: 1e-4,  # about 10 terms of order 1 an element
  ),
}
