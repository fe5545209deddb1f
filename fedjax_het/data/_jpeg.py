"""The packed CIFAR-10 JPEG file: one npz of JPEG bytes, offsets and labels."""

import io
from pathlib import Path

import numpy as np

from fedjax_het.core.errors import UserError
from fedjax_het.data._packed import arrays

FILE = "cifar10_jpeg_25k.npz"
SIDE = 32


def load_npz(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Decodes all images (25,000 in some 5 s).

  Args:
    path: npz with blob u8[bytes], offsets i64[n + 1] (image i is
      blob[offsets[i]:offsets[i + 1]]), label u8[n], is_test u8[n].

  Returns:
    x u8[n, 32, 32, 3], y i32[n], is_test bool[n].

  Raises:
    UserError: not such a file, or an image that is no 32 x 32 JPEG.
  """
  from PIL import Image, UnidentifiedImageError

  blob, offsets, label, is_test = arrays(
    path, ("blob", "offsets", "label", "is_test"), "JPEG file"
  )
  n = label.size
  if (
    not n
    or offsets.shape != (n + 1,)
    or is_test.shape != (n,)
    or offsets[0] < 0
    or (np.diff(offsets) <= 0).any()
    or offsets[-1] > blob.size
    or label.max() > 9
    or not 0 < np.count_nonzero(is_test) < n
  ):
    raise UserError(
      f"{path}: offsets, label and is_test don't fit together: get it again"
    )
  x = np.empty((n, SIDE, SIDE, 3), np.uint8)
  for i in range(n):
    data = io.BytesIO(blob[offsets[i] : offsets[i + 1]].tobytes())
    try:
      with Image.open(data, formats=("JPEG",)) as image:
        if image.size != (SIDE, SIDE):
          raise OSError(f"it has {image.size[0]} x {image.size[1]} pixels")
        x[i] = np.asarray(image.convert("RGB"))
    except (OSError, UnidentifiedImageError) as error:
      raise UserError(
        f"{path}: image {i} is not a 32 x 32 JPEG ({error}): get it again"
      ) from error
  return x, label.astype(np.int32), is_test.astype(bool)
