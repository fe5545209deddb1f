"""How many clients to train at once: from the compiled step's own account.

On a CPU the answer is one (a scan over clients).  Elsewhere memory decides: the
temporary memory of the compiled step is close to linear in the chunk, so two
compilations give the line, and a third confirms the answer.
"""

from collections.abc import Callable
from typing import Any

import jax

from fedjax_het.core.errors import UserError

_SPARE = 0.8  # of the free memory: the allocator fragments


def choose_chunk(
  make: Callable[[int], Callable],
  args: tuple[Any, ...],
  cohort_size: int,
  *,
  free_bytes: int | None = None,
) -> int:
  """The largest power of two of clients whose step fits the memory.

  Args:
    make: chunk -> the function to be jitted (a round or a block).
    args: its arguments, arrays or shapes.
    cohort_size: C, where the search ends.
    free_bytes: memory for temporaries; default: what the device says is free.
      On a CPU without it, the answer is 1 and nothing is compiled.

  Returns:
    M, a power of two, or C itself where all fit.

  Raises:
    UserError: not even one client fits.
  """
  if free_bytes is None:
    if jax.default_backend() == "cpu":
      return 1
    free_bytes = _free()
  room = _SPARE * free_bytes

  def temporary(chunk):
    compiled = jax.jit(make(chunk)).lower(*args).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  one, few = temporary(1), min(8, cohort_size)
  if one > room:
    raise UserError(
      f"one client needs {one / 2**20:.0f} MiB of temporary memory and "
      f"{room / 2**20:.0f} MiB are free: use a smaller model or batch"
    )
  if few == 1:
    return 1
  each = max((temporary(few) - one) / (few - 1), 1)
  chunk = int((room - one) / each) + 1
  if chunk >= cohort_size:
    chunk = cohort_size
  else:
    chunk = 1 << (chunk.bit_length() - 1)
  while chunk > 1 and temporary(chunk) > room:  # the line was a guess
    chunk = 1 << ((chunk - 1).bit_length() - 1)
  return chunk


def _free() -> int:
  stats = jax.local_devices()[0].memory_stats()
  return stats["bytes_limit"] - stats["bytes_in_use"]
