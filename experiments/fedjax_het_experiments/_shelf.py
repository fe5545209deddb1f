"""The shelf, ready to be tuned: each method with a grid of six trials.

A trial is (client learning rate, own knob).  A method without a knob of its own
tries six rates; the others three rates with two values of the knob that its
paper tunes.  Everything else is the same for all: SGD, batches, local epochs.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import optax

from fedjax_het import algorithms
from fedjax_het.algorithms import REGISTRY
from fedjax_het.core.errors import UserError, unknown
from fedjax_het.core.types import Algorithm, Array, Model
from fedjax_het.masks import tree
from fedjax_het_experiments._comparison import Method


class Problem(NamedTuple):
  """What every method of the shelf is made for.

  model, num_clients: see `_setting.Setting`.
  batch_size, epochs: of local training.
  cohort_steps: that a cohort does in a round, all that centralised training
    may do.
  """

  model: Model
  num_clients: int
  batch_size: int
  epochs: int
  cohort_steps: int


class Tuned(NamedTuple):
  """build: (problem, rate, knob) -> the algorithm; knob is None without one.

  knob: what the knob is;  values: two of it.
  """

  build: Callable[[Problem, Array, Array | None], Algorithm]
  knob: str | None = None
  values: tuple[float, ...] = ()


RATES = (0.01, 0.03, 0.06, 0.1, 0.2, 0.4)
RATES_WITH_KNOB = (0.03, 0.1, 0.3)


def _sgd(name: str, **fixed) -> Callable:
  """A factory that takes SGD, batches and epochs, and perhaps one knob."""

  def build(problem, rate, knob, **tuned):
    return REGISTRY[name].factory(
      problem.model,
      optimizer=optax.sgd(rate),
      batch_size=problem.batch_size,
      epochs=problem.epochs,
      **fixed,
      **tuned,
    )

  return build


def _with(name: str, knob: str, *values: float, **fixed) -> Tuned:
  build = _sgd(name, **fixed)
  return Tuned(lambda p, rate, k: build(p, rate, k, **{knob: k}), knob, values)


def _server(make: Callable, *values: float) -> Tuned:
  build = _sgd("fed_avg")
  return Tuned(
    lambda p, rate, k: build(p, rate, k, server_optimizer=make(k)),
    "server rate",
    values,
  )


def _scaffold(problem, rate, knob):
  del knob
  return algorithms.scaffold(
    problem.model,
    num_clients=problem.num_clients,
    rate=rate,
    batch_size=problem.batch_size,
    epochs=problem.epochs,
  )


def _fed_dyn(problem, rate, knob):
  return _sgd("fed_dyn")(
    problem, rate, knob, num_clients=problem.num_clients, alpha=knob
  )


def _fine_tuned(problem, rate, knob):
  del knob
  return algorithms.fine_tuned(
    _sgd("fed_avg")(problem, rate, None),
    problem.model,
    optimizer=optax.sgd(rate),
    batch_size=problem.batch_size,
    epochs=problem.epochs,
  )


def _split(name: str, layer: int, **fixed) -> Tuned:
  """Keeps a layer personal: 0 the lowest, -1 the top."""

  def build(problem, rate, knob):
    shapes = jax.eval_shape(problem.model.init, jax.random.key(0))
    kernel = list(tree.layer_shapes(shapes))[layer]
    personal = kernel.rpartition("/")[0] or kernel
    return _sgd(name, **fixed)(problem, rate, knob, personal=(personal,))

  return Tuned(build)


TUNED = {
  "fed_avg": Tuned(_sgd("fed_avg")),
  "fed_avg_m": _server(lambda k: optax.sgd(k, momentum=0.9), 0.3, 1.0),
  "fed_adagrad": _server(
    lambda k: optax.adagrad(k, initial_accumulator_value=1e-6, eps=1e-3),
    0.01,
    0.03,
  ),
  "fed_adam": _server(lambda k: optax.adam(k, b2=0.99, eps=1e-3), 0.003, 0.01),
  "fed_yogi": _server(lambda k: optax.yogi(k, b2=0.99, eps=1e-3), 0.003, 0.01),
  "fed_prox": _with("fed_prox", "mu", 0.01, 0.1),
  "fed_nova": Tuned(_sgd("fed_nova")),
  "scaffold": Tuned(_scaffold),
  "fed_dyn": Tuned(_fed_dyn, "alpha", (0.01, 0.1)),
  "moon": _with("moon", "mu", 0.1, 1.0),
  "mime": Tuned(_sgd("mime")),
  "mime_lite": Tuned(_sgd("mime_lite", lite=True)),
  "centralised": Tuned(_sgd("centralised")),
  "local_only": Tuned(_sgd("local_only")),
  "fine_tuned": Tuned(_fine_tuned),
  "reptile": _with("reptile", "server_rate", 0.5, 1.0),
  "per_fed_avg": _with("per_fed_avg", "inner_rate", 0.01, 0.1),
  "per_fed_avg_fo": _with(
    "per_fed_avg_fo", "inner_rate", 0.01, 0.1, first_order=True
  ),
  "p_fed_me": _with("p_fed_me", "lam", 5.0, 15.0, inner_rate=0.05),
  "ditto": _with("ditto", "lam", 0.1, 1.0),
  "apfl": _with("apfl", "alpha_rate", 0.01, 0.1),
  "fed_per": _split("fed_per", -1),
  "lg_fed_avg": _split("lg_fed_avg", 0),
  "fed_rep": _split("fed_rep", -1, head_epochs=1),
}


def methods(names: Sequence[str], problem: Problem) -> list[Method]:
  """The named methods, each with six trials.

  Args:
    names: keys of `TUNED`, each once.
    problem: what they are made for.

  Raises:
    UserError: an unknown name, one without a grid here, or one twice.
  """
  for name in names:
    if name not in REGISTRY:
      raise unknown("algorithm", name, TUNED)
    if name not in TUNED:
      raise UserError(
        f"{name} has no tuning grid here: {REGISTRY[name].summary}; choose "
        f"from {', '.join(TUNED)}"
      )
  if len(set(names)) < len(names):
    raise UserError(f"an algorithm is named twice in {', '.join(names)}")
  return [_method(name, TUNED[name], problem) for name in names]


def _method(name: str, tuned: Tuned, problem: Problem) -> Method:
  if tuned.knob is None:
    build = lambda rate: tuned.build(problem, rate, None)  # noqa: E731
    rates = RATES
  else:
    build = lambda both: tuned.build(problem, both[0], both[1])  # noqa: E731
    rates = tuple((r, k) for r in RATES_WITH_KNOB for k in tuned.values)
  return Method(
    name,
    build,
    rates,
    pooled_steps=problem.cohort_steps if name == "centralised" else 0,
    judged_by=REGISTRY[name].judged_by,
  )
