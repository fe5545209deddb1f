"""Concept shift: the same inputs mean different things to different clients.

Each client has a `Concept`, a map of the labels: what the world calls class y,
this client calls table[y].  P(x) is the same everywhere and P(y | x) is not,
so that no single model can serve two concepts; clustering can.

Example:
  >>> [tuple(int(y) for y in c.table) for c in feddaa(3)[:2]]
  [(0, 1, 2), (2, 1, 0)]

References:
  FedDAA, arXiv:2506.21054, whose four concepts `feddaa` gives.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from fedjax_het.core.errors import UserError, unknown
from fedjax_het.core.types import Examples, FederatedData
from fedjax_het.data._groups import deal_groups, heldout_codes, number
from fedjax_het.data._owners import NOBODY
from fedjax_het.data._rows import owners


class Concept(NamedTuple):
  """A map of the labels.

  name: tells concepts apart; two concepts of one name must be the same.
  table: i64[K], the client's label for each class.
  """

  name: str
  table: np.ndarray


def same(num_classes: int) -> Concept:
  """y -> y."""
  return label_map("same", np.arange(num_classes))


def reverse(num_classes: int) -> Concept:
  """y -> K - 1 - y."""
  return label_map("reverse", np.arange(num_classes)[::-1])


def shift(num_classes: int, by: int) -> Concept:
  """y -> (y + by) mod K."""
  return label_map(f"shift:{by}", (np.arange(num_classes) + by) % num_classes)


def permutation(num_classes: int, seed: int) -> Concept:
  """y -> a random permutation of the classes."""
  table = np.random.default_rng(seed).permutation(num_classes)
  return label_map(f"permutation:{seed}", table)


def label_map(name: str, table: Sequence[int] | np.ndarray) -> Concept:
  """Your own map: class y becomes table[y].

  Args:
    name: tells it from the other concepts.
    table: i[K], values 0 to K - 1; two classes may become one.

  Returns:
    The concept.

  Raises:
    UserError: a table that is not such a list.
  """
  array = np.asarray(table)
  if (
    array.ndim != 1
    or not array.size
    or array.dtype.kind not in "iu"
    or array.min() < 0
    or array.max() >= array.size
  ):
    raise UserError(
      f"concept {name}: the table must list a label 0 to K - 1 for each of K "
      f"classes, got {array.tolist()}"
    )
  return Concept(name, array.astype(np.int64))


def feddaa(num_classes: int) -> tuple[Concept, ...]:
  """FedDAA's four: y, K - 1 - y, y + 1 mod K, y + 2 mod K."""
  k = num_classes
  return same(k), reverse(k), shift(k, 1), shift(k, 2)


def apply(
  data: FederatedData,
  concepts: Sequence[Concept],
  *,
  heldout: str = "plain",
  seed: int = 0,
) -> FederatedData:
  """Renames the train and test labels of each client by its own concept.

  Args:
    data: a data set in which no two clients share a row.
    concepts: one a client; concepts of one name must be the same.
    heldout: what the examples that judge the global model are called: "plain",
      as they are; "share", an equal share of them, at random, by each of the
      clients' concepts; "every", all of them by each concept.  Under "share"
      and "every" the best that one model can reach is the share of the concept
      that most agree on, e.g. 1/4 for four that never agree.
    seed: of the shares.

  Returns:
    The data set with other `y`; inputs, rows and budgets as before.

  Raises:
    UserError: clients that share rows, not one concept a client, or a table
      that is too short for the labels.
  """
  y = np.asarray(data.examples.y)
  distinct, code = number("concept", concepts, data.num_clients)
  owner = owners(data)
  each = np.where(owner == NOBODY, -1, code[owner])
  held_x, held_y = np.asarray(data.heldout.x), np.asarray(data.heldout.y)
  rows, held = heldout_codes(
    heldout, held_y.size, len(distinct), np.random.default_rng([seed, 3])
  )
  return data._replace(
    examples=data.examples._replace(y=_labels(renamed(y, each, distinct))),
    heldout=Examples(
      jnp.asarray(held_x[rows]),
      _labels(renamed(held_y[rows], held, distinct)),
    ),
  )


def renamed(
  y: np.ndarray, code: np.ndarray, concepts: Sequence[Concept]
) -> np.ndarray:
  """Each label under the concept that its code names.

  Args:
    y: i[n].
    code: i[n], positions in `concepts`; -1 leaves the label alone.
    concepts: at least 1, tables of one length.

  Returns:
    i64[n].

  Raises:
    UserError: tables of different lengths, or too short for the labels.
  """
  sizes = {concept.table.size for concept in concepts}
  if len(sizes) > 1 or y.max() >= min(sizes):
    raise UserError(
      f"concepts must list the labels of all classes: the largest label is "
      f"{y.max()}, the tables have {sorted(sizes)} entries"
    )
  tables = np.stack([concept.table for concept in concepts])
  return np.where(code < 0, y, tables[code, y])


def by_group(
  num_clients: int, concepts: Sequence[Concept], seed: int | None = None
) -> list[Concept]:
  """One of a few concepts for each client, in groups of equal size.

  Args:
    num_clients: N, at least the number of concepts.
    concepts: V.
    seed: of a random deal; None gives client k concept k mod V.

  Returns:
    N concepts, for `apply`.
  """
  return [concepts[g] for g in deal_groups(num_clients, len(concepts), seed)]


def parse(
  spec: str, num_classes: int, num_clients: int, seed: int | None = None
) -> list[Concept]:
  """Deals concepts that a string names.

  Args:
    spec: "feddaa", or names with "/" between them: "same", "reverse",
      "shift:1", "permutation:7" (7 is its seed).
    num_classes: K.
    num_clients: N.
    seed: as in `by_group`.

  Returns:
    N concepts.

  Raises:
    UserError: an unknown name, or a value that is no whole number.
  """
  if spec == "feddaa":
    return by_group(num_clients, feddaa(num_classes), seed)
  plain = {"same": same, "reverse": reverse}
  numbered = {"shift": shift, "permutation": permutation}
  concepts = []
  for item in spec.split("/"):
    name, colon, text = item.strip().partition(":")
    if name in plain and not colon:
      concepts.append(plain[name](num_classes))
    elif name in numbered:
      try:
        concepts.append(numbered[name](num_classes, int(text)))
      except ValueError:
        raise UserError(
          f"concepts {spec!r}: {name} must have a whole number, as {name}:1"
        ) from None
    else:
      raise unknown("concept", item, ["feddaa", *plain, *numbered])
  return by_group(num_clients, concepts, seed)


def _labels(y):
  return jnp.asarray(y, jnp.int32)
