"""Published methods, one a file, and the registry of all of them.

`REGISTRY[name]` holds the factory, a one-line summary, and `example`, a small
instance for any model: what the contract tests run and what a notebook can
start from.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import optax

from fedjax_het.algorithms._fed_avg import fed_avg
from fedjax_het.algorithms._fed_pm import fed_pm
from fedjax_het.algorithms._hide_n_seek import DOWNLINKS, hide_n_seek
from fedjax_het.algorithms._masked_fed_avg import masked_fed_avg
from fedjax_het.core.errors import unknown
from fedjax_het.core.types import Algorithm, Model
from fedjax_het.masks.at_init import prune_at_init

__all__ = [
  "DOWNLINKS",
  "REGISTRY",
  "Entry",
  "example",
  "fed_avg",
  "fed_pm",
  "hide_n_seek",
  "masked_fed_avg",
]


class Entry(NamedTuple):
  """factory: makes the algorithm;  summary: one line.

  example: (model, input shape) -> a small instance.
  """

  factory: Callable[..., Algorithm]
  summary: str
  example: Callable[[Model, tuple[int, ...]], Algorithm]


def _fed_opt(server_optimizer, model, input_shape):
  del input_shape
  return fed_avg(
    model,
    optimizer=optax.sgd(0.1),
    batch_size=8,
    server_optimizer=server_optimizer,
  )


def _masked(model, input_shape):
  pruning = prune_at_init(model, input_shape, density=0.5, iterations=10)
  return masked_fed_avg(model, pruning, optimizer=optax.sgd(0.1), batch_size=8)


def _signs(model, input_shape, **kwargs):
  pruning = prune_at_init(model, input_shape, density=0.5, iterations=10)
  return hide_n_seek(
    model, pruning, optimizer=optax.adam(0.3), batch_size=8, epochs=2, **kwargs
  )


def _fed_pm(model, input_shape):
  del input_shape
  return fed_pm(model, optimizer=optax.adam(0.1), batch_size=8, epochs=2)


REGISTRY = {
  "fed_avg": Entry(
    fed_avg, "weighted mean of local models", functools.partial(_fed_opt, None)
  ),
  "fed_avg_m": Entry(
    fed_avg,
    "FedAvg with server momentum",
    functools.partial(_fed_opt, optax.sgd(1.0, momentum=0.9)),
  ),
  "fed_adam": Entry(
    fed_avg,
    "FedAvg with Adam on the server",
    functools.partial(_fed_opt, optax.adam(0.01, b2=0.99, eps=1e-3)),
  ),
  "fed_yogi": Entry(
    fed_avg,
    "FedAvg with Yogi on the server",
    functools.partial(_fed_opt, optax.yogi(0.01, b2=0.99)),
  ),
  "masked_fed_avg": Entry(
    masked_fed_avg, "FedAvg on a mask pruned at initialisation", _masked
  ),
  "hide_n_seek": Entry(
    hide_n_seek, "frozen pruned weights, trained {-1, +1} signs", _signs
  ),
  "zero_one_supermask": Entry(
    hide_n_seek,
    "frozen pruned weights, trained {0, 1} mask",
    functools.partial(_signs, values=(0, 1)),
  ),
  "personal_signs": Entry(
    hide_n_seek,
    "HideNseek whose clients keep their own signs",
    functools.partial(_signs, personal=True),
  ),
  "fed_pm": Entry(fed_pm, "probabilistic masks on random weights", _fed_pm),
}


def example(name: str, model: Model, input_shape: tuple[int, ...]) -> Algorithm:
  """A small instance of a registered algorithm.

  Raises:
    UserError: an unknown name; it says the nearest one.
  """
  if name not in REGISTRY:
    raise unknown("algorithm", name, REGISTRY)
  return REGISTRY[name].example(model, input_shape)
