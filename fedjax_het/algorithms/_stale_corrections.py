"""What a server does to an update that comes late.

A correction takes one late update and gives the update that the server uses
and the share with which it counts in the mean: 0 leaves the client out of the
mean altogether, as if it had not taken part.  Scaling an update (the weighted
kinds) is something else: the client still counts in full in the mean's
denominator, so that a late update is small even in a round of late ones, as in
FedAsync.

| name | update | share |
|---|---|---|
| oracle | as if nobody were late (delays are ignored) | 1 |
| direct | Delta | 1 |
| polynomial(a) | (1 + tau)^-a Delta | 1 |
| halving(T) | 2^(-tau / T) Delta | 1 |
| first_order(lam) | Delta - lam Delta Delta (w^t - w^{t-tau}) | 1 |
| dropped | | 0 if tau > 0 |

FedAsync with polynomial weights is `polynomial(a)` with `server_rate=alpha`:
w <- w + alpha sum_k p_k (1 + tau_k)^-a Delta_k.

Released code departs from this in both signs: FedCompass' FedAsync multiplies
by (1 + tau)^(+a) in its first release, so it amplifies what is late.

References:
  Xie et al.: Asynchronous Federated Optimization, 2019, arXiv:1903.03934.
  Zheng et al.: Asynchronous SGD with Delay Compensation (DC-ASGD), ICML 2017,
  arXiv:1609.08326; there lam belongs to gradients, with SGD of rate eta the one
  here is lam / eta per local step.
  Unlimited staleness: arXiv:2309.13536, whose baselines are direct,
  first_order(4) and halving(20).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_het.core.errors import UserError
from fedjax_het.core.types import Array, Params


class Late(NamedTuple):
  """One update at the server.

  delta: Delta, what local training changed.
  base: w^{t-tau}, where it started;  now: w^t.
  delay: tau i32[], in rounds; 0 for a fresh update.
  """

  delta: Params
  base: Params
  now: Params
  delay: Array


class Correction(NamedTuple):
  """apply: Late -> (update like delta, share f32[] in the mean).

  ignores_delays: the server gets every update fresh, which only a simulator
    can give it.
  """

  apply: Callable[[Late], tuple[Params, Array]]
  ignores_delays: bool = False


def _as_it_is(late: Late) -> tuple[Params, Array]:
  return late.delta, jnp.float32(1)


def _only_fresh(late: Late) -> tuple[Params, Array]:
  return late.delta, (late.delay == 0).astype(jnp.float32)


direct = Correction(_as_it_is)
oracle = Correction(_as_it_is, ignores_delays=True)
dropped = Correction(_only_fresh)


def polynomial(power: Array | float = 0.5) -> Correction:
  """FedAsync's weight (1 + tau)^-a.

  Args:
    power: a >= 0; may be traced.

  Raises:
    UserError: a < 0, which would amplify what is late.
  """
  if isinstance(power, (int, float)) and power < 0:
    raise UserError(
      f"polynomial({power}) amplifies late updates: give a power >= 0"
    )
  return _scaled(lambda tau: (1.0 + tau) ** -power)


def halving(rounds: Array | float = 20.0) -> Correction:
  """The weight 2^(-tau / T): half as much for every T rounds.

  Args:
    rounds: T > 0; may be traced.

  Raises:
    UserError: T <= 0.
  """
  if isinstance(rounds, (int, float)) and rounds <= 0:
    raise UserError(f"halving({rounds}): give the rounds of one half, above 0")
  return _scaled(lambda tau: 2.0 ** (-tau / rounds))


def first_order(lam: Array | float = 4.0) -> Correction:
  """DC-ASGD: Delta - lam Delta Delta (w^t - w^{t-tau}), by coordinate.

  Args:
    lam: strength; 0 is `direct`; may be traced.
  """

  def apply(late):
    moved = jax.tree.map(
      lambda d, old, new: d - lam * d * d * (new - old),
      late.delta,
      late.base,
      late.now,
    )
    return moved, jnp.float32(1)

  return Correction(apply)


def _scaled(weight: Callable[[Array], Array]) -> Correction:
  def apply(late):
    factor = weight(late.delay.astype(jnp.float32))
    delta = jax.tree.map(lambda d: factor.astype(d.dtype) * d, late.delta)
    return delta, jnp.float32(1)

  return Correction(apply)
