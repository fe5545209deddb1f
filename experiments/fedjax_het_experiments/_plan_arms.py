"""Arms of `long_context_step`: one planner and one form of step, measured."""

import contextlib
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from fedjax_het.core.errors import unknown
from fedjax_het.core.mesh import replicate
from fedjax_het.models.transformer import Shape, Transformer
from fedjax_het.seqpar import groups, pack, step
from fedjax_het.seqpar.cost import ModelCost
from fedjax_het.seqpar.plan import PLANNERS, plan
from fedjax_het.seqpar.prefetch import Ready, overlap, prefetch
from fedjax_het.seqpar.presets import cluster, link_bandwidth
from fedjax_het.seqpar.types import Plan

FORMS = "single", "groups"
# bytes/s of a device in an all-to-all: on forced CPU devices an exchange costs
# about a fifth of the work that is linear in the tokens
_EXCHANGE = 4e8


class Setting(NamedTuple):
  """What all arms share.

  model, optimizer, mesh: what is trained, how and where.
  capacity: tokens that a device can hold.
  limit: most devices of an all-to-all.
  rungs: sizes of a device's share that are compiled (`pack.make_ladder`).
  batches: lists of documents i32[n], each batch a step.
  seed: of the first parameters.
  """

  model: Transformer
  optimizer: optax.GradientTransformation
  mesh: Mesh
  capacity: int
  limit: int
  rungs: int
  batches: list[list[np.ndarray]]
  seed: int


class Measured(NamedTuple):
  """One step: seconds from batch to loss on the host, with the `Plan`.

  compilations: programs that it had to compile (or load), and for how long.
  computed: tokens that the devices computed, padding included.
  plan_cpu_seconds: of the thread that made the plan and packed the batch.
  """

  loss: float
  seconds: float
  cpu_seconds: float
  compilations: int
  compile_seconds: float
  computed: int
  plan: Plan
  plan_cpu_seconds: float
  ready: Ready

  @property
  def tokens(self) -> int:
    return int(self.plan.lengths.sum())


class Arm(NamedTuple):
  """name: PLANNER/FORM.  steps: two passes over the batches."""

  name: str
  steps: list[Measured]

  @property
  def second_pass(self) -> list[Measured]:
    return self.steps[len(self.steps) // 2 :]

  @property
  def tokens_per_second(self) -> float:
    second = self.second_pass
    return sum(s.tokens for s in second) / sum(s.seconds for s in second)

  def median(self, name: str) -> float:
    return statistics.median(getattr(s, name) for s in self.second_pass)

  @property
  def overlap(self) -> float:
    """Share of the planning that no step waited for, the first left out."""
    return overlap(s.ready for s in self.steps)

  @property
  def degrees(self) -> dict[int, float]:
    """Degree -> share of all tokens in groups of it."""
    tokens: Counter[int] = Counter()
    for measured in self.second_pass:
      for task in measured.plan.tasks:
        own = measured.plan.lengths[list(task.sequences)]
        tokens[task.degree] += int(own.sum())
    return {d: n / tokens.total() for d, n in sorted(tokens.items())}


def check_arm(name: str) -> tuple[str, str]:
  """(planner, form) of PLANNER/FORM, or a `UserError`."""
  planner, _, form = name.partition("/")
  if planner not in {*PLANNERS, "auto"}:
    raise unknown("planner", planner, [*PLANNERS, "auto"])
  if form not in FORMS:
    raise unknown(f"form of arm {name!r}", form, FORMS)
  return planner, form


def model_cost(shape: Shape) -> ModelCost:
  """Arithmetic at a nominal rate of 10 Gflop/s a device.

  Two flops a multiply-add; three products a matrix (forward, and both
  gradients); seven products of a head's queries or values with half of all
  keys (two forward, five in the backward pass of `seqpar.blockwise`).
  """
  rate, inner = 1e10, shape.heads * shape.head_width
  keys = shape.kv_heads * shape.head_width
  dense = 2 * shape.width * (inner + keys) + 3 * shape.width * shape.hidden
  linear = shape.layers * dense + shape.width * shape.vocabulary
  return ModelCost(
    quadratic=7 * shape.layers * inner / rate,
    linear=6 * linear / rate,
    fixed=0.005,
    token_bytes=1.0,  # memory is counted in tokens
    parameters=0.0,
    layers=shape.layers,
    hidden=inner,
    heads=shape.heads,
    kv_heads=shape.kv_heads,
    zero=0,
    element_bytes=4,
  )


def run_arm(
  name: str,
  setting: Setting,
  view: Callable[[list[Measured]], None],
) -> Arm:
  """Trains from the first parameters, two passes over the batches.

  Args:
    name: PLANNER/FORM.
    setting: what the arms share.
    view: called with the steps so far after each.
  """
  _, form = check_arm(name)
  train, prepare = _form(form, setting)
  make = _planner(name, setting)

  def ahead(documents):
    cpu = time.thread_time()
    made = make([len(document) for document in documents])
    packed = prepare(made, documents)
    return made, packed, time.thread_time() - cpu

  params = jax.jit(setting.model.init)(jax.random.key(setting.seed))
  state = replicate(step.init_state(params, setting.optimizer), setting.mesh)
  steps: list[Measured] = []
  with _compilations() as compiled:
    for ready in prefetch(ahead, 2 * setting.batches):
      made, (batch, computed), plan_cpu = ready.value
      compiled.clear()
      wall, cpu = time.perf_counter(), time.process_time()
      if form == "single":
        batch = step.place(batch, setting.mesh)
      state, loss = train(state, batch)
      loss = float(loss)  # waits for the devices, while the planner goes on
      steps.append(
        Measured(
          loss,
          time.perf_counter() - wall,
          time.process_time() - cpu,
          len(compiled),
          sum(compiled),
          computed,
          made,
          plan_cpu,
          ready._replace(value=None),
        )
      )
      view(steps)
  return Arm(name, steps)


def _planner(name: str, setting: Setting) -> Callable[[Sequence[int]], Plan]:
  """lengths -> Plan; the static degree is the one for the longest context."""
  planner, _ = check_arm(name)
  size, cost = setting.mesh.size, model_cost(setting.model.shape)
  where = cluster(
    1, size, setting.capacity, link_bandwidth(1, size, _EXCHANGE, _EXCHANGE)
  )
  options = {"degree": size} if planner == "static" else {}
  return lambda lengths: plan(lengths, where, cost, planner, **options)


def _form(form: str, setting: Setting) -> tuple[step.Step, Callable]:
  """(step, (plan, documents) -> (batch, tokens to compute))."""
  ladder = pack.make_ladder(setting.capacity, setting.rungs)
  rungs = np.array([0, *ladder])
  common = setting.model, setting.optimizer, setting.mesh
  rounds = 1  # only ever more, so that few programs are compiled

  def prepare_rounds(made, documents):
    nonlocal rounds
    batch = pack.pack_rounds(
      made, documents, capacity=setting.capacity, limit=setting.limit
    )
    rounds = max(rounds, len(batch.held))
    if len(batch.held) < rounds:
      batch = pack.pack_rounds(
        made,
        documents,
        capacity=setting.capacity,
        limit=setting.limit,
        rounds=rounds,
      )
    return batch, int(rungs[np.searchsorted(rungs, batch.held)].sum())

  def prepare_groups(made, documents):
    batch = pack.pack_groups(
      made, documents, ladder=ladder, limit=setting.limit
    )
    return batch, sum(group.tokens.token.size for group in batch.groups)

  if form == "groups":
    train = groups.make_group_step(*common, limit=setting.limit)
    return train, prepare_groups
  train = step.make_step(*common, ladder=ladder, limit=setting.limit)
  return jax.jit(train, donate_argnums=0), prepare_rounds


@contextlib.contextmanager
def _compilations() -> Iterator[list[float]]:
  """A list that grows by the seconds of each compilation while it is open."""
  seconds: list[float] = []
  is_open = True

  def listen(event: str, duration: float, **_: Any) -> None:
    if is_open and event.endswith("/backend_compile_duration"):
      seconds.append(duration)

  # listeners cannot be taken back: a closed one hears and says nothing
  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    yield seconds
  finally:
    is_open = False
