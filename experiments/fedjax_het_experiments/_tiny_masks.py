"""Where the arms of `fed_tiny` start: public images, weights, masks, choices.

Every arm starts from the same weights, trained on a few public images that no
client holds.  Which candidate mask FedTiny takes depends on who holds what,
that is, on the seed: it is chosen before the runs, one seed after the other,
and the runs find it by their key.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_het.algorithms import bn_selection
from fedjax_het.core import local
from fedjax_het.core.errors import UserError
from fedjax_het.core.types import (
  NO_BUDGET,
  Array,
  ClientData,
  Examples,
  Key,
  Model,
  Params,
  Rows,
)
from fedjax_het.data.sources import Dataset
from fedjax_het.masks import prune_grow, tree
from fedjax_het.masks.at_init import Pruning
from fedjax_het.masks.density_pool import density_pool
from fedjax_het.models.batch_norm import BatchNormModel
from fedjax_het.selection import uniform
from fedjax_het_experiments._dealing import deal
from fedjax_het_experiments._setting import Setting


class Choice(NamedTuple):
  """counts: i32[L], weights that the chosen mask keeps of each layer.

  losses: f32[C], of the candidates, the uniform one first.
  up_bytes, down_bytes: what the choice cost all devices together.
  """

  counts: np.ndarray
  losses: np.ndarray
  up_bytes: int
  down_bytes: int


def set_aside(dataset: Dataset, count: int) -> tuple[Dataset, Examples]:
  """Takes `count` random training images away: (the rest, the public ones).

  Raises:
    UserError: there would be no training image left.
  """
  size = len(dataset.train_y)
  if not 0 < count < size:
    raise UserError(
      f"{count} public images of {size}: set aside 1 or more, and leave some"
    )
  order = np.random.default_rng(0).permutation(size)
  public, rest = order[:count], np.sort(order[count:])
  examples = Examples(
    jnp.asarray(dataset.train_x[public]), jnp.asarray(dataset.train_y[public])
  )
  return dataset._replace(
    train_x=dataset.train_x[rest], train_y=dataset.train_y[rest]
  ), examples


def pretrained(
  model: Model, public: Examples, *, rate: float, batch_size: int, epochs: int
) -> Model:
  """The model whose `init` also trains on the public images."""
  count = public.y.shape[0]
  data = ClientData(
    public, jnp.arange(count), jnp.int32(count), jnp.int32(NO_BUDGET)
  )

  def init(key):
    return local.train(
      local.cross_entropy(model),
      model.init(key),
      data,
      jax.random.fold_in(key, 1),
      optimizer=optax.sgd(rate),
      batch_size=batch_size,
      epochs=epochs,
    ).params

  return model._replace(init=init)


def keys(seed: int) -> tuple[Key, Key]:
  """(of the weights, of the mask) in a run of this seed.

  As `core.rounds.init_state` and the `init` of pruned methods derive them.
  """
  server_key = jax.random.split(jax.random.key(seed), 3)[0]
  weights, mask = jax.random.split(server_key)
  return weights, mask


def by_magnitude(counts: Array | np.ndarray, density: float) -> Pruning:
  """The largest counts[l] weights of each layer."""
  counts = jnp.asarray(counts, jnp.int32)
  return Pruning(
    lambda key, params: prune_grow.by_magnitude(params, counts), density
  )


def by_seed(choices: Mapping[int, Choice], density: float) -> Pruning:
  """The largest weights, as many of each layer as was chosen for the seed."""
  known = jnp.stack([jax.random.key_data(keys(seed)[1]) for seed in choices])
  table = jnp.asarray(
    np.stack([choice.counts for choice in choices.values()]), jnp.int32
  )

  def mask(key, params):
    mine = jnp.all(known == jax.random.key_data(key)[None], axis=1)
    return prune_grow.by_magnitude(params, table[jnp.argmax(mine)])

  return Pruning(mask, density)


def choose(
  model: BatchNormModel,
  start: Model,
  setting: Setting,
  seeds: Sequence[int],
  *,
  density: float,
  candidates: int,
) -> dict[int, Choice]:
  """FedTiny's selection for each seed, by one cohort of devices.

  Args:
    model: the network;  start: its pretrained form.
    setting: who holds what, and how many devices take part.
    seeds: each with weights, partition, candidates and devices of its own.
    density: d;  candidates: C.
  """
  data = deal(setting, seeds)
  shapes = tree.layer_shapes(jax.eval_shape(start.init, jax.random.key(0)))
  devices = uniform(setting.cohort_size)

  @jax.jit
  def select(key, counts, data):
    params = start.init(key)
    masks = jax.vmap(prune_grow.by_magnitude, in_axes=(None, 0))(params, counts)
    chosen = devices(jax.random.fold_in(key, 2), data)
    return bn_selection(model, params, masks, data, chosen)

  choices = {}
  for place, seed in enumerate(seeds):
    pool = density_pool(shapes, density, candidates, seed=seed)
    mine = data._replace(
      train=Rows(*(leaf[place] for leaf in data.train)),
      test=Rows(*(leaf[place] for leaf in data.test)),
    )
    found = select(keys(seed)[0], jnp.asarray(pool), mine)
    choices[seed] = Choice(
      pool[int(found.best)],
      np.asarray(found.loss),
      setting.cohort_size * int(found.up_bytes),
      setting.cohort_size * int(found.down_bytes),
    )
  return choices


def first_masks(
  start: Model, pruning: Pruning, seeds: Sequence[int]
) -> list[tuple[Params, Params]]:
  """(weights, mask) with which the runs of these seeds begin."""
  make = jax.jit(
    lambda weights, mask: (
      (params := start.init(weights)),
      pruning.mask(mask, params),
    )
  )
  return [make(*keys(seed)) for seed in seeds]
