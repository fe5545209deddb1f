"""What is not zero travels, and the bytes say so."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_het.core import reduce, wire
from fedjax_het.masks.nonzero import NonZeros

SIZES = (40, 7, 300)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
def test_bytes_counted_are_written_and_read(share):
  rng = np.random.default_rng(3)
  values = rng.normal(size=sum(SIZES)) * (rng.random(sum(SIZES)) < share)
  message = NonZeros(jnp.asarray(values, jnp.float32), SIZES)
  written = wire.encode(message)
  want, start = 0, 0
  for size in SIZES:
    kept = np.count_nonzero(values[start : start + size])
    width = int(np.ceil(np.log2(size)))
    want += 4 * kept + 4 + int(np.ceil(min(size, kept * width) / 8))
    start += size
  assert len(written) == int(wire.nbytes(message)) == (want if share else 0)
  # the receiver knows the sizes alone
  blank = NonZeros(jnp.zeros(sum(SIZES)), SIZES)
  np.testing.assert_array_equal(
    blank.from_bytes(written).values, message.values
  )


def test_it_is_averaged_like_any_vector():
  values = jnp.asarray([[1.0, 0.0], [0.0, 3.0]])
  messages = NonZeros(values, (2,))
  mean = reduce.weighted_mean()
  acc = mean.zero(jax.tree.map(lambda leaf: leaf[0], messages))
  acc = mean.add(acc, messages, jnp.asarray([1.0, 2.0]))
  np.testing.assert_allclose(mean.finish(acc).values, [1 / 3, 2.0])
