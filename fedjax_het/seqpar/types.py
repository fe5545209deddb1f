"""What a planner reads and what it hands to the executor.

A *group* is an aligned block of `degree` devices (a power of two) that holds
a micro-batch of sequences together, each sequence split evenly over the block.
A plan is a list of such groups with their micro-batches, in one of two forms:

* `barrier=True`: all tasks of a step start together, and the step ends when
  its slowest group ends (parameters are gathered once a step, as by ZeRO-3);
* `barrier=False`, *laminar*: a device runs the tasks whose block covers it in
  increasing `step`, larger degrees first, and waits for nobody else.

In both forms the tasks that cover one device have distinct, increasing steps,
and two tasks of the same step share no device.

Units: seconds, bytes, tokens; bandwidth in bytes/s.
Shape legend: S sequences, D devices, T tasks.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np


class Cluster(NamedTuple):
  """The devices, in mesh order: a group is a run of neighbours.

  speed: f64[D], relative to the device on which the model was measured (1.0).
  memory: f64[D], bytes that a training step may use.
  node_size: devices that share a node, neighbours in this order.
  bandwidth: group degree -> bytes/s of the all-to-all per device; a degree
    that is not listed is not used (degree 1 needs no entry).
  """

  speed: np.ndarray
  memory: np.ndarray
  node_size: int
  bandwidth: Mapping[int, float]

  @property
  def num_devices(self) -> int:
    return len(self.speed)


class Task(NamedTuple):
  """One group's one micro-batch.

  step: index of the micro-batch.
  first: the first device; the group is `first .. first + degree - 1`, aligned:
    `first % degree == 0`.
  degree: how many devices, a power of two.
  sequences: positions in the plan's `lengths`.
  """

  step: int
  first: int
  degree: int
  sequences: tuple[int, ...]


class Plan(NamedTuple):
  """One training step: who computes what, with whom, and when.

  lengths: i64[S], tokens of each sequence.
  num_devices: D.
  tasks: sorted by (step, first).
  barrier: whether a step waits for all its groups (see the module's text).
  seconds: predicted time of the whole step.
  task_seconds: f64[T], predicted time of each task.
  device_seconds: f64[D], how long each device computes or communicates.
  device_memory: f64[D], bytes at each device's fullest moment, model included.
  lower_bound: seconds that no plan of this form can beat.
  split_bound: seconds that no plan with the same steps for the same sequences
    can beat (the fluid LP); never below `lower_bound`.  Laminar plans have no
    such split: there it equals `lower_bound`.
  planner: which planner made it, e.g. "shapes".
  solve_seconds: wall time that planning took, bounds included.
  details: what the planner tells beside, e.g. a solver's own bound.
  """

  lengths: np.ndarray
  num_devices: int
  tasks: tuple[Task, ...]
  barrier: bool
  seconds: float
  task_seconds: np.ndarray
  device_seconds: np.ndarray
  device_memory: np.ndarray
  lower_bound: float
  split_bound: float
  planner: str
  solve_seconds: float
  details: Mapping[str, float] = MappingProxyType({})

  @property
  def num_steps(self) -> int:
    return 1 + max((task.step for task in self.tasks), default=-1)

  @property
  def gap(self) -> float:
    """How far above the tightest bound the plan is: 0.02 is 2 %."""
    return self.seconds / max(self.lower_bound, self.split_bound) - 1
