"""The planar layout again, by other means; Triton's interpreter for all."""

import importlib.util
import os

# Before anything imports triton; tests that compile do so in subprocesses.
os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import pytest

HAS_TRITON = importlib.util.find_spec("triton") is not None


@pytest.fixture(scope="session")
def interpreter():
  """Skips where Triton's interpreter cannot run."""
  if not HAS_TRITON:
    pytest.skip('triton is not installed: pip install "fedjax-het[test]"')
  from fedjax_het_kernels.bridge import interpret

  try:
    interpret.check_environment()
  except RuntimeError as error:
    pytest.skip(str(error))


@pytest.fixture(scope="session")
def compile_env(source_env):
  """Environment of a subprocess in which Triton compiles."""
  if not HAS_TRITON:
    pytest.skip('triton is not installed: pip install "fedjax-het[test]"')
  env = {k: v for k, v in source_env.items() if k != "TRITON_INTERPRET"}
  return {**env, "JAX_PLATFORMS": "cpu"}


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
