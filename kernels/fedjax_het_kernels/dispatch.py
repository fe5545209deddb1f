"""Which implementation of an op runs, and what a wrong name is told."""

import os

IMPLEMENTATIONS = ("xla", "triton", "interpret")
VARIABLE = "FEDJAX_HET_KERNELS"


def resolve(op: str, implementation: str | None) -> str | None:
  """The implementation to run.

  Args:
    op: its name, for the message.
    implementation: one of

      None         Triton where XLA lowers for CUDA and triton is installed,
                   plain JAX everywhere else; the environment variable
                   FEDJAX_HET_KERNELS may name another default
      "xla"        plain JAX
      "triton"     Triton; lowering for anything but CUDA is an error
      "interpret"  the Triton kernel in Triton's interpreter, on the host: slow,
                   for tests (see bridge/interpret.py)

  Returns:
    One of `IMPLEMENTATIONS`, or None.

  Raises:
    ValueError: the name is unknown.
  """
  name, given = implementation, "implementation"
  if name is None:
    name, given = os.environ.get(VARIABLE) or None, VARIABLE
  if name is not None and name not in IMPLEMENTATIONS:
    raise ValueError(
      f"{op}: unknown {given} {name!r}; allowed are None and"
      f" {', '.join(map(repr, IMPLEMENTATIONS))}"
    )
  return name
