"""Waves and merges as arrays of a few sizes, dealt to the devices of a mesh.

Slot i of S lies on device i // (S / D).  Sizes are padded to powers of two, so
that a schedule of thousands of waves compiles a handful of programs.
"""

import jax.numpy as jnp
import numpy as np

from fedjax_het.core.errors import UserError
from fedjax_het.devices.asynchronous import Batch, Linear
from fedjax_het.devices.waves import Merges, Wave

_SMALLEST = 8


def batch_of(
  wave: Wave, slots: int, devices: int, chunk: int
) -> tuple[Batch, np.ndarray]:
  """Gives each update to the device of its slot, longest first, and pads.

  Returns:
    (Batch, i64[n]: where each update of the wave lies in it).
  """
  _check_slots(wave.slot, slots)
  each = slots // devices
  order = np.argsort(-wave.steps.astype(np.int64), kind="stable")
  place, counts, size = _by_device(wave.slot[order], each, devices, chunk)
  back = np.empty_like(place)
  back[order] = place

  def dealt(values, padding):
    out = np.full(devices * size, padding, np.int32)
    out[back] = values
    return jnp.asarray(out)

  return (
    Batch(
      dealt(wave.task, 0),
      dealt(wave.client, 0),
      dealt(wave.steps, 0),
      dealt(wave.slot % each, each),
      jnp.asarray(counts, jnp.int32),
    ),
    back,
  )


def linear_of(merges: Merges, slots: int, devices: int) -> Linear:
  """Sorts what merges read and write by device, and pads it."""
  _check_slots(merges.sent_slots, slots)
  each = slots // devices
  rows = _padded(len(merges.models))

  def matrix(values, place, width):
    out = np.zeros((rows, width), np.float32)
    out[: len(values), place] = values
    return jnp.asarray(out)

  def vector(values, padding, place, width):
    out = np.full(width, padding, np.int32)
    out[place] = values
    return jnp.asarray(out)

  def dealt(chosen):
    """(places, width): nothing at all where no slot is used."""
    if not len(chosen):
      return np.zeros(0, np.int64), 0
    place, _, size = _by_device(chosen, each, devices)
    return place, devices * size

  starts, changes = dealt(merges.start_slots), dealt(merges.change_slots)
  sent, models = dealt(merges.sent_slots), merges.models.shape[1]
  return Linear(
    matrix(merges.models, np.arange(models), models),
    matrix(merges.starts, *starts),
    matrix(merges.changes, *changes),
    vector(merges.start_slots % each, 0, *starts),
    vector(merges.change_slots % each, 0, *changes),
    vector(merges.sent, 0, *sent),
    vector(merges.sent_slots % each, each, *sent),
  )


def _by_device(
  slots: np.ndarray, each: int, devices: int, multiple: int = 1
) -> tuple[np.ndarray, np.ndarray, int]:
  """Where slots go if device d has the places from d x size on.

  Returns:
    (i64[n], i64[D]: how many each device has, size).
  """
  device = slots.astype(np.int64) // each
  counts = np.bincount(device, minlength=devices)
  size = _padded(counts.max(), multiple)
  rank = np.empty(len(slots), np.int64)
  for d in range(devices):
    rank[device == d] = np.arange(counts[d])
  return device * size + rank, counts, size


def _padded(size: int, multiple: int = 1) -> int:
  """The next of a few sizes, a multiple of `multiple`."""
  padded = max(_SMALLEST, multiple)
  while padded < size:
    padded *= 2
  return padded


def _check_slots(used: np.ndarray, slots: int) -> None:
  if used.size and used.max() >= slots:
    raise UserError(
      f"more than {slots} updates are in memory at a time: give more slots"
    )
