"""What a client of FedSpine does: it trains adapters and cuts its network.

See `_fed_spine` for the method.  The loop over local steps carries adapters,
structure and counters together; only the adapters have a gradient.
"""

from collections.abc import Callable, Collection
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_het.algorithms import _lora_importance as importances
from fedjax_het.algorithms import _spine_structure as structures
from fedjax_het.algorithms._kept_values import KeptValues, kept_values
from fedjax_het.algorithms._lora_importance import Ramp, Score
from fedjax_het.algorithms._rank_average import rank_mask
from fedjax_het.algorithms._spine_server import Report
from fedjax_het.algorithms._spine_structure import Keep, Structure
from fedjax_het.core import local, wire
from fedjax_het.core.types import Array, Params, PyTree, Upload
from fedjax_het.models.lora import Adapted


class Training(NamedTuple):
  """How clients train; see `fed_spine` for what is not said here.

  base_of: (frozen, what "stack" added) -> the base.
  most: work of one step of the whole network at the largest rank.
  remakes: whether the base comes down in full and adapters start anew.
  """

  adapted: Adapted
  structure: Structure
  ramp: Ramp
  optimizer: optax.GradientTransformation
  batch_size: int
  epochs: int
  importance: str
  weigh: str
  prune_every: int
  skip: Collection[int]
  base_of: Callable[[Params, PyTree], Params]
  most: Array
  remakes: bool


class SpineClient(NamedTuple):
  """score: running importance;  keep: structure;  steps: i32[], local ones."""

  score: Score
  keep: Keep
  steps: Array


class News(NamedTuple):
  """What travels up; the note of the adapters is the structure."""

  client: wire.Known
  adapters: KeptValues
  full: Params
  report: Report


class _Local(NamedTuple):
  """What the loop over local steps carries; only `trained` has a gradient.

  early, late: f32[], sums of the losses of the first and the second half.
  work: f32[], of the steps, in steps of the whole network at the largest rank.
  retained: f32[], see `_lora_importance.retained`, over all cuts.
  """

  trained: Params
  client: SpineClient
  early: Array
  late: Array
  work: Array
  retained: Array


def spine_client(work: Training):
  """The `client` of an `Algorithm`."""
  structure, most = work.structure, work.most

  def client(message, kept, data, key):
    number, frozen, (step_seconds, byte_seconds), chance = message.known.tree
    base = work.base_of(frozen, message.moved)
    lora = message.adapters.tree if work.remakes else message.adapters.values
    mask = rank_mask(lora, message.rank)
    lora = jax.tree.map(lambda m, v: jnp.where(m, v, 0), mask, lora)
    steps = local.num_steps(
      data.count,
      data.budget,
      batch_size=work.batch_size,
      epochs=work.epochs,
    )
    half = steps // 2

    def loss(trained, keep, batch, key):
      seen = structure.put(work.adapted.join(base, trained), keep)
      return local.cross_entropy(work.adapted.model)(seen, batch, key)

    def prune(carry, grads):
      own, trained = carry.client, carry.trained
      if work.importance in importances.RANDOM:
        new = chance
      else:
        merged = work.adapted.merge(base, trained)
        if work.importance == "lora":
          new = importances.lora_score(
            structure, merged, trained["lora"], grads["lora"]
          )
        else:
          new = importances.magnitude_score(structure, merged, trained["lora"])
      score = importances.running(own.score, new)
      done = (own.steps - kept.steps).astype(jnp.float32)
      part = done / jnp.maximum(steps, 1).astype(jnp.float32)
      ratio = message.ratio * work.ramp.at(
        message.round.astype(jnp.float32) + part
      )
      keep = importances.cut(structure, score, own.keep, ratio, work.skip)
      share = importances.retained(score, own.keep, keep)
      return carry._replace(
        client=SpineClient(score, keep, own.steps),
        retained=carry.retained * share,
      )

    def step(carry, batch, key):
      own = carry.client
      value, grads = jax.value_and_grad(loss)(
        carry.trained, own.keep, batch, key
      )
      t = own.steps - kept.steps
      new = carry._replace(
        client=own._replace(steps=own.steps + 1),
        early=carry.early + jnp.where(t < half, value, 0),
        late=carry.late + jnp.where(t >= steps - half, value, 0),
        work=carry.work
        + structures.work(structure, own.keep, message.rank.astype(jnp.float32))
        / most,
      )
      new = jax.lax.cond(
        new.client.steps % work.prune_every == 0,
        prune,
        lambda carry, grads: carry,
        new,
        grads,
      )
      return value, optax.tree.sub(new, carry)._replace(trained=grads)

    zero = jnp.float32(0)
    start = _Local(
      {"lora": lora, "full": message.full},
      kept,
      early=zero,
      late=zero,
      work=zero,
      retained=jnp.float32(1),
    )
    result = local.follow(
      step,
      start,
      data,
      key,
      optimizer=_carrying(work.optimizer),
      batch_size=work.batch_size,
      epochs=work.epochs,
    )
    end = result.params
    bits = structures.flat(structure, end.client.keep) > 0
    drop = (end.early - end.late) / jnp.maximum(half, 1).astype(jnp.float32)
    sparsity = structures.sparsity(end.client.keep)
    news = News(
      wire.Known(number, setup_bytes=0),
      kept_values(end.trained["lora"], mask, bits),
      end.trained["full"],
      Report(
        drop,
        sparsity - structures.sparsity(kept.keep),
        end.retained,
        seconds=zero,
      ),
    )
    sent = wire.nbytes(news) + wire.nbytes(message)
    seconds = step_seconds * end.work
    seconds = seconds + byte_seconds * jnp.asarray(sent).astype(jnp.float32)
    news = news._replace(report=news.report._replace(seconds=seconds))
    weight = data.count.astype(jnp.float32)
    if work.weigh == "density":
      weight = weight * jnp.maximum(1 - sparsity, 1e-3)
    elif work.weigh == "retained":
      weight = weight * jnp.maximum(end.retained, 1e-3)
    metrics = {
      "loss": result.loss,
      "drop": drop,
      "ratio": message.ratio,
      "rank": message.rank.astype(jnp.float32),
      "sparsity": sparsity,
      "retained": end.retained,
      "seconds": seconds,
    } | {f"kept/{name}": jnp.mean(k) for name, k in end.client.keep.items()}
    return Upload(news, weight, end.client, metrics, result.ok)

  return client


def _carrying(
  optimizer: optax.GradientTransformation,
) -> optax.GradientTransformation:
  """The optimiser for `trained`; the rest moves by what the step says."""

  def update(grads, state, params):
    moves, state = optimizer.update(grads.trained, state, params.trained)
    return grads._replace(trained=moves), state

  return optax.GradientTransformation(
    lambda params: optimizer.init(params.trained), update
  )
