"""What a client keeps between rounds, and what it has before its first round.

Client states exist from the start, but a client that never trained has nothing
of its own: it goes by what the server gives it (the global model, or a start
that both sides know from the seed).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_het.core.types import Array, ClientData, PyTree


class Kept(NamedTuple):
  """tree: what the client kept;  seen: bool[], whether it ever trained."""

  tree: PyTree
  seen: Array


def nothing(like: PyTree) -> Kept:
  """Before the first round; `like` gives shapes and dtypes only."""
  zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
  return Kept(zeros, jnp.bool_(False))


def recall(kept: Kept, otherwise: PyTree) -> PyTree:
  """What the client kept, or `otherwise` if it never trained."""
  return jax.tree.map(
    lambda own, other: jnp.where(kept.seen, own, other), kept.tree, otherwise
  )


def remember(kept: Kept, tree: PyTree, data: ClientData) -> Kept:
  """Keeps `tree`; a client without budget did not train, and stays unseen."""
  return Kept(tree, kept.seen | (data.budget > 0))
