"""Lengths of sequences in tokens: real ones and documented mixtures.

FlexSP's lists of GitHub and CommonCrawl lengths are not public.  The mixtures
here have a log-normal body and a Pareto tail, with parameters chosen so that
the modelled step time of a static plan is near the published bar of GPT 7B
with 192K tokens (24 s and 28 s).  They are synthetic: good for comparing
planners with each other, not for reproducing a published figure.
"""

import os

import numpy as np

from fedjax_het.core.errors import UserError, unknown
from fedjax_het.data._places import inside, missing, places

FILE = "wikipedia_lengths.npz"
# body: median, sigma; tail: start, exponent, share
_MIXTURES = {
  "github_like": (900, 1.4, 16_384, 0.95, 0.042),
  "commoncrawl_like": (1_000, 1.25, 10_240, 1.05, 0.06),
}
SOURCES = ("wikipedia", *_MIXTURES)


def mixture(
  name: str, size: int, seed: int | tuple[int, ...] = 0
) -> np.ndarray:
  """Draws synthetic lengths, i64[size].

  With probability `share` a length is start (1 - u)^(-1 / exponent), else
  median exp(sigma z); all are clipped to 16 .. 4,000,000.

  Args:
    name: "github_like" (the heavier tail) or "commoncrawl_like".
    size: how many.
    seed: of the draws.

  Raises:
    UserError: for an unknown name.
  """
  if name not in _MIXTURES:
    raise unknown("mixture", name, _MIXTURES)
  median, sigma, start, exponent, share = _MIXTURES[name]
  rng = np.random.default_rng(seed)
  body = rng.lognormal(np.log(median), sigma, size)
  tail = start * (1 - rng.random(size)) ** (-1 / exponent)
  mixed = np.where(rng.random(size) < share, tail, body)
  return np.clip(mixed, 16, 4e6).astype(np.int64)


def wikipedia(data_dir: str | os.PathLike | None = None) -> np.ndarray:
  """Token counts of Wikipedia articles in their order, i64[n].

  Args:
    data_dir: the folder of wikipedia_lengths.npz (array "lengths"), or the
      file; then $FEDJAX_HET_DATA or the cache are searched.

  Raises:
    UserError: if the file is not there or not readable; says where it was
      looked for.
  """
  looked = places(data_dir)
  for place in looked:
    files = [place] if place.is_file() else []
    for path in files or [f / FILE for f in inside(place, ("lengths",))]:
      if path.is_file():
        try:
          with np.load(path, allow_pickle=False) as arrays:
            return arrays["lengths"].astype(np.int64)
        except (ValueError, KeyError, OSError) as error:
          raise UserError(f"cannot read lengths from {path}: {error}") from None
  raise missing(
    "wikipedia",
    FILE,
    looked,
    ("lengths",),
    "put one integer array 'lengths' there",
  )


def padded(lengths: np.ndarray, multiple: int, limit: int) -> np.ndarray:
  """Rounds up to a multiple and drops what is longer than the limit.

  As FlexSP does, with multiple = 2 x devices and a limit of the context less
  one multiple.
  """
  up = -(-np.asarray(lengths, np.int64) // multiple) * multiple
  return up[up <= limit]


def batches(
  name: str,
  *,
  context: int,
  num_devices: int,
  batch_size: int = 512,
  num_batches: int = 6,
  seed: int = 0,
  data_dir: str | os.PathLike | None = None,
) -> np.ndarray:
  """Batches of padded lengths as FlexSP trains on them.

  Args:
    name: one of `SOURCES`.
    context: longest sequence in thousands of tokens.
    num_devices: lengths are padded to multiples of twice this.
    batch_size, num_batches: what to return.
    seed: of a mixture, where batch i is the same however many are drawn; of
      the real lengths, which stretch of the file.
    data_dir: where the real lengths are (`wikipedia`).

  Returns:
    i64[num_batches, batch_size].

  Raises:
    UserError: for an unknown name, missing data, or too few of them.
  """
  if name not in SOURCES:
    raise unknown("source of lengths", name, SOURCES)
  multiple = 2 * num_devices
  limit = context * 1000 - multiple
  if name == "wikipedia":
    wanted = batch_size * num_batches
    raw = np.roll(wikipedia(data_dir), -seed * wanted)
    kept = padded(raw, multiple, limit)
    if kept.size < wanted:
      raise UserError(
        f"{name} has {kept.size} sequences of at most {context}K tokens, "
        f"{wanted} are wanted: take smaller or fewer batches"
      )
    return kept[:wanted].reshape(num_batches, batch_size)
  found = []
  for i in range(num_batches):  # with some to spare for those that are dropped
    raw = mixture(name, 2 * batch_size + 64, (seed, i))
    found.append(padded(raw, multiple, limit)[:batch_size])
  return np.stack(found)
