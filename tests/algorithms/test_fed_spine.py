"""FedSpine's parts against loops, and the whole on a tiny transformer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from federation import EVERYBODY, KEY, assert_same

from fedjax_het import models
from fedjax_het.algorithms import Costs, Ramp, fed_avg, fed_spine
from fedjax_het.algorithms import _lora_importance as importances
from fedjax_het.algorithms import _spine_structure as structures
from fedjax_het.algorithms._spine_server import Report, rewards
from fedjax_het.core import rounds, wire
from fedjax_het.core.errors import UserError
from fedjax_het.core.types import Examples, Model
from fedjax_het.models.lora import adapt

HEADS, WIDTH, HIDDEN, LAYERS = 4, 8, 6, 2
TARGETS = ("q", "k", "v", "o", "up", "down")
UNITS = LAYERS * (HEADS + HIDDEN)


def _vit():
  return models.build(
    "vit", (4, 3, 1), 3, width=WIDTH, heads=HEADS, hidden=HIDDEN, layers=LAYERS
  )


def _data():
  data = tiny.data()
  return data._replace(
    examples=Examples(data.examples.x.reshape(-1, 4, 3, 1), data.examples.y),
    heldout=Examples(data.heldout.x.reshape(-1, 4, 3, 1), data.heldout.y),
  )


def _structure():
  shapes = jax.eval_shape(_vit().init, KEY)
  names = tuple(f"layer_{i}/{t}" for i in range(LAYERS) for t in TARGETS)
  return structures.structure_of(shapes, names, HEADS)


def _costs(slowest=10.0):
  a = jnp.linspace(1, slowest, tiny.CLIENTS)
  return Costs(a, jnp.full(tiny.CLIENTS, 1e-3))


def _spine(arms, **options):
  options = {"weigh": "examples", "prune_every": 1, "max_rank": 2} | options
  ramp = options.pop("ramp", Ramp(2))
  return fed_spine(
    _vit(),
    arms,
    _costs(),
    ramp,
    optimizer=optax.sgd(0.1),
    batch_size=8,
    heads=HEADS,
    **options,
  )


def _run(algorithm, cohorts=EVERYBODY):
  """A round per cohort, compiled without optimisation: that is the time."""

  def one_round(state, data, ids):
    return rounds.make_round(algorithm, lambda key, data: ids)(state, data)

  step = jax.jit(
    one_round, compiler_options={"xla_backend_optimization_level": 0}
  )
  first = state = rounds.init_state(algorithm, KEY, tiny.CLIENTS)
  seen = []
  for ids in cohorts:
    state, cohort = step(state, _data(), jnp.asarray(ids))
    seen.append(cohort)
  return first, state, seen


def _random(rng, rank=2):
  """Merged weights, adapters and their gradients, of random numbers."""
  merged, adapters, gradients = {}, {}, {}
  for name, (wide, tall) in _structure().matrices.items():
    layer, matrix = name.split("/")
    own = merged.setdefault(layer, {})
    own[matrix] = {"kernel": jnp.float32(rng.normal(size=(wide, tall)))}
    for out in (adapters, gradients):
      out[name] = {
        "a": jnp.float32(rng.normal(size=(wide, rank))),
        "b": jnp.float32(rng.normal(size=(rank, tall))),
      }
  return merged, adapters, gradients


def test_importance_is_the_papers():
  """A loop over units in float64, in the paper's orientation [out, in]."""
  merged, adapters, gradients = _random(np.random.default_rng(0))
  got = importances.lora_score(_structure(), merged, adapters, gradients)

  def score(name):
    layer, matrix = name.split("/")
    w = np.asarray(merged[layer][matrix]["kernel"], np.float64).T
    up, down, g_up, g_down = (
      np.asarray(of[name][k], np.float64).T
      for of, k in (
        (adapters, "b"),
        (adapters, "a"),
        (gradients, "b"),
        (gradients, "a"),
      )
    )  # the paper's B [out, R], A [R, in]
    estimate = g_up @ down + up @ g_down - g_up @ g_down
    return np.abs(estimate * w)

  for layer in range(LAYERS):
    size = WIDTH // HEADS
    for kind, count, rows, columns in (
      ("heads", HEADS, ("q", "k", "v"), ("o",)),
      ("channels", HIDDEN, ("up",), ("down",)),
    ):
      size = (WIDTH if kind == "heads" else HIDDEN) // count
      total = np.zeros(count)
      for matrix in rows + columns:
        each = score(f"layer_{layer}/{matrix}")
        part = np.zeros(count)
        for unit in range(count):
          for i in range(unit * size, (unit + 1) * size):
            part[unit] += (each[i] if matrix in rows else each[:, i]).sum()
        total += part / np.sqrt((part**2).sum())
      np.testing.assert_allclose(got[f"layer_{layer}/{kind}"], total, rtol=1e-5)


def test_running_mean():
  old, new = {"a": jnp.float32([1, 0])}, {"a": jnp.float32([0, 2])}
  np.testing.assert_allclose(
    importances.running(old, new)["a"], [0.9, 0.2], rtol=1e-6
  )


def test_ramp_is_cubic_between_warm_up_and_cool_down():
  ramp = Ramp(20, warm_up=4, cool_down=6)
  times = np.array([0, 4, 6.5, 9, 14, 20])
  want = [0, 0, 1 - 0.75**3, 1 - 0.5**3, 1, 1]
  got = [float(ramp.at(jnp.float32(t))) for t in times]
  np.testing.assert_allclose(got, want, atol=1e-6)


def _slow_cut(score, keep, ratio, skip=()):
  """One unit after another: takes the one that is worth least."""
  out = {}
  for kind, size in (("heads", HEADS), ("channels", HIDDEN)):
    left = {}
    for layer in range(LAYERS):
      name = f"layer_{layer}/{kind}"
      for unit in range(size):
        left[layer, unit] = (keep[name][unit] > 0, score[name][unit])
    best = {
      max((k for k in left if k[0] == layer), key=lambda k: (*left[k], -k[1]))
      for layer in range(LAYERS)
    }
    remove, order = round(ratio * len(left)), list(left)
    free = [k for k in order if k not in best and k[0] not in skip]
    # the last of equals goes first
    free.sort(key=lambda k: (*left[k], [-i for i in k]))
    for gone in free[:remove]:
      del left[gone]
    for layer in range(LAYERS):
      out[f"layer_{layer}/{kind}"] = [
        float((layer, unit) in left) for unit in range(size)
      ]
  return out


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5, 0.95])
@pytest.mark.parametrize("skip", [(), (1,)])
def test_cuts_are_exact(ratio, skip):
  structure, rng = _structure(), np.random.default_rng(1)
  for _ in range(5):
    score = {
      g.name: jnp.float32(rng.integers(0, 4, g.size)) for g in structure.groups
    }  # many ties
    keep = {
      g.name: jnp.float32(rng.integers(0, 2, g.size)) for g in structure.groups
    }
    got = importances.cut(structure, score, keep, jnp.float32(ratio), skip)
    want = _slow_cut(score, keep, ratio, skip)
    for name in want:
      np.testing.assert_array_equal(got[name], want[name], err_msg=name)
      assert got[name].sum() >= 1


def test_a_removed_unit_is_nowhere_in_the_network():
  """As if its rows of o and down were 0."""
  model, structure = _vit(), _structure()
  params = model.init(KEY)
  rng = np.random.default_rng(2)
  keep = {
    g.name: jnp.float32(rng.integers(0, 2, g.size)) for g in structure.groups
  }
  x = jnp.float32(rng.normal(size=(3, 4, 3, 1)))
  zeroed = jax.tree.map(lambda leaf: leaf, params)
  for group in structure.groups:
    layer, matrix = group.read_by[0].split("/")
    kernel = np.array(zeroed[layer][matrix]["kernel"])
    part = kernel.reshape(group.size, -1, kernel.shape[1])
    part[np.asarray(keep[group.name]) == 0] = 0
    zeroed[layer] = zeroed[layer] | {matrix: {"kernel": jnp.asarray(kernel)}}
  np.testing.assert_allclose(
    model.apply(structure.put(params, keep), x),
    model.apply(zeroed, x),
    atol=1e-5,
  )
  assert np.abs(model.apply(params, x) - model.apply(zeroed, x)).max() > 1e-3


def test_work_counts_the_smaller_matrices():
  structure = _structure()
  keep = {
    g.name: jnp.arange(g.size) < n
    for g, n in zip(structure.groups, (2, 3, 4, 1), strict=True)
  }
  keep = {name: k.astype(jnp.float32) for name, k in keep.items()}
  want, rank = 0, 2
  for heads, channels in ((2, 3), (4, 1)):
    inner = heads * WIDTH // HEADS
    sizes = [(WIDTH, inner)] * 3 + [(inner, WIDTH)]
    sizes += [(WIDTH, channels), (channels, WIDTH)]
    want += sum(2 * i * o + 3 * rank * (i + o) for i, o in sizes)
  got = structures.work(structure, keep, jnp.float32(rank))
  np.testing.assert_allclose(got, want, rtol=1e-6)
  np.testing.assert_allclose(
    structures.sparsity(keep), 1 - (6 / 8 + 4 / 12) / 2, rtol=1e-6
  )


def test_rewards():
  rng = np.random.default_rng(3)
  took = np.array([True, False, True, True, True, False])
  report = Report(
    drop=rng.normal(size=6),
    gained=rng.uniform(-0.2, 0.3, 6),
    retained=rng.uniform(0.3, 1, 6),
    seconds=rng.uniform(1, 9, 6),
  )
  got = rewards(
    Report(*map(jnp.float32, report)), jnp.asarray(took), progress=2, delay=0.5
  )
  median = np.median(report.seconds[took])
  size = np.abs(report.drop[took]).mean()
  for k in np.flatnonzero(took):
    value = report.drop[k] / size * (1 + 2 * report.gained[k])
    value *= report.retained[k]
    value -= 0.5 * abs(report.seconds[k] - median) / median
    np.testing.assert_allclose(got[k], np.clip(value, -1, 2), rtol=1e-4)


def test_without_pruning_it_is_fed_avg_of_adapters():
  """Ratio 0 and one rank: FedAvg on a model that joins adapters to the base."""
  model = _vit()
  adapted = adapt(model, rank=2, targets=TARGETS)
  # the engine's key of the server, and FedSpine's of the model
  own = jax.random.split(jax.random.split(KEY, 3)[0])[0]
  frozen, trained = adapted.init(own)
  plain = fed_avg(
    Model(
      lambda key: trained,
      lambda params, x: model.apply(adapted.join(frozen, params), x),
    ),
    optimizer=optax.sgd(0.1),
    batch_size=8,
  )
  _, want, _ = _run(plain)
  _, got, seen = _run(_spine([(0.0, 2)]))
  server = got.server
  assert_same(
    {"lora": server.factors.adapters, "full": server.full},
    want.server.params,
    rtol=1e-4,
    atol=1e-5,
  )
  np.testing.assert_array_equal(server.keep, 1)
  # a work + b bytes, work in whole steps
  last = seen[-1]
  sent = np.asarray(last.up_bytes + last.down_bytes, np.float64)
  want = (
    np.asarray(_costs().step_seconds)[last.ids] * np.asarray(last.steps)
    + 1e-3 * sent
  )
  np.testing.assert_allclose(last.metrics["seconds"], want, rtol=1e-5)


@pytest.mark.parametrize("importance", ["lora", "random", "same_random"])
def test_a_run_prunes_half_and_counts_its_bytes(importance):
  algorithm = _spine([(0.5, 2), (0.5, 1)], importance=importance)
  _, state, seen = _run(algorithm)
  structure = _structure()
  for k in range(tiny.CLIENTS):
    keep = structures.unflat(structure, state.server.keep[k])
    for kind, size in (("heads", HEADS), ("channels", HIDDEN)):
      each = [keep[f"layer_{i}/{kind}"] for i in range(LAYERS)]
      assert sum(int(e.sum()) for e in each) == LAYERS * size // 2
      assert all(e.sum() >= 1 for e in each)
  own = [state.clients.keep[g.name][0] for g in structure.groups]
  own = np.concatenate(own)
  np.testing.assert_array_equal(own, state.server.keep[0])
  rows = sum(i + o for i, o in structure.matrices.values())
  head = WIDTH * 3 + 3
  for rank, client in ((2, 0), (1, 1)):
    up = 4 * rank * rows + -(-UNITS // 8) + 4 * head + 16
    assert int(seen[-1].up_bytes[client]) == up
    assert int(seen[-1].down_bytes[client]) == up - (-(-UNITS // 8)) - 4
  agree = (np.ptp(np.asarray(state.server.keep), axis=0) == 0).all()
  assert agree == (importance == "same_random")
  params = algorithm.global_params(state.server)
  voted = sum(
    float(params[f"layer_{i}"]["keep_heads"].sum()) for i in range(LAYERS)
  )
  assert voted == LAYERS * HEADS / 2
  mine = algorithm.predict(
    state.server,
    jax.tree.map(lambda leaf: leaf[1], state.clients),
    jnp.int32(1),
  )
  assert np.abs(mine["layer_0"]["q"]["lora_a"][:, 1:]).max() == 0


@pytest.mark.slow
@pytest.mark.parametrize("average", ["product", "stack"])
def test_other_averages_run_and_learn(average):
  algorithm = _spine(
    [(0.25, 2), (0.25, 1)],
    average=average,
    cohort_size=tiny.CLIENTS,
    ramp=Ramp(12),
  )
  everybody = [list(range(tiny.CLIENTS))] * 12
  first, last, seen = _run(algorithm, everybody)
  losses = [
    float(np.average(s.metrics["loss"], weights=s.weight)) for s in seen
  ]
  assert losses[-1] < losses[0] - 0.1
  if average == "stack":
    for name, of in last.server.factors.adapters.items():
      np.testing.assert_array_equal(
        of["a"], first.server.factors.adapters[name]["a"]
      )
    down = algorithm.downlink(last.server, jnp.int32(0))
    size = sum(i * o for i, o in _structure().matrices.values())
    assert int(wire.nbytes(down)) == 4 * size + 4 * (WIDTH * 3 + 3) + 12


@pytest.mark.parametrize(
  "change, match",
  [
    ({"importance": "lara"}, "did you mean 'lora'"),
    ({"average": "mean"}, "average of adapters"),
    ({"weigh": "rows"}, "weighting"),
    ({"judged": "votes"}, "did you mean 'vote'"),
    ({"prune_every": 0}, "prune_every"),
    ({"heads": None}, "how many a layer has"),
    ({"heads": 3}, "must divide"),
    ({"max_rank": 1}, "below a rank"),
    ({"ramp": Ramp(4, 2, 2)}, "leave none"),
    ({"costs": Costs(jnp.ones(2), jnp.ones(3))}, "for every client"),
    ({"costs": Costs(-jnp.ones(2), jnp.ones(2))}, "below 0"),
    ({"arms": [(1.0, 2)]}, "ratio in"),
    ({"arms": []}, "at least one"),
  ],
)
def test_mistakes(change, match):
  options = {
    "arms": [(0.5, 2)],
    "costs": _costs(),
    "ramp": Ramp(4),
    "heads": HEADS,
    "optimizer": optax.sgd(0.1),
    "batch_size": 8,
  } | change
  with pytest.raises(UserError, match=match):
    fed_spine(_vit(), **options)


def test_a_network_without_units():
  shapes = {name: {"kernel": jnp.ones((3, 4))} for name in ("first", "second")}
  with pytest.raises(UserError, match="no heads or hidden channels"):
    structures.structure_of(shapes, ("first",), None)
