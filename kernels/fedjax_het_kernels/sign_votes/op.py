"""Public functions: the weighted mean, sum or majority of packed signs."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from fedjax_het_kernels.bridge import Op
from fedjax_het_kernels.layout import check_words
from fedjax_het_kernels.sign_votes import launch, xla

OUTPUTS = ("mean", "sum", "majority")
WEIGHTS = (jnp.uint8, jnp.uint16, jnp.int32, jnp.float32)

# Arrays named by the static `fields`: words u32[N, W]; weights [K, N] (absent:
# 1 each, K = 1); base [K, P]; keep u32[W]; rate f32[1].  Output "step" is
# base + rate * mean, and its packed signs.
VOTES = Op("sign_votes", xla.votes, launch.votes)


def sign_votes(
  words: jax.Array,
  weights: jax.Array | None = None,
  *,
  size: int,
  output: str = "mean",
  keep: jax.Array | None = None,
  implementation: str | None = None,
) -> jax.Array:
  """Aggregates one packed sign vector a client.

    sum_p = sum_n w_n s_np        s_np in {-1, +1}, w_n >= 0
    mean_p = sum_p / sum_n w_n    0 where the weights sum to 0
    majority_p = sgn(sum_p)       sgn(0) = +1

  Memory is O(P) beside the words.  Sums of integer weights, and of no weights,
  are exact: no order of clients, chunks or devices changes a bit.  They must
  stay below 2^31, which is checked where the weights are concrete, not under
  jit.  float32 weights add in float32; whole numbers are exact up to a total
  of 2^24.  A NaN or infinite weight makes everything NaN or infinite.

  On a GPU the kernel follows from the weights: none is the cheapest (0.14
  instructions a bit by design), then uint8, uint16, and int32 or float32.

  Args:
    words: uint32[N, W], made by `pack_signs`; padding bits are ignored.
    weights: [N] of uint8, uint16, int32 or float32, not negative; None gives
      each client 1.  [K, N] are K weightings at once, for example memberships
      of clusters.
    size: P, how many signs a client sent; static.
    output: "mean", "sum" or "majority".
    keep: uint32[W], made by `pack_bits`: a parameter with bit 0 is pruned and
      gives 0, in a majority bit 0 (ternary signs); None keeps all.
    implementation: None, "xla", "triton" or "interpret": `dispatch.resolve`.

  Returns:
    "mean": f32[P] in [-1, 1];  "sum": int32[P], or f32[P] for float weights;
    "majority": uint32[W], packed, with padding bits 0.  A leading axis K where
    the weights have one.

  Raises:
    ValueError: wrong shapes, dtypes or names; concrete weights that are
      negative, not finite, or sum to 2^31 or more.
    NotImplementedError: "triton" on another platform than CUDA.

  References:
    Packed layout: fedjax_het_kernels/layout.py.  Majority: Bernstein et al.,
    signSGD with majority vote, ICLR 2019.
  """
  words = _check(words, "sign_votes", size)
  _check_output(output)
  given = {"words": words}
  if weights is not None:
    weights = _check_weights(weights, words)
    given["weights"] = jnp.atleast_2d(weights)
  if keep is not None:
    given["keep"] = _check_keep(keep, size)
  (votes,) = _run(given, implementation, size=size, output=output)
  return votes if weights is not None and weights.ndim == 2 else votes[0]


def vote_step(
  scores: jax.Array,
  words: jax.Array,
  weights: jax.Array | None = None,
  *,
  learning_rate: float | jax.Array,
  keep: jax.Array | None = None,
  implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
  """A server's step along the mean vote, and the signs it broadcasts next.

    s_p <- s_p + lr * mean_p,    packed sgn(s_p), sgn(0) = +1

  in one pass: the sums never reach memory.

  Args:
    scores: f32[P].
    words, weights, keep, implementation: as in `sign_votes`, weights [N].
    learning_rate: scalar.

  Returns:
    New scores f32[P] (0 where pruned) and words uint32[W] (bit 0 where pruned
    and in the padding).

  Raises:
    ValueError, NotImplementedError: as `sign_votes`.
  """
  scores = jnp.asarray(scores)
  if scores.ndim != 1 or scores.dtype != jnp.float32:
    raise ValueError(
      f"vote_step: scores must be float32[P], not {scores.dtype}"
      f"{list(scores.shape)}"
    )
  words = _check(words, "vote_step", scores.size)
  given = {
    "words": words,
    "base": scores[None],
    "rate": jnp.asarray(learning_rate, jnp.float32).reshape(1),
  }
  if weights is not None:
    weights = _check_weights(weights, words)
    if weights.ndim != 1:
      raise ValueError(f"vote_step: weights must be [N], not {weights.shape}")
    given["weights"] = weights[None]
  if keep is not None:
    given["keep"] = _check_keep(keep, scores.size)
  scores, packed = _run(given, implementation, size=scores.size, output="step")
  return scores[0], packed[0]


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
  votes = jnp.asarray(votes)
  if votes.ndim != 1 or votes.dtype not in (jnp.int32, jnp.float32):
    raise ValueError(
      "accumulate_votes: votes must be int32[P] or float32[P], not"
      f" {votes.dtype}{list(votes.shape)}"
    )
  words = _check(words, "accumulate_votes", votes.size)
  given = {"words": words, "base": votes[None]}
  if weights is not None:
    weights = jnp.asarray(weights)
    if weights.shape != words.shape[:1] or weights.dtype != votes.dtype:
      raise ValueError(
        f"accumulate_votes: {words.shape[0]} clients and {votes.dtype} votes"
        f" need weights {votes.dtype}[{words.shape[0]}], not"
        f" {weights.dtype}{list(weights.shape)}"
      )
    given["weights"] = weights[None]
  (sums,) = _run(given, implementation, size=votes.size, output="sum")
  return sums[0]


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
  _check_output(output)
  return xla.finish(votes, total, output)[0]


def _run(given, implementation, **static):
  return VOTES(
    *given.values(),
    implementation=implementation,
    fields=tuple(given),
    **static,
  )


def _check(words, name: str, size: int) -> jax.Array:
  words = jnp.asarray(words)
  if words.ndim != 2:
    raise ValueError(f"{name}: words must be [N, W], not {words.shape}")
  check_words(name, words, size)
  return words


def _check_keep(keep, size: int) -> jax.Array:
  keep = jnp.asarray(keep)
  if keep.ndim != 1:
    raise ValueError(f"sign_votes: keep must be [W], not {keep.shape}")
  check_words("sign_votes, keep", keep, size)
  return keep


def _check_output(output: str) -> None:
  if output not in OUTPUTS:
    raise ValueError(
      f"sign_votes: unknown output {output!r}; allowed are"
      f" {', '.join(map(repr, OUTPUTS))}"
    )


def _check_weights(weights, words) -> jax.Array:
  """Weights as a JAX array; the values are checked where they are concrete."""
  # An array that spans hosts is concrete, but no host sees all of it.
  if not isinstance(weights, Tracer) and getattr(
    weights, "is_fully_addressable", True
  ):
    # Before jnp.asarray, which cuts int64 down to 32 bits without a word.
    values = np.asarray(weights)
    if values.size and not (np.isfinite(values) & (values >= 0)).all():
      raise ValueError("sign_votes: weights must be finite and not negative")
    if values.dtype.kind in "iu" and values.size:
      largest = values.sum(axis=-1, dtype=object)
      largest = np.max(largest)
      if largest >= 2**31:
        raise ValueError(
          f"sign_votes: integer weights sum to {largest}, and int32 sums need"
          " less than 2^31; divide them by a common factor or give float32"
        )
  weights = jnp.asarray(weights)
  if weights.dtype not in WEIGHTS:
    raise ValueError(
      "sign_votes: weights must be uint8, uint16, int32 or float32, not"
      f" {weights.dtype}"
    )
  clients = words.shape[0]
  if weights.ndim not in (1, 2) or weights.shape[-1] != clients:
    raise ValueError(
      f"sign_votes: {clients} clients need weights [{clients}] or"
      f" [K, {clients}], not {list(weights.shape)}"
    )
  return weights
