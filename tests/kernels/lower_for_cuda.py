"""Lowers every op for CUDA on a machine without one; prints what it saw.

Run by test_cuda_lowering.py in a process of its own, because Triton compiles
nothing in a process where it runs interpreted.  One JSON object: name -> text.
"""

import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import tiny
from jax import export
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import fedjax_het_kernels as kernels
from fedjax_het.algorithms import example
from fedjax_het.core import rounds
from fedjax_het.selection import uniform
from fedjax_het_kernels.bridge import compile as compiler
from fedjax_het_kernels.bridge import cuda_arch
from fedjax_het_kernels.bridge.call import triton_call

jax.config.update("jax_num_cpu_devices", 2)
TARGET = "triton_kernel_call_ffi"
SIZE = 5000
WORDS = jax.ShapeDtypeStruct((9, kernels.num_words(SIZE)), jnp.uint32)
COUNTS = jax.ShapeDtypeStruct((9,), jnp.uint16)
FLOATS = jax.ShapeDtypeStruct((9,), jnp.float32)


def mean(words, weights=None, implementation=None):
  return kernels.sign_votes(
    words, weights, size=SIZE, implementation=implementation
  )


def lower(function, *shapes, platforms=("cuda",)):
  lowered = jax.jit(function).trace(*shapes).lower(lowering_platforms=platforms)
  return lowered.as_text()


def sharded(words, weights):
  mesh = jax.make_mesh((1,), ("clients",), axis_types=(AxisType.Auto,))

  def local(words, weights):
    start = jnp.zeros(SIZE, jnp.float32)
    sums = kernels.accumulate_votes(start, words, weights)
    return jax.lax.psum(sums, "clients")

  return jax.shard_map(
    local, mesh=mesh, in_specs=(P("clients"), P("clients")), out_specs=P()
  )(words, weights)


def scanned(words, weights):
  return jax.lax.scan(
    lambda votes, chunk: (kernels.accumulate_votes(votes, *chunk), None),
    jnp.zeros(SIZE, jnp.float32),
    (words.reshape(3, 3, -1), weights.reshape(3, 3)),
  )[0]


def exported():
  """One artefact for both platforms runs here as plain JAX."""
  rng = np.random.default_rng(0)
  words = rng.integers(0, 2**32, WORDS.shape, dtype=np.uint32)
  artefact = export.export(
    jax.jit(mean),
    platforms=["cpu", "cuda"],
    disabled_checks=[export.DisabledSafetyCheck.custom_call(TARGET)],
  )(WORDS)
  assert TARGET in artefact.mlir_module()
  np.testing.assert_array_equal(
    artefact.call(words), mean(words, implementation="xla")
  )
  return " ".join(artefact.platforms)


def versions():
  """PTX versions that ptxas of CUDA 12.8 reads, for both architectures."""
  found = []
  shape = jax.ShapeDtypeStruct((64,), jnp.float32)
  launch = compiler.Launch(
    "tiny_triton:scale", (4,), (("BLOCK", 16),), (("n", 64), ("factor", 2.0))
  )
  for arch in (80, 90):
    kernel, _ = compiler.compile_kernel(launch, [shape, shape], arch)
    found += re.findall(r"\.version (\S+)", kernel.asm["ptx"])
  return " ".join(found)


def wrong_arrays(count):
  shape = jax.ShapeDtypeStruct((64,), jnp.float32)
  launch = compiler.Launch(
    "tiny_triton:scale", (4,), (("BLOCK", 16),), (("n", 64), ("factor", 2.0))
  )
  return compiler.compile_kernel(launch, [shape] * count, 90)


def of_the_engine():
  """HideNseek's round adds its votes by the kernel."""
  algorithm = example("hide_n_seek", tiny.mlp(), tiny.INPUT_SHAPE)
  state = rounds.init_state(algorithm, jax.random.key(0), tiny.CLIENTS)
  one_round = rounds.make_round(algorithm, uniform(4), chunk=4)
  return lower(one_round, state, tiny.data())


def zeroed(index):
  return triton_call(
    "tiny_triton:count",
    index,
    outputs=(jax.ShapeDtypeStruct((64,), jnp.int32),),
    grid=(4,),
    constexprs={"BLOCK": 16},
    scalars={"n": 64},
    zeroed=(0,),
  )[0]


FLOAT, INT = jnp.float32, jnp.int32


def shape(*dims, dtype=FLOAT):
  return jax.ShapeDtypeStruct(dims, dtype)


def sampled(seed, probabilities):
  return kernels.sample_signs(jax.random.key(seed), probabilities)


CASES = {
  "default": lambda: lower(mean, WORDS),
  "integer weights": lambda: lower(mean, WORDS, COUNTS),
  "float weights": lambda: lower(mean, WORDS, FLOATS),
  "triton": lambda: lower(lambda w: mean(w, implementation="triton"), WORDS),
  "xla": lambda: lower(lambda w: mean(w, implementation="xla"), WORDS),
  "both": lambda: lower(mean, WORDS, platforms=("cpu", "cuda")),
  "vmap": lambda: lower(
    jax.vmap(mean, (None, 0)),
    WORDS,
    jax.ShapeDtypeStruct((4, 9), jnp.float32),
  ),
  "grad": lambda: lower(jax.grad(lambda w, x: mean(x, w).sum()), FLOATS, WORDS),
  "shard_map": lambda: lower(sharded, WORDS, FLOATS),
  "scan": lambda: lower(scanned, WORDS, FLOATS),
  "pack_signs": lambda: lower(kernels.pack_signs, shape(3, SIZE)),
  "sample_signs": lambda: lower(sampled, shape(dtype=INT), shape(3, SIZE)),
  "overlap_mean": lambda: lower(
    kernels.overlap_mean,
    shape(9, 20),
    shape(9, dtype=INT),
    shape(9),
    shape(4, 20),
  ),
  "overlap_mean_blocks": lambda: lower(
    kernels.overlap_mean_blocks,
    shape(3, 4, 5),
    shape(3, dtype=INT),
    shape(3, dtype=INT),
    shape(3),
    shape(4, 5),
  ),
  "sparse_sum": lambda: lower(
    lambda *given: kernels.sparse_sum(*given, size=50),
    shape(3, 7, dtype=INT),
    shape(3, 7),
    shape(3),
  ),
  "vote_step": lambda: lower(
    lambda scores, words: kernels.vote_step(scores, words, learning_rate=0.1),
    shape(SIZE),
    WORDS,
  ),
  "zeroed": lambda: lower(zeroed, jax.ShapeDtypeStruct((64,), jnp.int32)),
}


def attempt(function):
  """What it returned, or its error; of a module only the number of calls."""
  try:
    text = str(function())
  except Exception as error:
    return f"{type(error).__name__}: {error}"
  return f"{text.count(TARGET)} calls" if "module @" in text else text


def main():
  with cuda_arch(90):
    seen = {name: attempt(case) for name, case in CASES.items()}
    seen["engine"] = attempt(of_the_engine)
    seen["export"] = attempt(exported)
  seen["nothing known"] = attempt(lambda: lower(lambda w: mean(w), WORDS))
  seen["ptx"] = attempt(versions)
  seen["too few"] = attempt(lambda: wrong_arrays(1))
  seen["too many"] = attempt(lambda: wrong_arrays(3))
  json.dump(seen, sys.stdout)


if __name__ == "__main__":
  main()
