"""Partitioners: who holds which example, as lists of index arrays.

The names are those of flwr-datasets.  All but the natural ids take labels,
clients and a seed; the result depends on nothing else.  Binaries choose one by
a string: see `parse`.

Example:
  >>> parts = dirichlet([0, 1] * 50, 4, alpha=1.0)
  >>> sum(len(part) for part in parts)
  100
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_het.core.errors import UserError, unknown
from fedjax_het.data._affected import affected_dirichlet
from fedjax_het.data._cross_silo import class_shares, dual_dirichlet
from fedjax_het.data._dirichlet import dirichlet, inner_dirichlet
from fedjax_het.data._few_classes import pathological, shard
from fedjax_het.data._owners import check_labels
from fedjax_het.data._size_skew import (
  exponential,
  grouped_natural_id,
  iid,
  linear,
  natural_id,
  size,
  square,
)

__all__ = [
  "PARTITIONERS",
  "Partitioner",
  "affected_dirichlet",
  "class_shares",
  "dirichlet",
  "dual_dirichlet",
  "exponential",
  "grouped_natural_id",
  "iid",
  "inner_dirichlet",
  "linear",
  "natural_id",
  "parse",
  "pathological",
  "shard",
  "size",
  "square",
]


class Partitioner(NamedTuple):
  """A partitioner that a string can choose.

  build: (labels, num_clients, seed=, **options) -> index arrays.
  options: option name -> what turns its text into a value; a value without a
    name sets the first one.
  required: whether the first option must be given.
  """

  build: Callable[..., list[np.ndarray]]
  options: dict[str, Callable[[str], Any]]
  required: bool = False


def _inner_dirichlet(labels, num_clients, *, alpha, size=None, seed):
  n = check_labels(labels, num_clients).size
  if size is None:
    sizes = n // num_clients + (np.arange(num_clients) < n % num_clients)
  else:
    sizes = np.full(num_clients, size)
  return inner_dirichlet(labels, sizes, alpha=alpha, seed=seed)


def _size(labels, num_clients, *, size_each, seed):
  check_labels(labels, num_clients)
  return size(labels, np.full(num_clients, size_each), seed=seed)


def _bool(text):
  if text.lower() not in ("true", "false"):
    raise ValueError(text)
  return text.lower() == "true"


PARTITIONERS: dict[str, Partitioner] = {
  "iid": Partitioner(iid, {}),
  "dirichlet": Partitioner(
    dirichlet, {"alpha": float, "min_size": int, "balanced": _bool}, True
  ),
  "affected_dirichlet": Partitioner(
    affected_dirichlet, {"alpha": float, "affected": int, "min_size": int}, True
  ),
  "inner_dirichlet": Partitioner(
    _inner_dirichlet, {"alpha": float, "size": int}, True
  ),
  "dual_dirichlet": Partitioner(
    dual_dirichlet, {"alpha": float, "size_alpha": float, "min_size": int}
  ),
  "class_shares": Partitioner(class_shares, {"low": int, "high": int}),
  "pathological": Partitioner(
    pathological,
    {"num_classes_per_client": int, "class_assignment_mode": str},
    True,
  ),
  "shard": Partitioner(
    shard,
    {
      "num_shards_per_client": int,
      "shard_size": int,
      "keep_incomplete_shard": _bool,
    },
  ),
  "size": Partitioner(_size, {"size_each": int}, True),
  "linear": Partitioner(linear, {"min_size": int}),
  "square": Partitioner(square, {"min_size": int}),
  "exponential": Partitioner(exponential, {"growth": float, "min_size": int}),
}

_KINDS = {float: "a number", int: "a whole number", _bool: "true or false"}


def parse(
  spec: str,
  labels: Sequence[int] | np.ndarray,
  num_clients: int,
  seed: int = 0,
) -> list[np.ndarray]:
  """Runs the partitioner that a string names: `NAME[:VALUE][,OPTION=VALUE]`.

  Args:
    spec: e.g. "iid", "dirichlet:0.3", "dirichlet:0.1,min_size=2",
      "inner_dirichlet:0.3,size=60", "pathological:2", "shard:2", "size:60",
      "linear", "exponential:1.01".  The bare value sets the first option in
      `PARTITIONERS[NAME].options`.
    labels: i[n], the class of each example.
    num_clients: N.
    seed: of the NumPy generator.

  Returns:
    N disjoint index arrays.

  Raises:
    UserError: an unknown name or option, a value that is no number or out of
      range, or a partition that leaves a client empty.

  Example:
    >>> [len(part) for part in parse("size:3", [0, 1] * 5, 2)]
    [3, 3]
  """
  name, _, rest = spec.partition(":")
  if name in ("natural_id", "grouped_natural_id"):
    raise UserError(
      f"partition {spec!r} needs the id of each example: call "
      f"partition.{name}(ids, ...) or federated.from_arrays(x, y, ids)"
    )
  if name not in PARTITIONERS:
    raise unknown("partition", name, PARTITIONERS)
  build, kinds, required = PARTITIONERS[name]
  options = {}
  for position, item in enumerate(rest.split(",") if rest else []):
    option, equals, text = item.partition("=")
    if not equals:
      if position or not kinds:
        raise UserError(
          f"partition {spec!r}: {item!r} has no place; write OPTION=VALUE "
          f"with one of: {', '.join(kinds) or 'no options'}"
        )
      option, text = next(iter(kinds)), item
    option = option.strip()
    if option not in kinds:
      raise unknown(f"option of partition {name}", option, kinds)
    try:
      options[option] = kinds[option](text.strip())
    except ValueError:
      raise UserError(
        f"partition {spec!r}: {option} must be {_KINDS[kinds[option]]}, got "
        f"{text!r}"
      ) from None
  if required and next(iter(kinds)) not in options:
    raise UserError(
      f"partition {spec!r} needs a value for {next(iter(kinds))}: write "
      f"{name}:VALUE"
    )
  return build(labels, num_clients, seed=seed, **options)
