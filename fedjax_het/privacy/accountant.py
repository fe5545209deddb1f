"""How private a run is: (epsilon, delta) from noise, cohorts and rounds.

The adjacency is *replace one client*: two populations of N clients that differ
in all the data of one of them.  N, C and the number of rounds are public.  A
replaced client moves the sum of clipped messages by up to 2 S, so the Gaussian
mechanism that `central` runs has z / 2 standard deviations per sensitivity:
figures for "add or remove one" (Poisson sampling) are smaller for the same z
and not comparable.

The amplification is that of cohorts of exactly C out of N drawn uniformly,
anew in each round, by a draw that nobody sees.  It does not hold for a
selection that looks at scores, losses or earlier rounds; take
cohort_size=num_clients then, which assumes no sampling at all.

Needs Google's `dp-accounting` (`pip install "fedjax-het[privacy]"`).

References:
  Wang, Balle, Kasiviswanathan: Subsampled Renyi Differential Privacy and
  Analytical Moments Accountant, AISTATS 2019, arXiv:1808.00087, Theorem 27.
  Balle, Wang: Improving the Gaussian Mechanism for Differential Privacy, ICML
  2018, arXiv:1805.06530 (without sampling; exact).
"""

import math

from fedjax_het.core.errors import UserError


def epsilon(
  noise_multiplier: float,
  *,
  cohort_size: int,
  num_clients: int,
  rounds: int,
  delta: float,
) -> float:
  """The epsilon that `rounds` rounds of `differentially_private` spend.

  If all clients take part in all rounds this is exact.  Otherwise it is an
  upper bound: the smaller of that figure (a sample tells no more than its
  members) and of the one through Renyi divergences, which is the smaller where
  few of the clients are drawn.

  Args:
    noise_multiplier: z; 0 gives infinity.
    cohort_size: C.
    num_clients: N.
    rounds: how many; those in which nobody arrived count.
    delta: in (0, 1), well below 1 / num_clients.

  Returns:
    epsilon >= 0.

  Raises:
    UserError: numbers that make no sense, or dp-accounting is not installed.
  """
  _check(cohort_size, num_clients, rounds, delta)
  if not noise_multiplier >= 0:
    raise UserError(f"noise_multiplier must be >= 0, got {noise_multiplier}")
  if noise_multiplier == 0:
    return math.inf
  if math.isinf(noise_multiplier):
    return 0.0
  dp = _library()
  per_sensitivity = noise_multiplier / 2  # replacing moves the sum by 2 S
  everybody = dp.get_epsilon_gaussian(
    per_sensitivity / math.sqrt(rounds), delta
  )
  if cohort_size == num_clients:
    return float(everybody)
  accountant = dp.rdp.RdpAccountant(
    neighboring_relation=dp.NeighboringRelation.REPLACE_ONE
  )
  a_round = dp.SampledWithoutReplacementDpEvent(
    num_clients, cohort_size, dp.GaussianDpEvent(per_sensitivity)
  )
  accountant.compose(a_round, rounds)
  return float(min(everybody, accountant.get_epsilon(delta)))


def noise_for(
  target: float,
  *,
  cohort_size: int,
  num_clients: int,
  rounds: int,
  delta: float,
  tolerance: float = 1e-2,
) -> float:
  """The least noise multiplier whose `epsilon` is at most `target`.

  Args:
    target: the epsilon allowed, > 0.
    cohort_size, num_clients, rounds, delta: as in `epsilon`.
    tolerance: relative; the result is rounded up, never down.

  Returns:
    z.

  Raises:
    UserError: as `epsilon`, or no noise up to 2^20 is enough.
  """
  if not target > 0:
    raise UserError(f"epsilon must be above 0, got {target}")

  def enough(z):
    spent = epsilon(
      z,
      cohort_size=cohort_size,
      num_clients=num_clients,
      rounds=rounds,
      delta=delta,
    )
    return spent <= target

  high = 1.0
  while not enough(high):
    high *= 2
    if high > 2**20:
      raise UserError(f"no noise gives epsilon {target} with delta {delta}")
  low = high / 2
  while enough(low):
    low, high = low / 2, low
    if high < 2**-20:
      return high
  while high > (1 + tolerance) * low:
    middle = math.sqrt(low * high)
    low, high = (low, middle) if enough(middle) else (middle, high)
  return high


def _check(cohort_size, num_clients, rounds, delta) -> None:
  if not 1 <= cohort_size <= num_clients:
    raise UserError(
      f"a cohort of {cohort_size} from {num_clients} clients: give cohort_size "
      f"in 1 to {num_clients}"
    )
  if rounds < 1:
    raise UserError(f"rounds must be >= 1, got {rounds}")
  if not 0 < delta < 1:
    raise UserError(f"delta must be between 0 and 1, got {delta}")


def _library():
  try:
    import dp_accounting
    import dp_accounting.rdp
  except ImportError as error:
    raise UserError(
      "the accountant needs dp-accounting: pip install 'fedjax-het[privacy]'"
    ) from error
  return dp_accounting
