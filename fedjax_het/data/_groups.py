"""What views and concepts share: groups of clients, and held-out examples."""

from collections.abc import Sequence

import numpy as np

from fedjax_het.core.errors import UserError, unknown

HELDOUT = ("plain", "share", "every")


def deal_groups(
  num_clients: int, num_groups: int, seed: int | None = None
) -> np.ndarray:
  """Puts clients into groups as equal in size as can be.

  Args:
    num_clients: N, at least `num_groups`.
    num_groups: G.
    seed: of a random deal; None puts client k into group k mod G.

  Returns:
    i64[N], the group of each client.

  Raises:
    UserError: fewer clients than groups.
  """
  if not 1 <= num_groups <= num_clients:
    raise UserError(
      f"{num_clients} clients cannot be dealt to {num_groups} groups: give 1 "
      "to as many groups as clients"
    )
  group = np.arange(num_clients) % num_groups
  return (
    group if seed is None else np.random.default_rng(seed).permutation(group)
  )


def number(kind: str, items: Sequence, num_clients: int):
  """Tells the clients' views or concepts apart by their names.

  Args:
    kind: "view" or "concept", for the error.
    items: one a client, each with a `name`.
    num_clients: N.

  Returns:
    The distinct items, a tuple, and the number of each client's item, i64[N].

  Raises:
    UserError: not one item a client.
  """
  items = list(items)
  if len(items) != num_clients:
    raise UserError(
      f"{len(items)} {kind}s for {num_clients} clients: give one a client "
      "(by_group deals a few to many clients)"
    )
  distinct = {item.name: item for item in items}
  place = {name: k for k, name in enumerate(distinct)}
  code = np.array([place[item.name] for item in items])
  return tuple(distinct.values()), code


def heldout_codes(
  mode: str, size: int, num_codes: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
  """Which held-out examples to show, and how each is changed.

  Args:
    mode: "plain" changes none; "share" deals an equal share to each code, at
      random; "every" repeats all examples for each code.
    size: m, held-out examples.
    num_codes: V, the views or concepts in use.
    rng: for "share".

  Returns:
    rows i64[m'], codes i64[m'] (-1: unchanged), m' = V m for "every", else m.

  Raises:
    UserError: an unknown mode.
  """
  rows = np.arange(size)
  if mode == "plain":
    return rows, np.full(size, -1)
  if mode == "share":
    return rows, rng.permutation(rows % num_codes)
  if mode == "every":
    return np.tile(rows, num_codes), np.repeat(np.arange(num_codes), size)
  raise unknown("way to treat held-out data", mode, HELDOUT)
