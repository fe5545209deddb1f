"""A data set in host memory, and how its pixels are normalised."""

from typing import NamedTuple

import numpy as np


class Dataset(NamedTuple):
  """Labelled images in host memory, before they are dealt to clients.

  train_x: f32[n, H, W, C], normalised.   train_y: i32[n].
  test_x: f32[m, H, W, C], normalised by the training set.  test_y: i32[m].
  num_classes: labels are 0 .. num_classes - 1.
  name, source, licence: where it came from and on what terms.
  """

  train_x: np.ndarray
  train_y: np.ndarray
  test_x: np.ndarray
  test_y: np.ndarray
  num_classes: int
  name: str
  source: str
  licence: str


def normalised(train, test, **about) -> Dataset:
  """Normalises (x [n, H, W, C], y [n]) pairs by the training set."""
  # order="C" also makes `flat` a view of channels-first data.
  train_x = train[0].astype(np.float32, order="C")
  test_x = test[0].astype(np.float32, order="C")
  flat = train_x.reshape(-1, train_x.shape[-1])
  mean = flat.mean(axis=0, dtype=np.float64).astype(np.float32)
  train_x -= mean
  test_x -= mean
  # einsum makes no float64 copy, which `std` would: 1.2 GB for CIFAR-10.
  square = np.einsum("ic,ic->c", flat, flat, dtype=np.float64)
  std = np.sqrt(square / len(flat)).astype(np.float32)
  std[std == 0] = 1
  train_x /= std
  test_x /= std
  return Dataset(
    train_x,
    train[1].astype(np.int32),
    test_x,
    test[1].astype(np.int32),
    **about,
  )
