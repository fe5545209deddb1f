"""Masks on different parts of one network: their message and their mean."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

import fedjax_het_kernels as kernels
from fedjax_het.core import reduce, wire
from fedjax_het.core.types import Reducer
from fedjax_het.masks.kept_bits import KeptBits
from fedjax_het.masks.sparse_wire import MaskNews


class MaskMessage(NamedTuple):
  """A client's mask on the part of the weights that it retains.

  client: i32[], who sends it, taken from the download.
  part: where that part is, if the server does not know;  mask: the bits.
  """

  client: wire.Known
  part: MaskNews
  mask: KeptBits


def overlap(num_clients: int) -> Reducer:
  """The mean of each bit over the clients that retain it, and who retains what.

  Args:
    num_clients: N.

  Returns:
    A `Reducer` over `MaskMessage`s; `finish` gives (parts u32[N, W], packed, no
    bit of those who sent nothing, (mean f32[P], held bool[P])).
  """
  pair = reduce.overlap_mean()

  def bits(message):
    return message.mask.bits.astype(jnp.float32), message.mask.kept

  def zero(message):
    words = kernels.num_words(message.mask.kept.size)
    shapes = jax.eval_shape(bits, message)
    return jnp.zeros((num_clients, words), jnp.uint32), pair.zero(shapes)

  def add(acc, messages, weights):
    parts, total = acc
    sent = messages.mask.kept & (weights > 0)[:, None]
    # each client is there once, so that adding its words sets them
    parts = parts.at[messages.client.tree].add(kernels.pack_bits(sent))
    return parts, pair.add(total, bits(messages), weights)

  def merge(a, b):
    return a[0] | b[0], pair.merge(a[1], b[1])

  return Reducer(zero, add, merge, lambda acc: (acc[0], pair.finish(acc[1])))
