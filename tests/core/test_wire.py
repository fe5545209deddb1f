"""Bytes counted from messages equal the bytes that an encoder writes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_het.core import wire
from fedjax_het.core.errors import UserError

MESSAGES = {
  "floats": {"a": jnp.arange(6.0).reshape(2, 3), "b": jnp.float32(2)},
  "mixed": (jnp.arange(5, dtype=jnp.uint8), jnp.arange(3, dtype=jnp.int32)),
  "half": jnp.arange(3, dtype=jnp.bfloat16),
  "known": (wire.Known(jnp.zeros(100), setup_bytes=8), jnp.ones(2)),
  "nothing": (),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_counted_bytes_are_the_bytes_written(name):
  message = MESSAGES[name]
  data = wire.encode(message)
  assert len(data) == wire.nbytes(message)
  back = wire.decode(data, message)
  assert jax.tree.structure(back) == jax.tree.structure(message)
  jax.tree.map(np.testing.assert_array_equal, back, message)


def test_floats_travel_little_endian():
  message = jnp.asarray([1.0, -2.5], jnp.float32)
  assert wire.encode(message) == np.array([1.0, -2.5], "<f4").tobytes()


def test_counting_works_on_shapes_and_inside_vmap():
  message = MESSAGES["floats"]
  shapes = jax.eval_shape(lambda: message)
  assert wire.nbytes(shapes) == 28
  stacked = jax.tree.map(lambda leaf: jnp.stack([leaf] * 4), message)
  counted = jax.vmap(lambda m: jnp.int32(wire.nbytes(m)))(stacked)
  np.testing.assert_array_equal(counted, [28] * 4)


def test_what_is_known_costs_only_its_setup():
  message = MESSAGES["known"]
  assert wire.nbytes(message) == 8  # the two floats
  assert wire.setup_nbytes(message) == 8  # the seed


def test_a_message_of_another_configuration_is_refused():
  with pytest.raises(UserError, match="7 bytes.*takes 8"):
    wire.decode(b"1234567", jnp.ones(2))
