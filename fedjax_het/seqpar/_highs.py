"""Solves one mixed-integer program in a process of its own.

HiGHS, as SciPy calls it, may print to the process's standard output and
overrun its time limit; here neither reaches the caller.  As a script it reads
FOLDER/program.npz and writes FOLDER/solution.npz: `python -P _highs.py FOLDER`
(-P, because the `types.py` beside it is not the library's).
"""

import pathlib
import subprocess
import sys
import tempfile
from typing import NamedTuple

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csc_array

_GRACE = 30.0  # seconds beyond the time limit: imports, presolve, clean-up


class Program(NamedTuple):
  """min cost x,  row_low <= A x <= row_high,  0 <= x <= high.

  matrix: csc_array;  whole: bool per variable, which must be integers.
  """

  cost: np.ndarray
  matrix: csc_array
  row_low: np.ndarray
  row_high: np.ndarray
  high: np.ndarray
  whole: np.ndarray


class Solution(NamedTuple):
  """x: f64[n], or None if nothing was found in time.

  bound: no solution of the program is below; -inf if unknown.
  relaxed: the same from the linear relaxation.
  proven: whether x is optimal.
  """

  x: np.ndarray | None
  bound: float
  relaxed: float
  proven: bool


def solve(program: Program, seconds: float) -> Solution:
  """Solves with a time limit.

  Args:
    program: what to solve.
    seconds: of wall time for the branch and bound.  Which solution is best
      after that time depends on the machine.
  """
  a = program.matrix
  with tempfile.TemporaryDirectory() as folder:
    np.savez(
      pathlib.Path(folder, "program.npz"),
      data=a.data,
      indices=a.indices,
      indptr=a.indptr,
      shape=a.shape,
      seconds=seconds,
      **{k: v for k, v in program._asdict().items() if k != "matrix"},
    )
    try:
      subprocess.run(
        [sys.executable, "-P", __file__, folder],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=True,
        timeout=seconds + _GRACE,
      )
    except subprocess.TimeoutExpired:
      return Solution(None, -np.inf, -np.inf, False)
    with np.load(pathlib.Path(folder, "solution.npz")) as found:
      x = found["x"]
      return Solution(
        x if x.size else None,
        float(found["bound"]),
        float(found["relaxed"]),
        bool(found["proven"]),
      )


def _main(folder: str) -> None:
  with np.load(pathlib.Path(folder, "program.npz")) as p:
    a = csc_array((p["data"], p["indices"], p["indptr"]), shape=p["shape"])
    relaxed = milp(
      p["cost"],
      constraints=LinearConstraint(a, p["row_low"], p["row_high"]),
      bounds=Bounds(0, p["high"]),
    )
    found = milp(
      p["cost"],
      constraints=LinearConstraint(a, p["row_low"], p["row_high"]),
      bounds=Bounds(0, p["high"]),
      integrality=p["whole"].astype(int),
      options={"time_limit": float(p["seconds"]), "mip_rel_gap": 1e-4},
    )
  least = relaxed.fun if relaxed.status == 0 else -np.inf
  bound = getattr(found, "mip_dual_bound", None)
  np.savez(
    pathlib.Path(folder, "solution.npz"),
    x=np.zeros(0) if found.x is None else found.x,
    bound=least if bound is None else max(bound, least),
    relaxed=least,
    proven=found.status == 0,
  )


if __name__ == "__main__":
  _main(sys.argv[1])
