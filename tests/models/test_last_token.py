"""Next-token prediction: the loss at every place, the judge at the last."""

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.core import local
from fedjax_het.models.transformer import Shape, last_token, transformer

NETWORK = transformer(
  Shape(vocabulary=7, width=8, heads=2, kv_heads=2, head_width=4, hidden=8)
)


def test_the_loss_is_that_of_a_loop_over_places():
  rng = np.random.default_rng(0)
  x, y = rng.integers(0, 7, (3, 5)), rng.integers(0, 7, 3)
  params = NETWORK.init(jax.random.key(0))
  batch = local.Batch(
    jnp.asarray(x, jnp.int32), jnp.asarray(y, jnp.int32), jnp.array([1.0, 0, 1])
  )
  got = local.next_tokens(NETWORK)(params, batch, jax.random.key(1))
  logits = np.asarray(NETWORK.apply(params, batch.x), np.float64)
  each = []
  for row in (0, 2):  # 1 is padding
    for place in range(5):
      target = x[row, place + 1] if place < 4 else y[row]
      z = logits[row, place]
      each.append(np.log(np.exp(z).sum()) - z[target])
  np.testing.assert_allclose(got, np.mean(each), rtol=1e-5)


def test_the_last_place_is_judged():
  params = NETWORK.init(jax.random.key(0))
  x = jax.random.randint(jax.random.key(1), (4, 6), 0, 7)
  judge = last_token(NETWORK)
  np.testing.assert_array_equal(
    judge.apply(params, x), NETWORK.apply(params, x)[:, 5]
  )
  assert jax.tree.structure(judge.init(jax.random.key(0))) == (
    jax.tree.structure(params)
  )
