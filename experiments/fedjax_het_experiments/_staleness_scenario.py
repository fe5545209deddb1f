"""The intertwined scenario: one class lives on slow devices only.

Who is slow must not differ between seeds, since delays are part of the compiled
program: clients a, a + K, a + 2 K, ... of K classes are slow, a the affected
class.  With cyclic selection every cohort of K clients then has one of them.
"""

import numpy as np

from fedjax_het.core.errors import UserError
from fedjax_het.data.sources import Dataset

SINGLE = "single"


def slow_clients(
  num_clients: int, num_classes: int, affected: int
) -> np.ndarray:
  """i64[M]: the ids of those who are late.

  Raises:
    UserError: no such class, or nobody would be slow.
  """
  if not 0 <= affected < num_classes:
    raise UserError(
      f"--staleness_class={affected}: give a class from 0 to {num_classes - 1}"
    )
  slow = np.arange(affected, num_clients, num_classes)
  if not slow.size:
    raise UserError(
      f"{num_clients} clients, none of class {affected}: give at least "
      f"--num_clients={affected + 1}"
    )
  return slow


def partition_of(skew: str, affected: int) -> str:
  """The partition that a flag names, as `partition.parse` takes it.

  Args:
    skew: "single", or "dirichlet:ALPHA".
    affected: the class.

  Raises:
    UserError: anything else.
  """
  if skew == SINGLE:
    return "pathological:1,class_assignment_mode=deterministic"
  name, _, alpha = skew.partition(":")
  try:
    positive = float(alpha) > 0
  except ValueError:
    positive = False
  if name != "dirichlet" or not positive:
    raise UserError(
      f"--staleness_skew={skew}: give single, or dirichlet:ALPHA with ALPHA > 0"
    )
  return f"affected_dirichlet:{alpha},affected={affected}"


def pooled_images(dataset: Dataset, factor: int) -> Dataset:
  """Means over squares of `factor` pixels: the search costs as much less.

  Raises:
    UserError: images that do not divide.
  """
  if factor == 1:
    return dataset
  height, width = dataset.train_x.shape[1:3]
  if height % factor or width % factor:
    raise UserError(
      f"--staleness_pool={factor}: images of {height} x {width} do not divide"
    )

  def pool(x):
    shape = (-1, height // factor, factor, width // factor, factor, x.shape[-1])
    return x.reshape(shape).mean((2, 4)).astype(np.float32)

  return dataset._replace(
    train_x=pool(dataset.train_x), test_x=pool(dataset.test_x)
  )


def check_cycle(num_clients: int, cohort_size: int, delay: int) -> None:
  """The truth of an estimate comes if its client is asked tau rounds later.

  Raises:
    UserError: cyclic selection would never do that.
  """
  if num_clients % cohort_size:
    raise UserError(
      f"--cohort_size={cohort_size} does not divide --num_clients="
      f"{num_clients}: cyclic selection then has no fixed cycle"
    )
  cycle = num_clients // cohort_size
  if delay % cycle or not delay:
    raise UserError(
      f"--staleness_delay={delay} is no multiple of the cycle of {cycle} rounds"
      " (clients / cohort): the truth of no estimate would ever come, and "
      "nothing could be switched back"
    )
