"""Data sets that need no file: inside scikit-learn, or generated."""

from collections.abc import Sequence

import numpy as np

from fedjax_het.core.errors import UserError
from fedjax_het.data._dataset import Dataset, normalised


def digits(data_dir, *, seed: int = 0) -> Dataset:
  """scikit-learn's bundled 8 x 8 digits: 1437 to train, 360 to test.

  Source: UCI optdigits, test part (1797 images, 0..16), inside scikit-learn.
  The split is stratified and depends on `seed` only.
  """
  del data_dir
  from sklearn.datasets import load_digits
  from sklearn.model_selection import train_test_split

  pixels, labels = load_digits(return_X_y=True)
  train_x, test_x, train_y, test_y = train_test_split(
    pixels.reshape(-1, 8, 8, 1),
    labels,
    test_size=360,
    stratify=labels,
    random_state=seed,
  )
  return normalised(
    (train_x, train_y),
    (test_x, test_y),
    num_classes=10,
    name="digits",
    source="scikit-learn load_digits (UCI optdigits)",
    licence="CC BY 4.0 (UCI), in a BSD-3 package",
  )


def synthetic(
  data_dir,
  *,
  num_train: int = 1000,
  num_test: int = 200,
  shape: Sequence[int] = (8, 8, 1),
  num_classes: int = 10,
  separation: float = 1.0,
  seed: int = 0,
) -> Dataset:
  """Gaussian classes: x = separation * mean_y + N(0, I), mean_y ~ N(0, I).

  Classes are as equal in size as can be.
  """
  del data_dir
  shape = tuple(shape)
  if num_classes < 2 or min(num_train, num_test) < num_classes:
    raise UserError(
      f"synthetic needs 2 or more classes and an example of each, got "
      f"{num_classes} classes, num_train={num_train}, num_test={num_test}"
    )
  if not shape or min(shape) < 1:
    raise UserError(f"synthetic needs a shape such as (8, 8, 1), got {shape}")
  rng = np.random.default_rng(seed)
  means = separation * rng.standard_normal((num_classes, *shape))

  def draw(n):
    y = rng.permutation(np.arange(n) % num_classes)
    return means[y] + rng.standard_normal((n, *shape)), y

  return normalised(
    draw(num_train),
    draw(num_test),
    num_classes=num_classes,
    name="synthetic",
    source=f"generated with seed {seed}",
    licence="none needed",
  )
