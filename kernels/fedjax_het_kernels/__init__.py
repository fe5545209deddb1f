"""Aggregation of sparse masks: one folder an op, Triton under CUDA.

The functions below hide the folders of the same name as attributes, so import
an op's parts by `from fedjax_het_kernels.sign_votes import reference`.
Nothing heavier than jax is imported here.
"""

from fedjax_het_kernels.layout import num_words
from fedjax_het_kernels.masked_matmul.op import (
  masked_matmul,
  pack_rows,
  ste_update,
  unpack_rows,
)
from fedjax_het_kernels.overlap_mean.op import (
  OverlapSums,
  RowIndex,
  finish_overlap,
  flatten_blocks,
  overlap_mean,
  overlap_mean_blocks,
  overlap_sums,
  overlap_sums_blocks,
  row_index,
)
from fedjax_het_kernels.pack_signs.op import (
  pack_bits,
  pack_signs,
  sample_signs,
  unpack_bits,
  unpack_signs,
)
from fedjax_het_kernels.sign_votes.op import (
  accumulate_votes,
  finish_votes,
  sign_votes,
  vote_step,
)
from fedjax_het_kernels.sparse_sum.op import (
  FixedSums,
  finish_fixed,
  fixed_scale,
  sparse_sum,
  sparse_sum_fixed,
)

__all__ = [
  "FixedSums",
  "OverlapSums",
  "RowIndex",
  "accumulate_votes",
  "finish_fixed",
  "finish_overlap",
  "finish_votes",
  "fixed_scale",
  "flatten_blocks",
  "masked_matmul",
  "num_words",
  "overlap_mean",
  "overlap_mean_blocks",
  "overlap_sums",
  "overlap_sums_blocks",
  "pack_bits",
  "pack_rows",
  "pack_signs",
  "row_index",
  "sample_signs",
  "sign_votes",
  "sparse_sum",
  "sparse_sum_fixed",
  "ste_update",
  "unpack_bits",
  "unpack_rows",
  "unpack_signs",
  "vote_step",
]
