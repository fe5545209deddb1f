"""Local differential privacy: each client adds the noise before it sends.

The server need not be trusted, and what it does with the uploads is its own
business: any reducer goes, robust ones too.  The price is noise of a standard
deviation of z S in *every* upload, sqrt(C) times that of `central` after the
mean.  Nothing more travels than in the wrapped method.

An upload is a Gaussian mechanism on the client's whole data, with no help from
sampling: a client that takes part in k rounds has spent
`accountant.epsilon(z, cohort_size=1, num_clients=1, rounds=k, delta=...)`.
That a client takes part, and how much it trained, is not hidden.

References:
  Duchi, Jordan, Wainwright: Local Privacy and Statistical Minimax Rates, FOCS
  2013, arXiv:1302.3203.
"""

import jax
import jax.numpy as jnp

from fedjax_het.core.types import Algorithm, Array
from fedjax_het.privacy import _wrap

_STREAM = 0x010C_A1D9  # apart from the keys that training folds in


def locally_private(
  algorithm: Algorithm,
  *,
  clip: Array | float,
  noise_multiplier: Array | float,
) -> Algorithm:
  """Clients send clipped(m) + z S N(0, I), and all have weight 1.

  Args:
    algorithm: sends float messages.
    clip: S, the most that a message may be long, all leaves together.
    noise_multiplier: z.

  Returns:
    An `Algorithm`; its metrics have "clipped" besides.

  Raises:
    UserError: numbers that make no sense; when it is traced, a message that is
      not all floats.
  """
  _wrap.check_noise(clip, noise_multiplier)

  def client(message, state, data, key):
    upload = algorithm.client(message, state, data, key)
    short = _wrap.clipped(upload.message, clip)
    sent = _wrap.noisy(
      jax.random.fold_in(key, _STREAM),
      short.message,
      _wrap.noise_std(clip, noise_multiplier, 1),
    )
    over = (short.norm > clip).astype(jnp.float32)
    return upload._replace(
      message=sent,
      weight=jnp.float32(1),
      metrics=upload.metrics | {"clipped": over},
    )

  return algorithm._replace(client=client)
