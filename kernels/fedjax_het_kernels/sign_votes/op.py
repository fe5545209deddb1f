"""Public functions: the weighted mean, sum or majority of packed signs."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from fedjax_het_kernels.dispatch import choose
from fedjax_het_kernels.layout import check_words
from fedjax_het_kernels.pack_signs.xla import pack_bits
from fedjax_het_kernels.sign_votes import xla

OUTPUTS = ("mean", "sum", "majority")


def sign_votes(
  words: jax.Array,
  weights: jax.Array | None = None,
  *,
  size: int,
  output: str = "mean",
  implementation: str | None = None,
) -> jax.Array:
  """Aggregates one packed sign vector a client.

    sum_p = sum_n w_n s_np        s_np in {-1, +1}, w_n >= 0
    mean_p = sum_p / sum_n w_n    0 where the weights sum to 0
    majority_p = sgn(sum_p)       sgn(0) = +1

  Memory is O(P) beside the words.  Sums of int32 weights, and of no weights,
  are exact: no order of clients, chunks or devices changes a bit.  They must
  stay below 2^31, which is checked where the weights are concrete, not under
  jit.  float32 weights add in float32; whole numbers are exact up to a total
  of 2^24.  A NaN or infinite weight makes everything NaN or infinite.

  Args:
    words: uint32[N, W], made by `pack_signs`; padding bits are ignored.
    weights: int32[N] or float32[N], not negative; None gives each client 1.
    size: P, how many signs a client sent; static.
    output: "mean", "sum" or "majority".
    implementation: None or "xla"; "triton" is not available yet.

  Returns:
    "mean": f32[P] in [-1, 1];  "sum": int32[P], or f32[P] for float weights;
    "majority": uint32[W], packed, with padding bits 0.

  Raises:
    ValueError: wrong shapes, dtypes or names; concrete weights that are
      negative, not finite, or sum to 2^31 or more.
    NotImplementedError: an implementation that this op does not have yet.

  References:
    Packed layout: fedjax_het_kernels/layout.py.  Majority: Bernstein et al.,
    signSGD with majority vote, ICLR 2019.
  """
  words = jnp.asarray(words)
  if words.ndim != 2:
    raise ValueError(f"sign_votes: words must be [N, W], not {words.shape}")
  if weights is None:
    weights = jnp.ones(words.shape[0], jnp.int32)
  weights = _check_weights(weights)
  votes = accumulate_votes(
    jnp.zeros(size, weights.dtype),
    words,
    weights,
    implementation=implementation,
  )
  return finish_votes(votes, weights.sum(dtype=weights.dtype), output=output)


def accumulate_votes(
  votes: jax.Array,
  words: jax.Array,
  weights: jax.Array | None = None,
  *,
  implementation: str | None = None,
) -> jax.Array:
  """Adds a chunk of clients to running sums: votes_p += sum_m w_m s_mp.

  `sign_votes` is this from zeros, then `finish_votes`; a scan over chunks does
  the same in O(P) memory, and the sums of devices add up.

  Args:
    votes: int32[P] or float32[P], the sums so far.
    words: uint32[M, W] with W = num_words(P); padding bits are ignored.
    weights: [M] of the dtype of votes; None gives each client 1.  Clients of
      weight 0 change nothing.  int32 wraps silently where |votes| + sum of
      weights reaches 2^31.
    implementation: as in `sign_votes`.

  Returns:
    The new sums, shape and dtype of votes.

  Raises:
    ValueError, NotImplementedError: as `sign_votes`.
  """
  add = choose("sign_votes", implementation, xla=xla.accumulate)
  votes, words = jnp.asarray(votes), jnp.asarray(words)
  if votes.ndim != 1 or votes.dtype not in (jnp.int32, jnp.float32):
    raise ValueError(
      "accumulate_votes: votes must be int32[P] or float32[P], not"
      f" {votes.dtype}{list(votes.shape)}"
    )
  if words.ndim != 2:
    raise ValueError(
      f"accumulate_votes: words must be [M, W], not {words.shape}"
    )
  check_words("accumulate_votes", words, votes.size)
  if weights is None:
    weights = jnp.ones(words.shape[0], votes.dtype)
  weights = jnp.asarray(weights)
  if weights.shape != words.shape[:1] or weights.dtype != votes.dtype:
    raise ValueError(
      f"accumulate_votes: {words.shape[0]} clients and {votes.dtype} votes need"
      f" weights {votes.dtype}[{words.shape[0]}], not"
      f" {weights.dtype}{list(weights.shape)}"
    )
  return add(votes, words, weights)


def finish_votes(
  votes: jax.Array, total: jax.Array, *, output: str = "mean"
) -> jax.Array:
  """Turns running sums into what `sign_votes` returns.

  Args:
    votes: int32[P] or float32[P], made by `accumulate_votes`.
    total: scalar of the same dtype, the sum of all weights.
    output: "mean", "sum" or "majority".

  Returns:
    As `sign_votes`.

  Raises:
    ValueError: an unknown output.
  """
  if output not in OUTPUTS:
    raise ValueError(
      f"sign_votes: unknown output {output!r}; allowed are"
      f" {', '.join(map(repr, OUTPUTS))}"
    )
  if output == "sum":
    return votes
  if output == "majority":
    return pack_bits(votes >= 0)
  return xla.mean(votes, total)


def _check_weights(weights) -> jax.Array:
  """Weights as a JAX array; the values are checked where they are concrete."""
  # An array that spans hosts is concrete, but no host sees all of it.
  if not isinstance(weights, Tracer) and getattr(
    weights, "is_fully_addressable", True
  ):
    # Before jnp.asarray, which cuts int64 down to 32 bits without a word.
    values = np.asarray(weights)
    if values.size and not (np.isfinite(values) & (values >= 0)).all():
      raise ValueError("sign_votes: weights must be finite and not negative")
    if values.dtype.kind in "iu" and values.sum(dtype=object) >= 2**31:
      raise ValueError(
        f"sign_votes: integer weights sum to {values.sum(dtype=object)}, and"
        " int32 sums need less than 2^31; divide them by a common factor or"
        " give float32"
      )
  weights = jnp.asarray(weights)
  if weights.dtype not in (jnp.int32, jnp.float32):
    raise ValueError(
      f"sign_votes: weights must be int32 or float32, not {weights.dtype}"
    )
  return weights
