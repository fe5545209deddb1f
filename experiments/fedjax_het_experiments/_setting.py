"""What all methods of a comparison share, read from the shared flags."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags

from fedjax_het.core.rounds import Select, Selector
from fedjax_het.core.types import Devices, FederatedData, Model
from fedjax_het.data import concept, feature_skew
from fedjax_het.data.concept import Concept
from fedjax_het.data.feature_skew import View
from fedjax_het.data.sources import Dataset
from fedjax_het.devices import availability, profiles
from fedjax_het.selection import parse, uniform
from fedjax_het_experiments import _flags


def _uniform(cohort_size: int, num_rounds: int) -> Select:
  del num_rounds
  return uniform(cohort_size)


class Setting(NamedTuple):
  """What all methods of a comparison share.

  dataset, partition ("dirichlet:0.5"), num_clients: the federated problem.
  model: the network.
  cohort_size, rounds, eval_every: the schedule.
  workdir: where it is kept;  config: recorded with it, guards --resume.
  options: further arguments of `training.run.train` (resume, overwrite, ...).
  devices: the fleet, or None.
  select: (cohort_size, rounds) -> who trains.
  deadline: of a round, in virtual seconds, or None.
  views, concepts: one a client (`data.feature_skew`, `data.concept`), or None.
  width: the rows of a client are padded to this many at least, so that several
    partitions share their compiled programs.
  natural: seed -> clients as the world divided them, instead of the partition;
    all seeds share the examples.
  """

  dataset: Dataset
  partition: str
  num_clients: int
  model: Model
  cohort_size: int
  rounds: int
  eval_every: int
  workdir: pathlib.Path
  config: Mapping[str, Any]
  options: Mapping[str, Any] = {}
  devices: Devices | None = None
  select: Callable[[int, int], Select | Selector] = _uniform
  deadline: float | None = None
  views: Sequence[View] | None = None
  concepts: Sequence[Concept] | None = None
  width: int = 0
  natural: Callable[[int], FederatedData] | None = None


def from_flags(
  dataset: Dataset,
  model: Model,
  decisive: Sequence[flags.FlagHolder] = (),
) -> Setting:
  """A setting as the shared flags say.

  Args:
    dataset, model: see `Setting`.
    decisive: the binary's own flags that change results; --resume refuses a
      run in which they or the shared ones differ.

  Raises:
    UserError: an unknown fleet, availability, selection, view or concept.
  """
  clients = _flags.NUM_CLIENTS.value
  one = _flags.PARTITION.name in flags.FLAGS  # `compare` takes several
  partition = _flags.PARTITION.value if one else ""
  skew, shift = _flags.FEATURE_SKEW.value, _flags.CONCEPT_SHIFT.value
  devices = None
  if _flags.FLEET.value != "none":
    devices = availability.parse(
      _flags.AVAILABILITY.value, profiles.parse(_flags.FLEET.value, clients)
    )
  selection = _flags.SELECTION.value
  parse(selection, 1, 1)  # a mistake must not wait for the data
  shared = (
    _flags.DATASET,
    _flags.MODEL,
    _flags.LOCAL_EPOCHS,
    _flags.BATCH_SIZE,
    _flags.NUM_CLIENTS,
    _flags.COHORT_SIZE,
    _flags.EVAL_EVERY,
    _flags.FEATURE_SKEW,
    _flags.CONCEPT_SHIFT,
    _flags.FLEET,
    _flags.AVAILABILITY,
    _flags.SELECTION,
    _flags.DEADLINE,
  )
  return Setting(
    dataset=dataset,
    partition=partition,
    num_clients=clients,
    model=model,
    cohort_size=_flags.COHORT_SIZE.value,
    rounds=_flags.ROUNDS.value,
    eval_every=_flags.EVAL_EVERY.value,
    workdir=pathlib.Path(_flags.WORKDIR.value),
    config={"partition": partition}
    | {flag.name: flag.value for flag in (*shared, *decisive)},
    options={
      "resume": _flags.RESUME.value,
      "overwrite": _flags.OVERWRITE.value,
      "tensorboard": _flags.TENSORBOARD.value,
    },
    devices=devices,
    select=lambda cohort_size, rounds: parse(selection, cohort_size, rounds),
    deadline=_flags.DEADLINE.value,
    views=None if skew == "none" else feature_skew.parse(skew, clients),
    concepts=None
    if shift == "none"
    else concept.parse(shift, dataset.num_classes, clients),
  )
