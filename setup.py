"""Metadata of the distribution `fedjax-het`; tools are set in pyproject.toml.

kernels/ and experiments/ are plain source roots without __init__.py: an
installed top-level package called `kernels` would overwrite Hugging Face's.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
ROOTS = {
  "fedjax_het": ".",
  "fedjax_het_kernels": "kernels",
  "fedjax_het_experiments": "experiments",
}
VERSION = re.search(
  r'__version__ = "(.+)"', (HERE / "fedjax_het/version.py").read_text()
).group(1)

setup(
  name="fedjax-het",
  version=VERSION,
  description="A JAX toolkit for heterogeneous federated learning",
  long_description=(HERE / "README.md").read_text(encoding="utf-8"),
  long_description_content_type="text/markdown",
  license_expression="Apache-2.0",
  license_files=["LICENSE"],
  classifiers=[
    "Development Status :: 3 - Alpha",
    "Intended Audience :: Science/Research",
    "Programming Language :: Python :: 3.11",
    "Programming Language :: Python :: 3.12",
    "Programming Language :: Python :: 3.13",
    "Topic :: Scientific/Engineering :: Artificial Intelligence",
  ],
  python_requires=">=3.11",
  # find_packages without `include` would also ship tests/, docs/, build/
  packages=[
    package
    for name, root in ROOTS.items()
    for package in find_packages(root, include=[name, f"{name}.*"])
  ],
  package_dir={
    name: f"{root}/{name}".removeprefix("./") for name, root in ROOTS.items()
  },
  package_data={
    "": ["py.typed"],
    "fedjax_het_experiments": ["flagfiles/*.flags"],
  },
  install_requires=[
    "absl-py>=2.1",
    "chex>=0.1.90",
    "flax>=0.12",
    # the newest that Python 3.11 gets, and the oldest that was tried
    "jax>=0.10.2",
    "matplotlib>=3.9",
    "numpy>=2.0",
    "optax>=0.2.5",
    "orbax-checkpoint>=0.11.20",
    "pillow>=11.0",
    "rich>=13.9",
    "scikit-learn>=1.5",
    "scipy>=1.15",
  ],
  extras_require={
    "cuda": ["jax[cuda13]>=0.10.2", "triton>=3.6"],
    "privacy": ["dp-accounting>=0.6"],
    "tensorboard": ["tensorboardX>=2.6.2"],
    "test": [
      "build>=1.2",
      "dp-accounting>=0.6",
      "hypothesis>=6.100",
      "ipykernel>=6.29",
      "nbconvert>=7.16",
      "nbformat>=5.10",
      "pytest>=8.3",
      "pytest-xdist>=3.6",
      "ruff>=0.17,<0.18",  # a new minor version may format otherwise
      "setuptools>=77",
      "tensorboardX>=2.6.2",
      # compiles and interprets the kernels; not needed to run on a CPU
      "triton>=3.7; sys_platform == 'linux' and platform_machine == 'x86_64'",
    ],
  },
  entry_points={
    "console_scripts": ["fedjax-het=fedjax_het_experiments.__main__:main"]
  },
)
