"""Clients that lie: attacks on the model, as a transformation of an algorithm.

A malicious client trains as everybody does and then sends something else.
Nothing more travels; that a client is malicious is known to itself alone.  A
client that sends NaN needs no attack here: the engine drops it.

Not here: attacks that need what the other clients send, as "A Little Is Enough"
(Baruch et al. 2019) or "Inner Product Manipulation" (Xie et al. 2020).  In the
engine a client sees only its own downlink, and that is what it can know.

References:
  Blanchard et al., NeurIPS 2017, arXiv:1703.02757 (Gaussian).
  Li et al.: RSA, AAAI 2019, arXiv:1811.03761 (sign-flipping, same-value).
  Bagdasaryan et al.: How To Backdoor Federated Learning, AISTATS 2020,
  arXiv:1807.00459 (model replacement by scaling).
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.core import wire
from fedjax_het.core.errors import UserError
from fedjax_het.core.types import Algorithm, Array, Key
from fedjax_het.masks import votes

# (the honest message's float arrays, key) -> what is sent in their place
Attack = Callable[[list[Array], Key], list[Array]]

_STREAM = 0x0BAD_C11E  # apart from the keys that the client's training folds in


def byzantine(
  algorithm: Algorithm,
  malicious: Sequence[int] | np.ndarray,
  attack: Attack,
) -> Algorithm:
  """`algorithm` in which some clients send what `attack` makes of a message.

  Integers in a message stay as they are.  Packed signs are opened to floats in
  {-1, +1} and packed again by sign (0 counts as +1).  Weights, client states
  and metrics stay honest.  The order of wrapping matters: around
  `differentially_private` the liars do not clip; inside, the server clips them.

  Args:
    algorithm: any method.
    malicious: ids of the liars, or bool[N].
    attack: what they send, e.g. `sign_flip()`.

  Returns:
    An `Algorithm`.

  Raises:
    UserError: `malicious` are neither ids nor bools; when it is traced, a
      message with nothing to attack.
  """
  liars = _ids(malicious)

  def downlink(state, client_id):
    liar = jnp.any(client_id == jnp.asarray(liars))
    known = wire.Known(liar, setup_bytes=0)
    return known, algorithm.downlink(state, client_id)

  def client(message, state, data, key):
    known, received = message
    upload = algorithm.client(received, state, data, key)
    sent = _attacked(upload.message, attack, jax.random.fold_in(key, _STREAM))
    return upload._replace(
      message=jax.tree.map(
        lambda lie, honest: jnp.where(known.tree, lie, honest),
        sent,
        upload.message,
      )
    )

  return algorithm._replace(downlink=downlink, client=client)


def sign_flip(scale: float = 1.0) -> Attack:
  """Sends -scale times the honest message."""
  return scaling(-scale)


def scaling(boost: float) -> Attack:
  """Sends the honest message times `boost`.

  Model replacement: with boost = (total weight of the cohort) / (own weight)
  the mean is the liar's model, up to what the others changed.
  """
  return lambda honest, key: [boost * leaf for leaf in honest]


def gaussian(std: float) -> Attack:
  """Sends N(0, std^2) in every coordinate."""

  def attack(honest, key):
    return [
      std * jax.random.normal(jax.random.fold_in(key, i), leaf.shape)
      for i, leaf in enumerate(honest)
    ]

  return attack


def same_value(value: float) -> Attack:
  """Sends `value` in every coordinate."""
  return lambda honest, key: [jnp.full_like(leaf, value) for leaf in honest]


def zero() -> Attack:
  """Sends zeros: the client only takes others' weight in the mean."""
  return same_value(0.0)


def _ids(malicious) -> np.ndarray:
  array = np.asarray(malicious)
  if array.dtype == bool and array.ndim == 1:
    array = np.flatnonzero(array)
  if array.size == 0:
    array = array.astype(np.int32)
  if array.ndim != 1 or array.dtype.kind not in "iu" or (array < 0).any():
    raise UserError(
      "malicious must be ids >= 0 of clients or bool[num_clients], got "
      f"{array.dtype} {list(array.shape)}"
    )
  return array.astype(np.int32)


def _attacked(message, attack, key):
  """The message with its float leaves and packed signs replaced."""

  def packed(leaf):
    return isinstance(leaf, votes.PackedSigns)

  leaves, treedef = jax.tree.flatten(message, is_leaf=packed)
  hit = [
    i
    for i, leaf in enumerate(leaves)
    if packed(leaf) or jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
  ]
  if not hit:
    raise UserError(
      "byzantine finds neither floats nor packed signs in the message: attack "
      "the method inside secure_votes, not around it"
    )
  honest = [leaves[i].unpack() if packed(leaves[i]) else leaves[i] for i in hit]
  for i, lie in zip(hit, attack(honest, key), strict=True):
    signs = packed(leaves[i])
    leaves[i] = votes.pack(lie) if signs else lie.astype(leaves[i].dtype)
  return jax.tree.unflatten(treedef, leaves)
