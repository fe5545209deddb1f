"""From tasks to a plan: predicted times and memory, and the check of a plan."""

from collections.abc import Iterable, Sequence

import numpy as np

from fedjax_het.seqpar import cost
from fedjax_het.seqpar.problem import Problem
from fedjax_het.seqpar.types import Cluster, Plan, Task


def kind_of(problem: Problem, task: Task) -> int:
  """The kind of group that computes a task."""
  return int(problem.kinds.blocks[task.degree][task.first // task.degree])


def task_seconds(problem: Problem, tasks: Sequence[Task]) -> np.ndarray:
  """Seconds of each task, f64[T]."""
  seconds = []
  for task in tasks:
    j = kind_of(problem, task)
    own = problem.seconds[list(task.sequences), j]
    seconds.append(problem.kinds.fixed[j] + own.sum())
  return np.array(seconds)


def starts(
  tasks: Sequence[Task], seconds: np.ndarray, barrier: bool, num_devices: int
) -> np.ndarray:
  """When each task starts, f64[T].

  Args:
    tasks: sorted by step.
    seconds: f64[T], of each task.
    barrier: whether a step starts when the one before has ended everywhere,
      or each task when its own devices are free.
    num_devices: D.
  """
  ready, begin = np.zeros(num_devices), np.zeros(len(tasks))
  step, now = -1, 0.0
  for i, task in enumerate(tasks):
    if task.step > step:
      step, now = task.step, float(ready.max())
    block = slice(task.first, task.first + task.degree)
    begin[i] = now if barrier else ready[block].max()
    ready[block] = begin[i] + seconds[i]
  return begin


def predict(problem: Problem, tasks: Iterable[Task], barrier: bool) -> float:
  """When the last task ends."""
  tasks = in_order(tasks)
  seconds = task_seconds(problem, tasks)
  begin = starts(tasks, seconds, barrier, problem.num_devices)
  return float((begin + seconds).max())


def device_seconds(problem: Problem, tasks: Sequence[Task]) -> np.ndarray:
  """How long each device is busy, f64[D]."""
  busy = np.zeros(problem.num_devices)
  for task, seconds in zip(tasks, task_seconds(problem, tasks), strict=True):
    busy[task.first : task.first + task.degree] += seconds
  return busy


def in_order(tasks: Iterable[Task]) -> tuple[Task, ...]:
  """Sorted by step and first device; empty tasks and steps are dropped."""
  busy = [task for task in tasks if task.sequences]
  steps = {s: i for i, s in enumerate(sorted({task.step for task in busy}))}
  busy = [task._replace(step=steps[task.step]) for task in busy]
  return tuple(sorted(busy, key=lambda task: (task.step, task.first)))


def memory(
  problem: Problem,
  tasks: Sequence[Task],
  cluster: Cluster,
  model: cost.ModelCost,
) -> np.ndarray:
  """Bytes at each device's fullest moment, f64[D]."""
  tokens = np.zeros(cluster.num_devices)
  for task in tasks:
    block = slice(task.first, task.first + task.degree)
    held = problem.lengths[list(task.sequences)].sum() / task.degree
    tokens[block] = np.maximum(tokens[block], held)
  return model.state_bytes(cluster.num_devices) + tokens * model.token_bytes


def check(plan: Plan, problem: Problem) -> None:
  """Makes sure that a plan can be run and that its figures are right.

  Args:
    plan: any plan of the problem.
    problem: the batch and cluster that it is for.

  Raises:
    ValueError: names the first thing that is wrong.
  """
  _check_sequences(plan, problem)
  _check_devices(plan)
  for task in plan.tasks:
    _check_memory(task, problem)
  seconds = task_seconds(problem, plan.tasks)
  total = predict(problem, plan.tasks, plan.barrier)
  _require(
    np.allclose(seconds, plan.task_seconds, rtol=1e-9)
    and np.isclose(total, plan.seconds, rtol=1e-9),
    f"predicted {plan.seconds} s, the tasks take {total} s",
  )
  for name in ("lower_bound", "split_bound"):
    bound = getattr(plan, name)
    _require(
      bound <= plan.seconds * (1 + 1e-6),
      f"{plan.seconds} s are below {name} {bound} s",
    )


def _check_sequences(plan: Plan, problem: Problem) -> None:
  placed = [k for task in plan.tasks for k in task.sequences]
  times = np.bincount(placed, minlength=len(problem.lengths))
  _require(
    len(times) == len(problem.lengths) and (times == 1).all(),
    f"sequences placed not exactly once: {np.nonzero(times != 1)[0][:5]}",
  )


def _check_devices(plan: Plan) -> None:
  last = np.full(plan.num_devices, -1)
  width = np.full(plan.num_devices, plan.num_devices)
  for task in plan.tasks:
    d = task.degree
    _require(
      d > 0
      and d & (d - 1) == 0
      and task.first % d == 0
      and 0 <= task.first <= plan.num_devices - d,
      f"{task} is no aligned block of {plan.num_devices} devices",
    )
    block = slice(task.first, task.first + d)
    _require(
      (last[block] < task.step).all(),
      f"{task} shares devices with a task of its step or comes too late",
    )
    last[block] = task.step
    _require(
      plan.barrier or (width[block] >= d).all(),
      f"{task} comes after a task of fewer devices",
    )
    width[block] = d


def _check_memory(task: Task, problem: Problem) -> None:
  _require(
    task.degree in problem.kinds.blocks, f"{task}: the degree is not offered"
  )
  held = int(problem.lengths[list(task.sequences)].sum())
  limit = int(problem.kinds.tokens[kind_of(problem, task)])
  _require(held <= limit, f"{task} has {held} tokens, its group holds {limit}")


def _require(holds: bool, otherwise: str) -> None:
  if not holds:
    raise ValueError(f"not a valid plan: {otherwise}")
