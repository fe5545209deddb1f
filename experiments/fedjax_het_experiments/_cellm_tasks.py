"""The two tasks of `cellm`: a base trained on public data, and its clients.

Images: the base sees images of the first half of the classes that no client
holds; clients hold all classes.  Text: the base sees the roles of some plays;
clients are roles of the others, and roles that are neither judge.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_het import models
from fedjax_het.core import local
from fedjax_het.core.errors import UserError
from fedjax_het.core.types import (
  NO_BUDGET,
  ClientData,
  Examples,
  FederatedData,
  Model,
  Params,
  Rows,
)
from fedjax_het.data import natural
from fedjax_het.data.sources import Dataset
from fedjax_het.models.transformer import Shape, last_token, transformer

TARGETS = ("q", "v", "up", "down")
_TESTED = 20  # windows of a role that test it


class Task(NamedTuple):
  """network: trained and adapted;  judged: the same as a classifier.

  loss: of the network.
  full: what is trained whole beside the adapters.
  public: what the base is trained on.
  dataset: what clients hold (of text: its name and classes).
  natural: seed -> clients, or None where a partition makes them.
  about: a sentence for the report.
  """

  network: Model
  judged: Model
  loss: local.Loss
  full: tuple[str, ...]
  public: Examples
  dataset: Dataset
  natural: Callable[[int], FederatedData] | None
  about: str


def images(dataset: Dataset, *, public: int, held: int, judged: int) -> Task:
  """Images of all classes for a base that knows half of them.

  Args:
    dataset: all of it.
    public: images of the classes 0 ... K // 2 - 1 that train the base.
    held: most images that all clients hold together;  judged: that judge.

  Raises:
    UserError: fewer images than asked for.
  """
  known = dataset.num_classes // 2
  order = np.random.default_rng(0).permutation(len(dataset.train_y))
  easy = order[dataset.train_y[order] < known]
  if len(easy) < public:
    raise UserError(
      f"{public} public images of the classes 0 to {known - 1}, but there are "
      f"{len(easy)}: ask for fewer (--cellm_public)"
    )
  base, rest = easy[:public], np.setdiff1d(order, easy[:public])
  rest = np.sort(np.random.default_rng(1).permutation(rest)[:held])
  shape = dataset.train_x.shape[1:]
  # 16 tokens where a quarter of each side is a patch; else rows
  patch = None
  if not (shape[0] % 4 or shape[1] % 4):
    patch = shape[0] // 4, shape[1] // 4
  network = models.build(
    "vit", shape, dataset.num_classes, patch=patch, hidden=128
  )
  return Task(
    network,
    network,
    local.cross_entropy(network),
    ("head",),
    Examples(
      jnp.asarray(dataset.train_x[base]), jnp.asarray(dataset.train_y[base])
    ),
    dataset._replace(
      train_x=dataset.train_x[rest],
      train_y=dataset.train_y[rest],
      test_x=dataset.test_x[:judged],
      test_y=dataset.test_y[:judged],
    ),
    None,
    f"A vision transformer of 2 layers, trained on {public} images of the "
    f"classes 0 to {known - 1}; clients hold {len(rest)} images of all.",
  )


def plays(
  data_dir: str | None,
  *,
  num_clients: int,
  steps: int,
  held: int,
  judged: int,
  window: int = 32,
) -> Task:
  """Roles of half of the plays for a base that has read the other half.

  Args:
    data_dir: of the plays, or None for the installed package.
    num_clients: roles drawn for each seed.
    steps: most local steps of a client in a round.
    held: most windows that train the base;  judged: that judge.
    window: letters.

  Raises:
    UserError: too few roles, or no plays.
  """
  dealt = natural.shakespeare(
    data_dir, window=window, stride=window, min_length=2000
  )
  titles = sorted({name.partition("/")[0] for name in dealt.clients})
  shuffled = np.random.default_rng(0).permutation(titles)
  read = set(shuffled[: len(titles) // 2].tolist())
  public = np.array([n.partition("/")[0] in read for n in dealt.clients])
  private = np.flatnonzero(~public)
  if len(private) < num_clients:
    raise UserError(
      f"{num_clients} clients, but the plays that the base has not read have "
      f"{len(private)} roles that speak enough: lower --num_clients"
    )
  data = dealt.data
  data = data._replace(
    heldout=Examples(*(leaf[:judged] for leaf in _shuffled(data.heldout)))
  )
  windows = [
    np.asarray(part.index[k])[: int(part.count[k])]
    for k in np.flatnonzero(public)
    for part in (data.train, data.test)
  ]
  seen = np.random.default_rng(1).permutation(np.concatenate(windows))[:held]

  def of_seed(seed):
    drawn = np.random.default_rng([seed, 5]).permutation(private)
    chosen = jnp.asarray(np.sort(drawn[:num_clients]))
    train, test = (
      Rows(part.index[chosen], part.count[chosen])
      for part in (data.train, data.test)
    )
    # the first windows of each: long roles would take most of the time
    test = Rows(test.index[:, :_TESTED], jnp.minimum(test.count, _TESTED))
    budget = jnp.full(num_clients, steps, jnp.int32)
    return data._replace(train=train, test=test, budget=budget)

  network = transformer(
    Shape(vocabulary=len(dealt.classes), heads=4, kv_heads=4, head_width=16)
  )
  x, y = (np.asarray(leaf) for leaf in data.heldout)
  return Task(
    network,
    last_token(network),
    local.next_tokens(network),
    (),
    Examples(*(jnp.asarray(leaf[seen]) for leaf in data.examples)),
    Dataset(
      x, y, x, y, len(dealt.classes), "shakespeare", dealt.source, dealt.licence
    ),
    of_seed,
    f"A causal transformer of 2 layers over {len(dealt.classes)} letters, "
    f"trained on {len(seen)} windows of {window} letters from {len(read)} "
    f"plays; clients are roles of the other {len(titles) - len(read)}, "
    f"{len(private)} to draw from; {len(dealt.heldout)} roles of all plays "
    "that nobody trains on judge.",
  )


def _shuffled(examples: Examples) -> Examples:
  order = np.random.default_rng(2).permutation(len(examples.y))
  return Examples(*(leaf[order] for leaf in examples))


def trained_base(
  task: Task, *, rate: float, batch_size: int, epochs: int, seed: int = 0
) -> Params:
  """Trains the network on the public examples, one line an epoch."""
  count = task.public.y.shape[0]
  optimizer = optax.adam(rate)

  @jax.jit
  def epoch(params, moments, public, key):
    # the examples are an argument: closed over they would be a constant
    data = ClientData(
      public, jnp.arange(count), jnp.int32(count), jnp.int32(NO_BUDGET)
    )
    return local.train(
      task.loss,
      params,
      data,
      key,
      optimizer=optimizer,
      batch_size=batch_size,
      epochs=1,
      opt_state=moments,
    )

  key = jax.random.key(seed)
  params = task.network.init(key)
  moments = optimizer.init(params)
  for i in range(epochs):
    done = epoch(params, moments, task.public, jax.random.fold_in(key, i))
    params, moments = done.params, done.opt_state
    print(
      f"base: epoch {i + 1} of {epochs}, loss {float(done.loss):.3f}",
      flush=True,
    )
  return params
