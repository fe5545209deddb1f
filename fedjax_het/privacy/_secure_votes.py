"""Sign methods under secure aggregation: the server sees only the vote counts.

What HideNseek, {0, 1} supermasks and FedPM upload is summed as integers, so
`secure_sum` fits them exactly: no quantisation, and the same model bit for bit
as without it.

Up: b bits a weight instead of 1, b = ceil(log2(total + 1)).  Down: what the
method sends and the round's number, 4 bytes.

A client of the engine does not know who else was chosen, so it masks with the
whole population, and those who were not chosen are treated as dropped.  That is
as safe (seeds of pairs with somebody who sent nothing protect nothing) but
costs a client N - 1 expansions; a server that announces the cohort makes it
C - 1, and the seeds revealed fewer.  Their traffic, 8 bytes per arrived and
missing pair, is not counted.  `secure_sum` has the threat model.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.core import wire
from fedjax_het.core.errors import UserError
from fedjax_het.core.types import Algorithm, Array, PyTree, Reducer
from fedjax_het.masks import votes
from fedjax_het.privacy import _wrap, secure_sum


class SecureState(NamedTuple):
  """server: the wrapped method's state;  round: i32[], of the masks' seeds."""

  server: PyTree
  round: Array


def secure_votes(
  algorithm: Algorithm, *, num_clients: int, total: int, seed: int = 0
) -> Algorithm:
  """`algorithm` whose packed signs travel masked.

  Args:
    algorithm: uploads `PackedSigns` with whole-number weights, reduced by
      `votes.sign_mean`: hide_n_seek, fed_pm.
    num_clients: N.
    total: the largest total weight of a round: the cohort's size where
      everybody has one vote, the most examples that a cohort can hold where
      votes are weighted by examples.  A round above it gives NaN.
    seed: the clients' shared secret; the server of the simulation uses it only
      for the seeds that survivors reveal.

  Returns:
    An `Algorithm`.

  Raises:
    UserError: an algorithm that does not count signs, or a total that float32
      cannot count.
  """
  if not _counts_signs(algorithm.reducer):
    raise UserError(
      "secure_votes sums packed signs (masks.votes.sign_mean): take "
      "hide_n_seek, zero_one_supermask or fed_pm"
    )
  secure_sum.bits_for(total)

  def of_round(number):
    return jax.random.fold_in(jax.random.key(seed), number)

  def downlink(state, client_id):
    itself = wire.Known(client_id, setup_bytes=0)
    return itself, state.round, algorithm.downlink(state.server, client_id)

  def client(message, state, data, key):
    itself, number, received = message
    upload = algorithm.client(received, state, data, key)
    bits = (upload.message.unpack() > 0).astype(jnp.int32)
    weight = jnp.round(upload.weight).astype(jnp.int32)
    masks = secure_sum.pair_masks(
      of_round(number), itself.tree, jnp.ones(num_clients, bool), bits.size
    )
    sent = secure_sum.mask_upload(weight * bits, masks, total)
    # whose line it came in on, and in which round, the server knows
    sender = wire.Known((itself.tree, number), setup_bytes=0)
    return upload._replace(
      message=(sender, sent), weight=weight.astype(jnp.float32)
    )

  return _wrap.around(
    algorithm,
    init=lambda key: SecureState(algorithm.init(key), jnp.int32(0)),
    downlink=downlink,
    client=client,
    reducer=_masked_mean(num_clients, total, of_round),
    server=lambda state, reduced: SecureState(
      algorithm.server(state.server, reduced), state.round + 1
    ),
  )


class _Sum(NamedTuple):
  """uploads: u32[n];  weight: f32[];  present: bool[N];  round: i32[]."""

  uploads: Array
  weight: Array
  present: Array
  round: Array


def _masked_mean(num_clients, total, of_round) -> Reducer:
  """`votes.sign_mean` of masked uploads."""

  def zero(message):
    _, sent = message
    return _Sum(
      jnp.zeros(sent.values.shape, jnp.uint32),
      jnp.float32(0),
      jnp.zeros(num_clients, bool),
      jnp.int32(0),
    )

  def add(acc, messages, weights):
    sender, sent = messages
    ids, numbers = sender.tree
    here = weights > 0
    uploads = jnp.where(here[:, None], sent.values.astype(jnp.uint32), 0)
    return _Sum(
      acc.uploads + jnp.sum(uploads, axis=0, dtype=jnp.uint32),
      acc.weight + jnp.sum(weights),
      acc.present.at[jnp.where(here, ids, num_clients)].set(True, mode="drop"),
      jnp.maximum(acc.round, jnp.max(jnp.where(here, numbers, 0))),
    )

  def merge(a, b):
    return _Sum(
      a.uploads + b.uploads,
      a.weight + b.weight,
      a.present | b.present,
      jnp.maximum(a.round, b.round),
    )

  def finish(acc):
    masks = secure_sum.left_over(
      of_round(acc.round),
      acc.present,
      jnp.ones(num_clients, bool),
      acc.uploads.size,
    )
    ones = secure_sum.unmask(acc.uploads, masks, total).astype(jnp.float32)
    mean = (2 * ones - acc.weight) / jnp.where(acc.weight > 0, acc.weight, 1.0)
    return jnp.where(acc.weight <= total, mean, jnp.nan), acc.weight

  return Reducer(zero, add, merge, finish)


def _counts_signs(reducer: Reducer) -> bool:
  """Whether a reducer answers three small votes as `votes.sign_mean` does."""
  signs = np.asarray([[1, -1], [1, 1], [-1, 1]], np.float32)
  weights = np.asarray([1, 2, 5], np.float32)
  try:
    with jax.ensure_compile_time_eval():
      packed = [votes.pack(jnp.asarray(row)) for row in signs]
      stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *packed)
      acc = reducer.add(reducer.zero(packed[0]), stacked, jnp.asarray(weights))
      mean, weight = reducer.finish(acc)
    return bool(np.allclose(mean, weights @ signs / 8) and weight == 8)
  except Exception:  # made for messages of its own, whatever it says to these
    return False
