"""How much a late update counts: s(tau), tau in versions of the model.

References:
  Xie et al.: Asynchronous Federated Optimization, arXiv:1903.03934, section 5.
"""

from collections.abc import Callable

from fedjax_het.core.errors import UserError, unknown

Staleness = Callable[[int], float]


def constant() -> Staleness:
  """s(tau) = 1."""
  return lambda tau: 1.0


def polynomial(power: float = 0.5) -> Staleness:
  """s(tau) = (1 + tau)^-power.

  A negative power amplifies late updates; -0.5 is what FedCompass's released
  code computes.
  """
  return lambda tau: (1.0 + tau) ** -power


def hinge(slope: float = 10.0, free: float = 4.0) -> Staleness:
  """s(tau) = 1 up to `free`, then 1 / (slope (tau - free) + 1)."""
  if slope < 0 or free < 0:
    raise UserError(f"hinge:{slope:g}/{free:g}: give figures of at least 0")
  return lambda tau: 1.0 if tau <= free else 1 / (slope * (tau - free) + 1)


STALENESS: dict[str, Callable[..., Staleness]] = {
  "constant": constant,
  "polynomial": polynomial,
  "hinge": hinge,
}


def parse(spec: str) -> Staleness:
  """The function that a string names, e.g. "polynomial:0.5", "hinge:10/4".

  Raises:
    UserError: an unknown name, or values that it does not take.
  """
  name, _, values = spec.partition(":")
  if name not in STALENESS:
    raise unknown("staleness", name, STALENESS)
  try:
    return STALENESS[name](*(float(v) for v in values.split("/") if v))
  except (TypeError, ValueError):
    raise UserError(
      f"staleness {spec!r}: {name} does not take {values!r}; write e.g. "
      "polynomial:0.5 or hinge:10/4"
    ) from None
