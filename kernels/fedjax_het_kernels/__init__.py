"""Aggregation of packed masks: one folder an op, pure JAX by default.

The functions below hide the folders of the same name as attributes, so import
an op's parts by `from fedjax_het_kernels.sign_votes import reference`.
Nothing heavier than jax is imported here.
"""

from fedjax_het_kernels.layout import num_words
from fedjax_het_kernels.pack_signs.op import (
  pack_bits,
  pack_signs,
  unpack_bits,
  unpack_signs,
)
from fedjax_het_kernels.sign_votes.op import (
  accumulate_votes,
  finish_votes,
  sign_votes,
  vote_step,
)

__all__ = [
  "accumulate_votes",
  "finish_votes",
  "num_words",
  "pack_bits",
  "pack_signs",
  "sign_votes",
  "unpack_bits",
  "unpack_signs",
  "vote_step",
]
