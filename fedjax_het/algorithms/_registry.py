"""Every published method by name, with a small instance of each.

Examples are small and untuned: what the contract tests run and what a notebook
can start from.  Methods that keep a layer personal keep the first or the last
one in the order of the parameter tree.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import optax

from fedjax_het.algorithms._apfl import apfl
from fedjax_het.algorithms._centralised import centralised
from fedjax_het.algorithms._ditto import ditto
from fedjax_het.algorithms._fed_avg import fed_avg
from fedjax_het.algorithms._fed_bn import fed_bn
from fedjax_het.algorithms._fed_dyn import fed_dyn
from fedjax_het.algorithms._fed_nova import fed_nova
from fedjax_het.algorithms._fed_per import fed_per
from fedjax_het.algorithms._fed_pm import fed_pm
from fedjax_het.algorithms._fed_prox import fed_prox
from fedjax_het.algorithms._fed_rep import fed_rep
from fedjax_het.algorithms._fine_tuned import fine_tuned
from fedjax_het.algorithms._hide_n_seek import hide_n_seek
from fedjax_het.algorithms._lg_fed_avg import lg_fed_avg
from fedjax_het.algorithms._local_only import local_only
from fedjax_het.algorithms._masked_fed_avg import masked_fed_avg
from fedjax_het.algorithms._mime import mime
from fedjax_het.algorithms._moon import moon
from fedjax_het.algorithms._p_fed_me import p_fed_me
from fedjax_het.algorithms._per_fed_avg import per_fed_avg
from fedjax_het.algorithms._reptile import reptile
from fedjax_het.algorithms._scaffold import scaffold
from fedjax_het.core.errors import unknown
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


def _plain(factory, federation, **options):
  """An instance with SGD(0.1) and batches of 8, unless `options` say else."""
  settings = {"optimizer": optax.sgd(0.1), "batch_size": 8} | options
  return factory(federation.model, **settings)


def _counting(factory, federation, **options):
  """An instance of a method that knows the size of the population."""
  return factory(
    federation.model,
    num_clients=federation.num_clients,
    batch_size=8,
    **options,
  )


def _split(factory, federation, *, layer, **options):
  """An instance whose personal part is a layer: 0 the first, -1 the last."""
  shapes = jax.eval_shape(federation.model.init, jax.random.key(0))
  kernel = list(tree.layer_shapes(shapes))[layer]
  prefix = kernel.rpartition("/")[0]

  def personal(name):
    return name == kernel or (prefix and name.startswith(f"{prefix}/"))

  return _plain(factory, federation, personal=personal, **options)


def _tuned(factory, federation, **options):
  model = federation.model
  algorithm = _plain(fed_avg, federation)
  return factory(algorithm, model, optimizer=optax.sgd(0.1), **options)


def _pruned(factory, federation, **options):
  pruning = prune_at_init(
    federation.model, federation.input_shape, density=0.5, iterations=10
  )
  return _plain(factory, federation, pruning=pruning, **options)


def _entry(factory, summary, *, make=_plain, judged_by="accuracy", **options):
  example = functools.partial(make, factory, **options)
  return Entry(factory, summary, example, judged_by)


_server = functools.partial(_entry, fed_avg)
_personal = functools.partial(_entry, judged_by="client_mean")
_signs = functools.partial(
  _entry, hide_n_seek, make=_pruned, optimizer=optax.adam(0.3), epochs=2
)

REGISTRY = {
  # one global model
  "fed_avg": _entry(fed_avg, "weighted mean of local models"),
  "fed_avg_m": _server(
    "FedAvg with server momentum",
    server_optimizer=optax.sgd(1.0, momentum=0.9),
  ),
  "fed_adagrad": _server(
    "FedAvg with Adagrad on the server",
    server_optimizer=optax.adagrad(0.1, initial_accumulator_value=1e-3),
  ),
  "fed_adam": _server(
    "FedAvg with Adam on the server",
    server_optimizer=optax.adam(0.01, b2=0.99, eps=1e-3),
  ),
  "fed_yogi": _server(
    "FedAvg with Yogi on the server",
    server_optimizer=optax.yogi(0.01, b2=0.99),
  ),
  "fed_prox": _entry(fed_prox, "clients are held near the model", mu=0.1),
  "fed_nova": _entry(
    fed_nova,
    "changes normalised by the length of local training",
    optimizer=optax.sgd(0.05, momentum=0.5),
  ),
  "scaffold": _entry(
    scaffold,
    "control variates against the clients' drift",
    make=_counting,
    rate=0.1,
  ),
  "fed_dyn": _entry(
    fed_dyn,
    "dynamic regulariser against the clients' drift",
    make=_counting,
    alpha=0.1,
    optimizer=optax.sgd(0.1),
  ),
  "moon": _entry(moon, "contrast of features with the global model", mu=1.0),
  "mime": _entry(
    mime,
    "server momentum inside local steps, variance reduced",
    optimizer=optax.sgd(0.05, momentum=0.5),
  ),
  "mime_lite": _entry(
    mime,
    "server momentum inside local steps",
    optimizer=optax.sgd(0.05, momentum=0.5),
    lite=True,
  ),
  "centralised": _entry(
    centralised,
    "plain training on `pooled(data)`",
    optimizer=optax.sgd(0.05, momentum=0.5),
  ),
  # each client its own
  "local_only": _personal(local_only, "no communication at all", epochs=2),
  "fine_tuned": _personal(
    fine_tuned,
    "FedAvg, then some training on each client's own data",
    make=_tuned,
    batch_size=8,
  ),
  "reptile": _personal(
    reptile, "FedAvg with a server rate, then tuned", server_rate=0.5
  ),
  "per_fed_avg": _personal(
    per_fed_avg, "a start that one gradient step makes good", inner_rate=0.1
  ),
  "per_fed_avg_fo": _personal(
    per_fed_avg,
    "Per-FedAvg without the Hessian",
    inner_rate=0.1,
    first_order=True,
  ),
  "p_fed_me": _personal(
    p_fed_me,
    "global model of the clients' Moreau envelopes",
    lam=5.0,
    inner_rate=0.05,
  ),
  "ditto": _personal(ditto, "personal models held near FedAvg's", lam=0.1),
  "apfl": _personal(apfl, "learnt mixtures of own and global model"),
  "fed_per": _personal(
    fed_per, "own top layer, shared rest", make=_split, layer=-1
  ),
  "lg_fed_avg": _personal(
    lg_fed_avg, "own lower layers, shared top", make=_split, layer=0
  ),
  "fed_rep": _personal(
    fed_rep,
    "own head fitted first, then the shared body",
    make=_split,
    layer=-1,
    head_epochs=2,
  ),
  "fed_bn": _personal(fed_bn, "FedAvg with local normalisation layers"),
  # masks
  "masked_fed_avg": _entry(
    masked_fed_avg, "FedAvg on a mask pruned at initialisation", make=_pruned
  ),
  "hide_n_seek": _signs("frozen pruned weights, trained {-1, +1} signs"),
  "zero_one_supermask": _signs(
    "frozen pruned weights, trained {0, 1} mask", values=(0, 1)
  ),
  "personal_signs": _signs(
    "HideNseek whose clients keep their own signs", personal=True
  ),
  "fed_pm": _entry(
    fed_pm,
    "probabilistic masks on random weights",
    optimizer=optax.adam(0.1),
    epochs=2,
  ),
}


def example(
  name: str,
  model: Model,
  input_shape: tuple[int, ...],
  num_clients: int = 100,
) -> Algorithm:
  """A small instance of a registered algorithm.

  Args:
    name: a key of `REGISTRY`.
    model: the network.
    input_shape: shape of one example, without the batch axis.
    num_clients: N of the data it will run on; SCAFFOLD and FedDyn divide by it.

  Returns:
    An `Algorithm`.

  Raises:
    UserError: an unknown name; it says the nearest one.
  """
  if name not in REGISTRY:
    raise unknown("algorithm", name, REGISTRY)
  return REGISTRY[name].example(Federation(model, input_shape, num_clients))
