"""Drift: what each client holds changes from time slot to time slot.

Three things can change, together or alone:

- virtual drift: the client's view, P(x) (`feature_skew`);
- real drift: its concept, P(y | x) (`concept`);
- label drift: its class mix, P(y), by taking over another client's part.

Each follows a `Schedule`.  All slots have the same shapes and dtypes, so that a
block jitted for one serves all.  The truth is kept beside the data, to judge
detectors and clusterings with.

Example:
  >>> from fedjax_het.data import sources
  >>> digits = sources.load("digits")
  >>> story = feddaa(digits, num_clients=12)
  >>> story.num_slots, story.at(1).num_clients
  (6, 12)
  >>> [sorted(set(row.tolist())) for row in story.concept[:3]]
  [[0, 1], [0, 1, 2], [0, 1, 2, 3]]

References:
  FedDAA, arXiv:2506.21054.  Gama et al., A survey on concept drift adaptation,
  ACM Computing Surveys 46(4), 2014 (sudden, gradual, incremental, recurring).
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from fedjax_het.core.errors import UserError
from fedjax_het.core.types import Examples, FederatedData
from fedjax_het.data import concept as concepts_of
from fedjax_het.data import feature_skew
from fedjax_het.data._groups import deal_groups
from fedjax_het.data._owners import NOBODY
from fedjax_het.data._rows import owners
from fedjax_het.data._schedule import (
  Schedule,
  gradual,
  incremental,
  recurring,
  redealt,
  sudden,
  table,
)
from fedjax_het.data._slots import (
  check_pieces,
  check_schedule,
  codes_now,
  judges,
  parts_of,
  take_piece,
  turns,
)
from fedjax_het.data.concept import Concept
from fedjax_het.data.feature_skew import PLAIN, View, rotation
from fedjax_het.data.federated import federate
from fedjax_het.data.partition import iid
from fedjax_het.data.sources import Dataset

__all__ = [
  "Drift",
  "Schedule",
  "by_block",
  "feddaa",
  "gradual",
  "incremental",
  "make",
  "recurring",
  "redealt",
  "sudden",
  "table",
]


class Drift(NamedTuple):
  """A federated data set that changes, and the truth about it.

  num_slots: T.
  at: slot -> `FederatedData`, of the same shapes in every slot.  It works on
    the host; the last slot asked for is kept.
  concept, view: i64[T, N], the concept and the view that a client has in each
    slot (or is moving to); None where nobody knows.
  real, virtual, label: bool[T, N], whether its concept, its view or the part
    that it holds differs from the slot before; False in slot 0, None where
    nobody knows.
  views, concepts: names, by number.
  heldout: (view, concept) -> `Examples`, all held-out examples in this view
    under this concept: to judge each of several models.
  """

  num_slots: int
  at: Callable[[int], FederatedData]
  concept: np.ndarray | None
  view: np.ndarray | None
  real: np.ndarray | None
  virtual: np.ndarray | None
  label: np.ndarray | None
  views: tuple[str, ...]
  concepts: tuple[str, ...]
  heldout: Callable[[int, int], Examples]


def make(
  data: FederatedData,
  num_slots: int,
  *,
  views: Sequence[View] = (PLAIN,),
  view: Schedule | np.ndarray | None = None,
  concepts: Sequence[Concept] | None = None,
  concept: Schedule | np.ndarray | None = None,
  part: Schedule | np.ndarray | None = None,
  fresh: bool = False,
  heldout: str = "now",
  seed: int = 0,
) -> Drift:
  """Lets a federated data set drift.

  Args:
    data: who holds what before any drift; no two clients share a row.
    num_slots: T.
    views: what the schedule of views counts.
    view: its schedule, or a table i[T, N]; None: `views[0]` for ever.
    concepts: what the schedule of concepts counts; None: the labels as they
      are.
    concept: its schedule, or a table i[T, N]; None: `concepts[0]` for ever.
    part: whose part of `data` each client holds, a schedule of permutations
      (`redealt`); None: its own.  View and concept stay with the client.
    fresh: cut each client's train and test rows into T pieces, one a slot.
      False gives all of them in every slot, as FedDAA does.
    heldout: "plain" (as they are); "now", each held-out example as a random
      client has it in this slot; "share", an equal share for every pair of a
      view and a concept; "every", all examples for every pair.  The last two
      are the same in all slots, and so they also count what was forgotten.
    seed: of noise, shares and who changes first in a gradual drift.

  Returns:
    The drift.

  Raises:
    UserError: schedules of another size than [T, N] or with numbers that do
      not exist, parts that are no permutation, too few rows to cut, clients
      that share rows.
  """
  shape = num_slots, data.num_clients
  x, y = np.asarray(data.examples.x), np.asarray(data.examples.y)
  held = np.asarray(data.heldout.x), np.asarray(data.heldout.y)
  if concepts is None:
    concepts = (concepts_of.same(int(max(y.max(), held[1].max())) + 1),)
  view = check_schedule("view", view, shape, len(views))
  concept = check_schedule("concept", concept, shape, len(concepts))
  parts = parts_of(part, shape)
  rows = tuple(
    (np.asarray(split.index), np.asarray(split.count))
    for split in (data.train, data.test)
  )
  pieces = num_slots if fresh else 1
  check_pieces(rows, pieces)
  owner = owners(data)
  # not `data`: what has drifted must not keep the original on the device
  rest = data._replace(examples=None, train=None, test=None, heldout=None)
  extent = feature_skew.measure(x)
  turn = turns(owner, seed)

  def show(x, y, codes, stream):
    seen = feature_skew.look(x, codes[0], views, extent, [seed, *stream])
    called = concepts_of.renamed(y, codes[1], concepts)
    return Examples(jnp.asarray(seen), jnp.asarray(called, jnp.int32))

  judged_by = judges(held, heldout, len(views), len(concepts), shape[1], seed)
  fixed = None if heldout == "now" else show(*judged_by, stream=[5])

  @functools.lru_cache(maxsize=1)
  def at(slot):
    if not 0 <= slot < num_slots:
      raise UserError(f"slot {slot}: there are slots 0 to {num_slots - 1}")
    holder = np.argsort(parts[slot])  # part -> client
    client = np.where(owner == NOBODY, NOBODY, holder[owner])
    codes = [codes_now(which, slot, client, turn) for which in (view, concept)]
    judged = fixed
    if judged is None:
      now = [codes_now(which, slot, *judged_by[2]) for which in (view, concept)]
      judged = show(*judged_by[:2], now, [5, slot])
    train, test = (
      take_piece(*split, slot % pieces, pieces, parts[slot]) for split in rows
    )
    return rest._replace(
      examples=show(x, y, codes, [6, slot]),
      train=train,
      test=test,
      heldout=judged,
    )

  def heldout_in(view, concept):
    size = held[1].size
    return show(*held, (np.full(size, view), np.full(size, concept)), [7])

  moved = np.zeros(shape, bool)
  moved[1:] = parts[1:] != parts[:-1]
  return Drift(
    num_slots=num_slots,
    at=at,
    concept=concept.code,
    view=view.code,
    real=concept.changed,
    virtual=view.changed,
    label=moved,
    views=tuple(item.name for item in views),
    concepts=tuple(item.name for item in concepts),
    heldout=heldout_in,
  )


def feddaa(
  dataset: Dataset,
  *,
  num_clients: int = 60,
  num_slots: int = 6,
  views: Sequence[View] | None = None,
  real: bool = True,
  virtual: bool = True,
  heldout: str = "share",
  test_fraction: float = 0.2,
  seed: int = 0,
) -> Drift:
  """FedDAA's story: IID clients, four concepts, images that turn.

  Concepts are y, K - 1 - y, y + 1 mod K and y + 2 mod K.  Two of them in slot
  0, three in slot 1, all four from then on; in each slot they are dealt anew,
  in groups of equal size.  The images of all clients are turned by 0, 120 or
  240 degrees in slot t mod 3.

  Their release draws the deal from an unseeded generator and lets a client
  take over the images of another together with its concept; here it keeps its
  images, which are IID in any case.

  Args:
    dataset: from `sources.load`; theirs is "fashion_mnist".
    num_clients: N, 60 (of 1,000 images each).
    num_slots: T.
    views: other views than the three rotations, e.g. milder ones; all clients
      have view t mod V.
    real: False: one deal of the four concepts for ever.
    virtual: False: `views[0]` for ever.
    heldout: as in `make`; theirs is "every", the whole test set once for each
      pair of a concept and a rotation; "share" has the same expectation.
    test_fraction: of each client's rows.
    seed: of everything.

  Returns:
    The drift.
  """
  if views is None:
    views = [rotation(angle) for angle in (0, 120, 240)]
  concepts = concepts_of.feddaa(dataset.num_classes)
  rng = np.random.default_rng([seed, 8])
  concept = [
    rng.permutation(deal_groups(num_clients, min(t + 2, 4) if real else 4))
    for t in range(num_slots if real else 1)
  ]
  view = recurring(num_slots, range(len(views) if virtual else 1), num_clients)
  parts = iid(dataset.train_y, num_clients, seed=seed)
  return make(
    federate(dataset, parts, test_fraction=test_fraction, seed=seed),
    num_slots,
    views=views,
    view=view,
    concepts=concepts,
    concept=np.broadcast_to(concept, (num_slots, num_clients)),
    heldout=heldout,
    seed=seed,
  )


def by_block(
  drift: Drift, blocks_per_slot: int
) -> Callable[[int], FederatedData]:
  """The data of each block of rounds, for `training.run.train`.

  Args:
    drift: T slots.
    blocks_per_slot: blocks of rounds that a slot lasts, >= 1.

  Returns:
    block number -> data; the last slot stays.
  """
  if blocks_per_slot < 1:
    raise UserError(f"blocks_per_slot must be 1 or more, got {blocks_per_slot}")
  last = drift.num_slots - 1
  return lambda block: drift.at(min(block // blocks_per_slot, last))
