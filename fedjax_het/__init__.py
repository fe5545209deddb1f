"""A JAX toolkit for heterogeneous federated learning."""

from fedjax_het.version import __version__

__all__ = ["__version__"]
