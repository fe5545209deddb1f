"""Which implementation of an op runs, and what a wrong name is told."""

from collections.abc import Callable

IMPLEMENTATIONS = ("xla", "triton")


def choose(op: str, implementation: str | None, **available: Callable):
  """The function that implements `op`.

  Args:
    op: its name, for the message.
    implementation: one of `IMPLEMENTATIONS`, or None for the default, "xla".
    **available: the implementations that this op has, by name.

  Returns:
    The chosen function.

  Raises:
    ValueError: the name is unknown.
    NotImplementedError: the name is known, but this op has no such kernel.
  """
  name = "xla" if implementation is None else implementation
  if name not in IMPLEMENTATIONS:
    raise ValueError(
      f"{op}: unknown implementation {name!r}; allowed are None and"
      f" {', '.join(map(repr, IMPLEMENTATIONS))}"
    )
  if name not in available:
    raise NotImplementedError(
      f"{op}: implementation={name!r} is not available yet in this version;"
      f" give None or one of {', '.join(map(repr, available))}"
    )
  return available[name]
