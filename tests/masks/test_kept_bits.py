"""Bits of kept weights: as long as it says, and read back as written."""

import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_het.core import wire
from fedjax_het.masks.kept_bits import KeptBits


@pytest.mark.parametrize("kept", [0, 1, 8, 9, 40])
def test_a_bit_for_each_kept_weight(kept):
  rng = np.random.default_rng(kept)
  where = np.zeros(40, bool)
  where[rng.permutation(40)[:kept]] = True
  bits = where & (rng.random(40) < 0.5)
  message = KeptBits(jnp.asarray(bits), jnp.asarray(where))
  data = wire.encode(message)
  assert len(data) == wire.nbytes(message) == -(-kept // 8)
  # least significant bit first, in the order of the positions
  number = int.from_bytes(data, "little")
  assert [number >> i & 1 for i in range(kept)] == bits[where].tolist()
  empty = KeptBits(jnp.zeros(40, bool), jnp.asarray(where))
  np.testing.assert_array_equal(wire.decode(data, empty).bits, bits)
