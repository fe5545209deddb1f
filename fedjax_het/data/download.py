"""Downloads a data set once, checked: python -m fedjax_het.data.download NAME.

This is the only code here that uses the network, and only when you run it.
Each file is written beside its final name, checked against its known size and
SHA-256, and renamed: a file of the final name is always whole.
"""

import argparse
import hashlib
import http.client
import os
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import NamedTuple

from fedjax_het.core.errors import UserError, unknown
from fedjax_het.data._places import default_dir

CHUNK = 1 << 20
TIMEOUT = 60  # seconds without a byte


class File(NamedTuple):
  """A published file: its url, its size in bytes and its sha256."""

  url: str
  size: int
  sha256: str

  @property
  def name(self) -> str:
    return self.url.rsplit("/", 1)[1]


_FASHION = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist/"  # LeCun's is closed
_CIFAR = "https://www.cs.toronto.edu/~kriz/"
FILES: dict[str, tuple[File, ...]] = {
  "fashion_mnist": (
    File(
      _FASHION + "train-images-idx3-ubyte.gz",
      26421880,
      "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    ),
    File(
      _FASHION + "train-labels-idx1-ubyte.gz",
      29515,
      "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    ),
    File(
      _FASHION + "t10k-images-idx3-ubyte.gz",
      4422102,
      "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    ),
    File(
      _FASHION + "t10k-labels-idx1-ubyte.gz",
      5148,
      "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    ),
  ),
  "mnist": (
    File(
      _MNIST + "train-images-idx3-ubyte.gz",
      9912422,
      "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    ),
    File(
      _MNIST + "train-labels-idx1-ubyte.gz",
      28881,
      "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    ),
    File(
      _MNIST + "t10k-images-idx3-ubyte.gz",
      1648877,
      "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    ),
    File(
      _MNIST + "t10k-labels-idx1-ubyte.gz",
      4542,
      "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    ),
  ),
  "cifar10": (
    File(
      _CIFAR + "cifar-10-python.tar.gz",
      170498071,
      "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    ),
  ),
}


def fetch(file: File, folder: Path) -> Path:
  """Downloads one file into the folder unless it is already there, whole.

  Raises:
    UserError: no network, a server's error, a full disk, or other bytes than
      the published ones; nothing is left behind.
  """
  path = folder / file.name
  temporary = None
  try:
    if path.is_file() and _sha256(path) == file.sha256:
      return path
    folder.mkdir(parents=True, exist_ok=True)
    with (
      urllib.request.urlopen(file.url, timeout=TIMEOUT) as response,
      tempfile.NamedTemporaryFile(
        dir=folder, prefix=f".{file.name}.", delete=False
      ) as stream,
    ):
      temporary = Path(stream.name)
      left = file.size + 1  # one more: a file that goes on is found out
      while left and (block := response.read(min(CHUNK, left))):
        stream.write(block)
        left -= len(block)
    if _sha256(temporary) != file.sha256:
      raise UserError(
        f"{file.url} sent other bytes than the published {file.size} (sha256 "
        f"{file.sha256[:16]}...): try again, or get {file.name} elsewhere and "
        f"put it in {folder}"
      )
    temporary.chmod(0o644)  # temporary files are private
    os.replace(temporary, path)
  except (OSError, http.client.HTTPException) as error:
    reason = getattr(error, "reason", None) or error
    raise UserError(
      f"can't download {file.url} to {folder} ({reason}): check the network "
      f"and the disk, or put {file.name} there yourself"
    ) from error
  finally:
    if temporary is not None:
      temporary.unlink(missing_ok=True)
  return path


def _sha256(path):
  with path.open("rb") as stream:
    return hashlib.file_digest(stream, "sha256").hexdigest()


def download(name: str, data_dir: str | os.PathLike | None = None) -> Path:
  """Downloads a data set to `data_dir`/`name`, where `sources.load` looks.

  Args:
    name: one of `FILES`.
    data_dir: default: $FEDJAX_HET_DATA or a folder in the user's cache.

  Returns:
    The folder of the files.

  Raises:
    UserError: an unknown name, or what `fetch` raises.
  """
  if name not in FILES:
    raise unknown("data set to download", name, FILES)
  root = default_dir() if data_dir is None else Path(data_dir).expanduser()
  for file in FILES[name]:
    print(fetch(file, root / name))
  return root / name


def main(argv: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(
    prog="python -m fedjax_het.data.download",
    description="Downloads a data set, checked by size and SHA-256.",
  )
  parser.add_argument("name", help=", ".join(FILES))
  parser.add_argument("--data_dir", help=f"default: {default_dir()}")
  arguments = parser.parse_args(argv)
  try:
    download(arguments.name, arguments.data_dir)
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main())
