"""The planar layout again, by other means than the package's."""

import numpy as np
import pytest


@pytest.fixture(scope="session")
def pack_planar():
  """bool[..., P] -> u32[..., W] through np.packbits."""

  def pack(bits):
    bits = np.asarray(bits, bool)
    *batch, size = bits.shape
    tiles = -(-size // 4096)
    padded = np.zeros((*batch, tiles * 4096), bool)
    padded[..., :size] = bits
    planes = padded.reshape(*batch, tiles, 32, 128).swapaxes(-1, -2)
    packed = np.packbits(planes, axis=-1, bitorder="little")  # [..., 128, 4]
    packed = np.ascontiguousarray(packed)
    return packed.view("<u4").reshape(*batch, tiles * 128)

  return pack
