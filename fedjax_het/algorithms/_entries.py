"""What an entry of the registry is, and small instances of its methods."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import optax

from fedjax_het.algorithms._fed_avg import fed_avg
from fedjax_het.core.types import Algorithm, Model
from fedjax_het.masks import tree
from fedjax_het.masks.at_init import prune_at_init


class Federation(NamedTuple):
  """What an example is made for; input_shape is of one example, without B."""

  model: Model
  input_shape: tuple[int, ...]
  num_clients: int


class Entry(NamedTuple):
  """factory: makes the algorithm;  summary: one line.

  example: Federation -> a small instance.
  judged_by: the figure of `core.evaluate` that the method is for: "accuracy",
    the global model's, or "client_mean", each client's own.
  """

  factory: Callable[..., Algorithm]
  summary: str
  example: Callable[[Federation], Algorithm]
  judged_by: str = "accuracy"


def plain(factory, federation, **options):
  """An instance with SGD(0.1) and batches of 8, unless `options` say else."""
  settings = {"optimizer": optax.sgd(0.1), "batch_size": 8} | options
  return factory(federation.model, **settings)


def counting(factory, federation, **options):
  """An instance of a method that knows the size of the population."""
  return factory(
    federation.model,
    num_clients=federation.num_clients,
    batch_size=8,
    **options,
  )


def split(factory, federation, *, layer, **options):
  """An instance whose personal part is a layer: 0 the first, -1 the last."""
  shapes = jax.eval_shape(federation.model.init, jax.random.key(0))
  kernel = list(tree.layer_shapes(shapes))[layer]
  prefix = kernel.rpartition("/")[0]

  def personal(name):
    return name == kernel or (prefix and name.startswith(f"{prefix}/"))

  return plain(factory, federation, personal=personal, **options)


def tuned(factory, federation, **options):
  model = federation.model
  algorithm = plain(fed_avg, federation)
  return factory(algorithm, model, optimizer=optax.sgd(0.1), **options)


def pruned(factory, federation, **options):
  pruning = prune_at_init(
    federation.model, federation.input_shape, density=0.5, iterations=10
  )
  return plain(factory, federation, pruning=pruning, **options)


def entry(factory, summary, *, make=plain, judged_by="accuracy", **options):
  example = functools.partial(make, factory, **options)
  return Entry(factory, summary, example, judged_by)
