"""Poisoned data: clients that train honestly on spoilt examples.

Label flipping makes the model wrong; a backdoor keeps it right until a trigger
is shown.  Only train rows of the chosen clients change.  Examples are stored
once and may be shared, so a row that anybody else holds, or that anybody tests
on, is refused: poison would leak to the honest.

References:
  Tolpegin et al.: Data Poisoning Attacks Against Federated Learning Systems,
  ESORICS 2020, arXiv:2007.08432.
  Gu et al.: BadNets, 2017, arXiv:1708.06733 (the pixel patch).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.core.errors import UserError
from fedjax_het.core.types import Array, Examples, FederatedData, Model, Params


class Trigger(NamedTuple):
  """A pattern that asks for a class.

  mask: bool[...], shaped as one example: where the pattern is.
  value: what stands there, in the units of the (normalised) data.
  target: the class that a stamped example shall be taken for.
  """

  mask: np.ndarray
  value: float
  target: int


def flip_labels(
  data: FederatedData,
  clients: Sequence[int],
  mapping: Mapping[int, int] | None = None,
) -> FederatedData:
  """Gives the train examples of some clients wrong labels.

  Args:
    data: the federated data set.
    clients: whose labels are flipped.
    mapping: class -> class, others stay, e.g. {7: 1}; None is y -> K - 1 - y
      with K the largest label + 1 (the middle class of an odd K stays).

  Returns:
    The data set with other labels.

  Raises:
    UserError: no such client or class, or a row that others hold too.
  """
  rows = np.concatenate(_own_rows(data, clients))
  labels = np.array(data.examples.y)
  classes = int(max(labels.max(), np.asarray(data.heldout.y).max())) + 1
  becomes = np.arange(classes)[::-1].copy()
  if mapping is not None:
    becomes = np.arange(classes)
    for old, new in mapping.items():
      if not (0 <= old < classes and 0 <= new < classes):
        raise UserError(
          f"class {old} to {new}: the data have classes 0 to {classes - 1}"
        )
      becomes[old] = new
  labels[rows] = becomes[labels[rows]]
  y = jnp.asarray(labels, data.examples.y.dtype)
  return data._replace(examples=data.examples._replace(y=y))


def pixel_patch(
  shape: Sequence[int], *, target: int, value: float, size: int = 3
) -> Trigger:
  """A square in the last corner of an image, all channels.

  Args:
    shape: of one example: [H, W, channels], or [features], of which the last
      `size` are the patch.
    target: the class asked for.
    value: of the patch's pixels; bright is e.g. the largest of the data.
    size: side of the square in pixels.

  Returns:
    A `Trigger`.

  Raises:
    UserError: the patch is larger than the example.
  """
  mask = np.zeros(shape, bool)
  sides = shape[:2] if len(shape) > 1 else shape
  if not 1 <= size <= min(sides):
    raise UserError(f"a patch of {size} in examples of {list(shape)}")
  mask[tuple(slice(side - size, None) for side in sides)] = True
  return Trigger(mask, value, target)


def stamp(trigger: Trigger, x: Array) -> Array:
  """Examples f32[..., example shape] with the trigger's pattern on them."""
  mask = jnp.broadcast_to(jnp.asarray(trigger.mask), x.shape)
  return jnp.where(mask, jnp.asarray(trigger.value, x.dtype), x)


def backdoor(
  data: FederatedData,
  clients: Sequence[int],
  trigger: Trigger,
  *,
  share: float = 0.5,
  seed: int = 0,
) -> FederatedData:
  """Stamps some train examples of some clients and labels them the target.

  Args:
    data: the federated data set.
    clients: who is malicious.
    trigger: the pattern and its class.
    share: of each such client's train examples, in (0, 1], rounded up.
    seed: of the choice of examples.

  Returns:
    The data set with those examples changed.

  Raises:
    UserError: no such client, a row that others hold too, or a bad share.
  """
  if not 0 < share <= 1:
    raise UserError(f"share must be above 0 and at most 1, got {share}")
  rng = np.random.default_rng(seed)
  chosen = np.concatenate(
    [
      rng.permutation(rows)[: int(np.ceil(share * rows.size))]
      for rows in _own_rows(data, clients)
    ]
  )
  x, y = data.examples
  x = x.at[chosen].set(stamp(trigger, x[chosen]))
  y = y.at[chosen].set(trigger.target)
  return data._replace(examples=Examples(x, y))


def attack_success(
  model: Model,
  params: Params,
  heldout: Examples,
  trigger: Trigger,
  *,
  batch_size: int = 256,
) -> Array:
  """Share of stamped examples that are taken for the target.

  Args:
    model: the network.
    params: the global model, `algorithm.global_params(state.server)`.
    heldout: examples that nobody trained on; those of the target class do not
      count.
    trigger: the pattern and its class.
    batch_size: examples per forward pass.

  Returns:
    f32[]; compare it with that of a model that was not attacked.
  """

  def one(x):
    return jnp.argmax(model.apply(params, stamp(trigger, x)[None])[0])

  guess = jax.lax.map(one, heldout.x, batch_size=batch_size)
  others = heldout.y != trigger.target
  hits = jnp.sum(others & (guess == trigger.target)).astype(jnp.float32)
  return hits / jnp.maximum(jnp.sum(others), 1).astype(jnp.float32)


def _own_rows(data, clients) -> list[np.ndarray]:
  """The train rows of each of `clients`, checked to be theirs alone."""
  clients = np.unique(np.asarray(clients, np.int64))
  if not clients.size or clients[0] < 0 or clients[-1] >= data.num_clients:
    raise UserError(
      f"clients {clients.tolist()}: choose some of 0 to {data.num_clients - 1}"
    )
  chosen = np.isin(np.arange(data.num_clients), clients)
  others = np.zeros(data.examples.y.shape[0], bool)
  others[_listed(data.test)] = True
  others[_listed(data.train, ~chosen)] = True
  mine = [_listed(data.train, np.arange(chosen.size) == k) for k in clients]
  for client, rows in zip(clients, mine, strict=True):
    if others[rows].any():
      raise UserError(
        f"client {client} shares example {rows[others[rows]][0]} with others "
        "or with a test split, which would be poisoned too: deal each example "
        "to one client"
      )
  return mine


def _listed(rows, chosen=None) -> np.ndarray:
  """All rows that the chosen clients hold."""
  index, count = np.asarray(rows.index), np.asarray(rows.count)
  real = np.arange(index.shape[1]) < count[:, None]
  if chosen is not None:
    real &= chosen[:, None]
  return index[real]
