"""One budget of steps for two trainings, counted by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_het.algorithms._two_trainings import TwoTrainings
from fedjax_het.core import local
from fedjax_het.core.types import NO_BUDGET, ClientData


@pytest.mark.parametrize("count", [1, 8, 9])
@pytest.mark.parametrize("epochs", [(2, 3), (0, 3), (3, 0)])
@pytest.mark.parametrize("budget", [0, 1, 2, 3, 4, 5, 20, NO_BUDGET])
def test_the_second_gets_what_the_first_leaves(count, epochs, budget):
  per_epoch = -(-count // 4)
  half = (budget + 1) // 2
  first = min(epochs[0] * per_epoch, half)
  second = min(epochs[1] * per_epoch, budget - first)
  trainings = TwoTrainings(4, *epochs)
  got = trainings.num_steps(jnp.int32(count), jnp.int32(budget))
  assert int(got) == first + second <= budget
  data = ClientData((), (), jnp.int32(count), jnp.int32(budget))
  each = [
    int(local.num_steps(d.count, d.budget, batch_size=4, epochs=e))
    for d, e in zip(trainings.share(data), epochs, strict=True)
  ]
  np.testing.assert_array_equal(each, [first, second])
