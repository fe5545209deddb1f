"""Another way to pack, for the benchmark only; see sign_votes/rivals.py."""

import jax.numpy as jnp

from fedjax_het_kernels.layout import num_words
from fedjax_het_kernels.pack_signs.op import pack_signs


def variants(spec):
  """Name -> (prepare, run).  `pack_signs` is checked for concrete NaN first."""
  words = num_words(spec.size)

  def same(values):
    return (values,)

  def thirty_two_ors(values):
    pad = ((0, 0), (0, words * 32 - spec.size))
    planes = jnp.pad(values >= 0, pad).astype(jnp.uint32)
    planes = planes.reshape(spec.clients, words // 128, 32, 128)
    packed = planes[:, :, 0]
    for j in range(1, 32):
      packed = packed | (planes[:, :, j] << j)
    return packed.reshape(spec.clients, words)

  return {
    "ours": (same, pack_signs),
    "32 shifts and ors": (same, thirty_two_ors),
  }
