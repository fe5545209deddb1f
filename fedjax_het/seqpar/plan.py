"""Plans a training step over sequences of unequal lengths: the one call.

Example:
  >>> from fedjax_het.seqpar.presets import a100_cluster, gpt
  >>> made = plan([100_000] + 4 * [48_000], a100_cluster(), gpt("7b"))
  >>> made.planner, [task.degree for task in made.tasks]
  ('shapes', [32, 8, 8, 8, 8])
"""

import inspect
import math
import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from fedjax_het.core.errors import UserError, unknown
from fedjax_het.seqpar import bounds, schedule
from fedjax_het.seqpar.cost import ModelCost
from fedjax_het.seqpar.greedy import greedy
from fedjax_het.seqpar.milp import milp
from fedjax_het.seqpar.problem import Problem, make_problem
from fedjax_het.seqpar.shapes import shapes
from fedjax_het.seqpar.tree import tree
from fedjax_het.seqpar.types import Cluster, Plan, Task
from fedjax_het.seqpar.uniform import adaptive, static

# (problem, its own options) -> tasks, or (tasks, details)
PLANNERS: dict[str, Callable] = {
  "static": static,
  "adaptive": adaptive,
  "greedy": greedy,
  "milp": milp,
  "shapes": shapes,
  "tree": tree,
}
_LAMINAR = ("tree",)
# What `auto` tries, with nominal seconds a sequence: a count of work, not of
# time, so that the choice does not depend on how busy a machine is.
_AUTO = {"adaptive": 2e-4, "shapes": 8e-4, "tree": 8e-4}


def plan(
  lengths: ArrayLike,
  cluster: Cluster,
  model: ModelCost,
  planner: str = "auto",
  *,
  degrees: Sequence[int] | None = None,
  seed: int = 0,
  **options,
) -> Plan:
  """Plans one training step and checks the plan.

  Args:
    lengths: tokens of each sequence of the batch.
    cluster: the devices.
    model: what a sequence costs on them.
    planner: "static" and "adaptive" (one degree), "greedy" (in the manner of
      Megatron-LM), "milp" (FlexSP's), "shapes", "tree" (no barriers), or
      "auto": the best of those that are legal and within the budget.
    degrees: which degrees to use; None: all for which the cluster has a
      bandwidth, and 1.
    seed: for planners that draw at random ("milp" and "tree").
    **options: the planner's own, e.g. `degree` of "static", `time_limit` of
      "milp"; "auto" has `budget_seconds` (default 10): by nominal costs, not
      by the clock, it tries adaptive, shapes, tree in this order while the
      budget lasts, at least the first.

  Returns:
    A `Plan` that holds every sequence once, keeps the memory limits and does
    not claim to beat its own lower bounds.  Equal arguments give equal plans
    (but for "milp", which stops by the clock).

  Raises:
    UserError: for an unknown planner or option; for "tree" where weights are
      gathered for every micro-batch; and whatever `make_problem` and the
      planner raise, e.g. for a sequence that fits nowhere.
  """
  started = time.perf_counter()
  if planner not in {*PLANNERS, "auto"}:
    raise unknown("planner", planner, [*PLANNERS, "auto"])
  if planner in _LAMINAR and model.needs_barrier:
    raise UserError(
      f"planner {planner!r} runs without barriers, but this model gathers its "
      "weights for every micro-batch: use shapes, or a ZeRO stage below 3"
    )
  problem = make_problem(lengths, cluster, model, degrees)
  _check_options(planner, options)
  if planner == "auto":
    planner, tasks = _best(problem, model, seed, **options)
    details = {}
  else:
    tasks, details = _run(planner, problem, seed, **options)
  barrier = planner not in _LAMINAR
  tasks = schedule.in_order(tasks)
  lower, split = _bounds(problem, tasks, barrier)
  result = Plan(
    lengths=problem.lengths,
    num_devices=problem.num_devices,
    tasks=tasks,
    barrier=barrier,
    seconds=schedule.predict(problem, tasks, barrier),
    task_seconds=schedule.task_seconds(problem, tasks),
    device_seconds=schedule.device_seconds(problem, tasks),
    device_memory=schedule.memory(problem, tasks, cluster, model),
    lower_bound=lower,
    split_bound=split,
    planner=planner,
    solve_seconds=time.perf_counter() - started,
    details=details,
  )
  schedule.check(result, problem)
  return result


def validate(
  made: Plan,
  cluster: Cluster,
  model: ModelCost,
  degrees: Sequence[int] | None = None,
) -> None:
  """Checks a plan, e.g. one read from a file or changed by hand.

  Args:
    made: the plan.
    cluster, model, degrees: as for `plan`.

  Raises:
    ValueError: names what is wrong (a sequence missing or twice, devices used
      twice at a time, too many tokens, wrong figures).
    UserError: as `plan`, if the batch does not fit the cluster.
  """
  schedule.check(made, make_problem(made.lengths, cluster, model, degrees))


def _run(planner: str, problem: Problem, seed: int, **options):
  """(tasks, details) of a planner."""
  function = PLANNERS[planner]
  if "seed" in inspect.signature(function).parameters:
    options["seed"] = seed
  made = function(problem, **options)
  return made if isinstance(made, tuple) else (made, {})


def _best(
  problem: Problem,
  model: ModelCost,
  seed: int,
  *,
  budget_seconds: float = 10.0,
) -> tuple[str, Sequence[Task]]:
  """(name, tasks) of the fastest plan; the first wins a draw."""
  left, best, found = budget_seconds, math.inf, None
  kinds = problem.kinds
  unlike = len(kinds.degree) / len(kinds.blocks)  # 1 where devices are alike
  for name, nominal in _AUTO.items():
    left -= nominal * len(problem.lengths) * unlike
    if (found and left < 0) or (name in _LAMINAR and model.needs_barrier):
      continue
    tasks, _ = _run(name, problem, seed)
    seconds = schedule.predict(problem, tasks, name not in _LAMINAR)
    if seconds < best:
      best, found = seconds, (name, tasks)
  return found


def _check_options(planner: str, options: dict) -> None:
  function = _best if planner == "auto" else PLANNERS[planner]
  own = inspect.signature(function).parameters.values()
  allowed = [p.name for p in own if p.kind is p.KEYWORD_ONLY]
  for option in options:
    if option not in allowed:
      raise unknown(f"option of planner {planner}", option, allowed or ["none"])


def _bounds(
  problem: Problem, tasks: Sequence[Task], barrier: bool
) -> tuple[float, float]:
  """(for any split, for this one) lower bounds on the step's seconds."""
  lower = bounds.step_bound(problem, barrier)
  if not barrier:
    return lower, lower
  parts: dict[int, list[int]] = {}
  for task in tasks:
    parts.setdefault(task.step, []).extend(task.sequences)
  each = [
    bounds.micro_batch_bound(problem.part(np.array(part)))
    for part in parts.values()
  ]
  return lower, max(lower, sum(each))
