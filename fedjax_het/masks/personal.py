"""All clients' masked networks at once, from one bit a weight and client.

Supermask methods give every client the same frozen weights and a mask of its
own.  Dense networks for N clients are N P numbers; here the masks stay packed
(N P / 8 bytes) through the products with them (`masked_matmul`), and the
activations of a chunk of clients are the only temporary.

The network is a chain of dense layers with ReLU between, as `models.mlp`
builds; others are evaluated client by client (`core.evaluate`).
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_het.core.errors import UserError
from fedjax_het.core.rounds import TrainState
from fedjax_het.core.types import Array, FederatedData, Params
from fedjax_het.masks.support import Support
from fedjax_het.masks.votes import PackedSigns
from fedjax_het_kernels.masked_matmul.op import masked_matmul, pack_rows

# Numbers in the widest activation of a chunk, 16 MiB of float32.
_ACTIVATIONS = 2**22


class Layer(NamedTuple):
  """kernel f[K, M];  bias f[M] or None."""

  kernel: Array
  bias: Array | None


def layers(params: Params) -> list[Layer]:
  """The chain of dense layers, in the order in which it is applied.

  Args:
    params: {"Dense_0": {"kernel", "bias"}, ...}, as `models.mlp` has them;
      applied in the order of the numbers in the names.

  Raises:
    UserError: another kind of network.
  """

  def number(name: str) -> int:
    found = re.search(r"(\d+)$", name)
    return int(found.group(1)) if found else -1

  def is_dense(layer) -> bool:
    return (
      isinstance(layer, dict)
      and {"kernel"} <= set(layer) <= {"kernel", "bias"}
      and layer["kernel"].ndim == 2
    )

  names = sorted(params, key=number) if isinstance(params, dict) else []
  if not names or not all(is_dense(params[name]) for name in names):
    raise UserError(
      "packed masks are evaluated in chains of dense layers, such as"
      " models.mlp; for this network use core.evaluate, client by client"
    )
  found = [Layer(params[n]["kernel"], params[n].get("bias")) for n in names]
  for left, right in zip(found, found[1:], strict=False):
    if left.kernel.shape[1] != right.kernel.shape[0]:
      raise UserError(
        f"dense layers {left.kernel.shape} and {right.kernel.shape} do not"
        " follow each other: name them in the order of their numbers"
      )
  return found


def bits_of(
  params: Params, support: Support, signs: PackedSigns
) -> tuple[Array, ...]:
  """The masks of uploads or of clients' states, packed for the products.

  Args:
    params: gives the layers; one model's.
    support: where the signs belong.
    signs: words u32[N, W], one vector of the kept weights' signs a client.

  Returns:
    For each of `layers(params)` u32[N, ceil(K / 32), M]; bit 0 where a weight
    is pruned.  (With values (-1, 1) a pruned weight must be 0 in params.)
  """

  def one(words):
    values = PackedSigns(words, signs.size).unpack()
    placed = support.place(values, jax.tree.map(jnp.zeros_like, params))
    return tuple(pack_rows(layer.kernel > 0) for layer in layers(placed))

  return lax.map(one, signs.words)


def logits(
  params: Params,
  bits: Sequence[Array],
  x: Array,
  *,
  values: tuple[int, int] = (-1, 1),
  chunk: int | None = None,
  implementation: str | None = None,
) -> Array:
  """What each client's network answers.

  Args:
    params: frozen weights, and biases, of one model.
    bits: a mask of each layer for each client, from `bits_of` or `pack_rows`.
    x: [B, K], one batch for all clients, or [N, B, K]; images flattened.
    values: what bits 0 and 1 stand for: (-1, 1) or (0, 1).
    chunk: clients at a time; None takes as many as 16 MiB of the widest
      activation hold.
    implementation: as in `masked_matmul`.

  Returns:
    [N, B, classes].

  Raises:
    UserError: not a chain of dense layers, or masks of fewer or more.
    ValueError: shapes that do not fit (`masked_matmul`).
  """
  chain, num = layers(params), _num_clients(params, bits)

  def some(start, size):
    own = x if x.ndim == 2 else lax.dynamic_slice_in_dim(x, start, size)
    masks = [lax.dynamic_slice_in_dim(b, start, size) for b in bits]
    return _forward(chain, masks, own, values, implementation)

  return _in_chunks(some, num, chunk or _chunk(chain, x.shape[-2]))


def client_accuracy(
  params: Params,
  bits: Sequence[Array],
  data: FederatedData,
  *,
  batch_size: int = 32,
  values: tuple[int, int] = (-1, 1),
  chunk: int | None = None,
  implementation: str | None = None,
) -> Array:
  """f32[N]: each client's accuracy on its own test split.

  Args:
    params, bits, values, chunk, implementation: as in `logits`.
    data: of the N clients.
    batch_size: examples of a client in one product.

  Raises:
    UserError: as `logits`, or masks of another number of clients.
  """
  chain, num = layers(params), _num_clients(params, bits)
  if num != data.num_clients:
    raise UserError(f"masks of {num} clients, but data of {data.num_clients}")
  index, count = data.test.index, data.test.count

  def some(start, size):
    masks = [lax.dynamic_slice_in_dim(b, start, size) for b in bits]
    rows = lax.dynamic_slice_in_dim(index, start, size)
    counts = lax.dynamic_slice_in_dim(count, start, size)

    def step(carry):
      first, hits = carry
      position = first + jnp.arange(batch_size)
      row = rows[:, jnp.minimum(position, rows.shape[1] - 1)]
      x = data.examples.x[row].reshape(size, batch_size, -1)
      out = _forward(chain, masks, x, values, implementation)
      hit = jnp.argmax(out, axis=-1) == data.examples.y[row]
      hit &= position[None] < counts[:, None]
      return first + batch_size, hits + jnp.sum(hit, axis=1, dtype=jnp.int32)

    start = jnp.int32(0), jnp.zeros_like(counts)
    _, hits = lax.while_loop(lambda c: c[0] < counts.max(), step, start)
    total = jnp.maximum(counts, 1).astype(jnp.float32)
    return hits.astype(jnp.float32) / total

  return _in_chunks(some, num, chunk or _chunk(chain, batch_size))


def judge(
  *, values: tuple[int, int] = (-1, 1), implementation: str | None = None
) -> Callable[[TrainState, FederatedData], Array]:
  """Clients' accuracies under their own signs, for `core.evaluate`.

  Args:
    values: of `algorithms.hide_n_seek(personal=True, values=values)`.
    implementation: as in `masked_matmul`.

  Returns:
    (state, data) -> f32[N], for `make_evaluate(judge=...)`; equal to its
    default for `models.mlp` (ReLU between dense layers).
  """

  def accuracy(state, data):
    weights = state.server.weights
    bits = bits_of(weights, state.server.support, state.clients)
    return client_accuracy(
      weights, bits, data, values=values, implementation=implementation
    )

  return accuracy


def _forward(chain, masks, x, values, implementation) -> Array:
  for i, (layer, bits) in enumerate(zip(chain, masks, strict=True)):
    x = masked_matmul(
      jax.nn.relu(x) if i else x,
      layer.kernel,
      bits,
      values=values,
      implementation=implementation,
    )
    if layer.bias is not None:
      x = x + layer.bias[None, None]
  return x


def _in_chunks(
  function: Callable[[Array, int], Array], num: int, chunk: int
) -> Array:
  """function(start, size) -> [size, ...] of all of `num` clients, [num, ...].

  Chunks are equal, and the last one begins early enough to be full: nothing is
  padded or copied, and less than one client a chunk is computed twice.
  """
  if chunk >= num:
    return function(jnp.int32(0), num)
  chunks = -(-num // chunk)
  chunk = -(-num // chunks)
  starts = jnp.minimum(jnp.arange(chunks) * chunk, num - chunk)
  parts = lax.map(lambda start: function(start, chunk), starts)
  whole = parts[:-1].reshape(-1, *parts.shape[2:])
  rest = num - whole.shape[0]
  return jnp.concatenate([whole, parts[-1, chunk - rest :]])


def _chunk(chain: list[Layer], batch: int) -> int:
  width = max(layer.kernel.shape[1] for layer in chain)
  return max(1, _ACTIVATIONS // max(1, batch * width))


def _num_clients(params: Params, bits: Sequence[Array]) -> int:
  chain = layers(params)
  if len(bits) != len(chain):
    raise UserError(f"{len(bits)} masks for {len(chain)} dense layers")
  return bits[0].shape[0]
