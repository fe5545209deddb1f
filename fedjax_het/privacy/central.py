"""DP-FedAvg: client-level differential privacy, as a transformation.

Every client's whole message is scaled down to an L2 norm of `clip`, all clients
count once, and the server adds Gaussian noise to the sum, which it divides by
the *planned* size of the cohort: by how many arrived would tell who did not.
The server is trusted to do so; what it releases (the model after each round)
is protected, what it sees is not (see `local` and `secure_votes`).

Nothing more travels than in the wrapped method, except with `adaptive_clip`:
the norm down and one float up.

How private that is, `accountant.epsilon` says.  It holds for cohorts of a fixed
size drawn uniformly, and for the sequence of models only: the clients' reported
metrics, the evaluation on their data, and which of them arrived are what a
simulation shows, not what a deployment may.  If nobody at all arrives, the
engine leaves the model as it was, without noise.  Floats are float32, and keys
are in the checkpoint: this is a simulator, not an implementation to deploy.

References:
  McMahan et al.: Learning Differentially Private Recurrent Language Models,
  ICLR 2018, arXiv:1710.06963, Algorithm 1.
  Andrew et al.: Differentially Private Learning with Adaptive Clipping, NeurIPS
  2021, arXiv:1905.03871 (quantile tracking).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_het.core import reduce
from fedjax_het.core.errors import UserError
from fedjax_het.core.types import Algorithm, Array, Key, PyTree
from fedjax_het.privacy import _wrap

_STREAM = 0x0D1F_F051  # the noise's key, apart from those of the wrapped init


class PrivateState(NamedTuple):
  """server: the wrapped method's state;  clip: f32[], the norm now.

  key: of the noise, never changed;  round: i32[], rounds released.
  """

  server: PyTree
  clip: Array
  key: Key
  round: Array


class AdaptiveClip(NamedTuple):
  """How the norm follows a quantile of the clients' norms.

  quantile: g, the share of clients that are not clipped in the end.
  rate: eta of clip *= exp(-eta (share not clipped - g)).
  count_noise: std of the noise on the count of clients not clipped; None is
    the paper's cohort_size / 20, but at least noise_multiplier, which leaves
    the messages with 15 % more noise.
  """

  quantile: float = 0.5
  rate: float = 0.2
  count_noise: float | None = None


def differentially_private(
  algorithm: Algorithm,
  *,
  clip: Array | float,
  noise_multiplier: Array | float,
  cohort_size: int,
  adaptive_clip: AdaptiveClip | None = None,
) -> Algorithm:
  """Clips, sums, adds noise: mean = (sum_k clipped(m_k) + z S N(0, I)) / C.

  The noise of a round is drawn from a key in the state and the round's number:
  it does not depend on chunks or devices, and a resumed run repeats it.  A
  method that asks for the weight behind the mean (SCAFFOLD, FedDyn) is told C.

  With `adaptive_clip`, S starts at `clip` and follows a quantile.  The noisy
  count is a second query; the noise on the messages is raised, to
  z' = (z^-2 - (2 count_noise)^-2)^-1/2, so that both together cost as much as
  one query with z.

  Args:
    algorithm: takes the weighted mean of float messages.
    clip: S, the most that a client's message may be long.  `inf` with
      noise_multiplier=0 is the method itself with equal weights.
    noise_multiplier: z, the noise on the sum in units of S.
    cohort_size: C, as the selection is planned.
    adaptive_clip: None keeps `clip`.

  Returns:
    An `Algorithm`; its metrics have "clipped" besides, whether a client's
    message was too long.

  Raises:
    UserError: an algorithm that does something else with its uploads, or
      numbers that make no sense.
  """
  with_weight = reduce.gives_weight(algorithm.reducer)
  _wrap.check_noise(clip, noise_multiplier, cohort_size)
  adapts = adaptive_clip is not None
  if adapts:
    adaptive_clip, noise_multiplier = _split_noise(
      adaptive_clip, clip, noise_multiplier, cohort_size
    )
  mean = reduce.weighted_mean()
  planned = mean._replace(
    finish=lambda acc: jax.tree.map(lambda t: t / cohort_size, acc[0])
  )

  def init(key):
    return PrivateState(
      algorithm.init(key),
      jnp.float32(clip),
      jax.random.fold_in(key, _STREAM),
      jnp.int32(0),
    )

  def downlink(state, client_id):
    message = algorithm.downlink(state.server, client_id)
    return (message, state.clip) if adapts else message

  def client(message, state, data, key):
    message, norm = message if adapts else (message, clip)
    upload = algorithm.client(message, state, data, key)
    short = _wrap.clipped(upload.message, norm)
    fits = (short.norm <= norm).astype(jnp.float32)
    return upload._replace(
      message=(short.message, fits - 0.5) if adapts else short.message,
      weight=jnp.float32(1),
      metrics=upload.metrics | {"clipped": 1 - fits},
    )

  def server(state, reduced):
    key = jax.random.fold_in(state.key, state.round)
    mean_key, count_key = jax.random.split(key)
    mean, fits = reduced if adapts else (reduced, None)
    norm = state.clip if adapts else clip
    std = _wrap.noise_std(norm, noise_multiplier, cohort_size)
    mean = _wrap.noisy(mean_key, mean, std)
    inner = algorithm.server(
      state.server, (mean, jnp.float32(cohort_size)) if with_weight else mean
    )
    norm = state.clip
    if adapts:
      std = adaptive_clip.count_noise / cohort_size
      share = _wrap.noisy(count_key, fits, std) + 0.5
      error = share - adaptive_clip.quantile
      norm = norm * jnp.exp(-adaptive_clip.rate * error)
    return PrivateState(inner, norm, state.key, state.round + 1)

  return _wrap.around(
    algorithm,
    init=init,
    downlink=downlink,
    client=client,
    reducer=planned,
    server=server,
  )


def _split_noise(adaptive, clip, noise_multiplier, cohort_size):
  """`adaptive` with its noise stated, and what is left for the messages."""
  if clip == float("inf"):
    raise UserError("adaptive_clip needs a finite clip to start from")
  if not 0 <= adaptive.quantile <= 1:
    raise UserError(f"quantile must be in [0, 1], got {adaptive.quantile}")
  if not isinstance(noise_multiplier, (int, float)):
    raise UserError("adaptive_clip needs noise_multiplier as a plain number")
  noise = adaptive.count_noise
  if noise is None:
    noise = max(cohort_size / 20, noise_multiplier)
  if noise_multiplier == 0:
    return adaptive._replace(count_noise=0.0), 0.0
  if not 2 * noise > noise_multiplier:
    raise UserError(
      f"count_noise={noise} with noise_multiplier={noise_multiplier}: the "
      "count would use up the whole budget; give a count_noise above half of "
      "the noise_multiplier"
    )
  left = noise_multiplier**-2 - (2 * noise) ** -2
  return adaptive._replace(count_noise=noise), left**-0.5
