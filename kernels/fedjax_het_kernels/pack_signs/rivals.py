"""Other ways to pack, for the benchmark only; see sign_votes/rivals.py."""

import jax
import jax.numpy as jnp

from fedjax_het_kernels.layout import num_words
from fedjax_het_kernels.pack_signs.op import pack_bits, pack_signs, sample_signs


def variants(spec):
  """Name -> (prepare, run).  `pack_signs` is checked for concrete NaN first."""
  words = num_words(spec.size)

  def same(values):
    return (values,)

  def plain(values):
    return pack_signs(values, implementation="xla")

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
    "ours in plain JAX": (same, plain),
    "32 shifts and ors": (same, thirty_two_ors),
  }


def sample_variants(spec):
  """Name -> (prepare, run) to draw and pack; for `specs.certain_inputs`."""
  del spec

  def same(probabilities):
    return (probabilities,)

  def ours(probabilities):
    return sample_signs(jax.random.key(0), probabilities)

  def plain(probabilities):
    key = jax.random.key(0)
    return sample_signs(key, probabilities, implementation="xla")

  def bernoulli(probabilities):
    return pack_bits(jax.random.bernoulli(jax.random.key(0), probabilities))

  return {
    "ours": (same, ours),
    "ours in plain JAX": (same, plain),
    "bernoulli, pack": (same, bernoulli),
  }
