"""Flags that all binaries share, and `run`, which starts a binary.

A binary defines its own flags with its own prefix (`--hide_n_seek_density`),
because two modules may not define one name, and ends with

    if __name__ == "__main__":
      _flags.run(main, rounds=200, unused=("tensorboard",))

Mistakes of the user end in one line on stderr and exit code 2; anything else
is a bug and keeps its traceback.
"""

import difflib
import errno
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator

import jax
from absl import app, flags, logging

from fedjax_het.core.errors import UserError

FLAGFILES = pathlib.Path(__file__).parent / "flagfiles"


class _SeedsParser(flags.ArgumentParser):
  """Reads "5" as the seeds 0..4 and "3,7,9" (or "3,") as a list."""

  flag_type = "seeds"
  syntactic_help = "a count, or a list such as 3,7,9"

  def parse(self, argument: str | tuple[int, ...]) -> tuple[int, ...]:
    if isinstance(argument, tuple):
      return argument
    text = str(argument)
    if "," in text:
      seeds = [int(part) for part in text.split(",") if part.strip()]
    else:
      seeds = range(int(text))
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
      raise ValueError("give a count >= 1, or different seeds >= 0")
    return tuple(seeds)


class _SeedsSerializer(flags.ArgumentSerializer):
  def serialize(self, value: tuple[int, ...]) -> str:
    return "".join(f"{seed}," for seed in value)


class _DevicesParser(flags.ArgumentParser):
  """Reads "auto" as the number of usable cores."""

  flag_type = "devices"
  syntactic_help = "auto, or how many"

  def parse(self, argument: str | int) -> int:
    if argument == "auto":
      return usable_cores()
    count = int(argument)
    if count < 1:
      raise ValueError("give auto, or at least 1")
    return count


def usable_cores() -> int:
  """CPU cores that this process may run on (taskset, Slurm, containers)."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


WORKDIR = flags.DEFINE_string(
  "workdir",
  None,
  "Folder for everything that the run writes; by default "
  "results/<binary>/<dataset>.",
)
DATASET = flags.DEFINE_string("dataset", "digits", "Name of the data set.")
DATA_DIR = flags.DEFINE_string(
  "data_dir",
  None,
  "Folder with the data set's files, if they are not in a usual place.",
)
NUM_CLIENTS = flags.DEFINE_integer(
  "num_clients", 100, "Clients that hold the data.", lower_bound=1
)
COHORT_SIZE = flags.DEFINE_integer(
  "cohort_size", 10, "Clients that train in a round.", lower_bound=1
)
ROUNDS = flags.DEFINE_integer(
  "rounds", 100, "Rounds of communication.", lower_bound=1
)
EVAL_EVERY = flags.DEFINE_integer(
  "eval_every",
  10,
  "Rounds in a block: after each block the model is evaluated and saved.",
  lower_bound=1,
)
SEEDS = flags.DEFINE(
  _SeedsParser(),
  "seeds",
  5,
  "Seeds that are trained at once, of weights, draws and who holds which"
  " examples: a count, or a list such as 3,7,9.",
  serializer=_SeedsSerializer(),
)
RESUME = flags.DEFINE_bool(
  "resume", False, "Go on from the checkpoint in --workdir, if there is one."
)
OVERWRITE = flags.DEFINE_bool(
  "overwrite", False, "Delete the results in --workdir and start again."
)
DEVICES = flags.DEFINE(
  _DevicesParser(),
  "devices",
  "auto",
  "Host devices on a CPU, each with a share of the clients; auto: one a core.",
  serializer=flags.ArgumentSerializer(),
)
PARTITION = flags.DEFINE_string(
  "partition",
  "dirichlet:0.5",
  "Who holds what: iid, dirichlet:ALPHA, inner_dirichlet:ALPHA, shard:NUMBER,"
  " pathological:CLASSES, ... (docs/data.md).",
)
MODEL = flags.DEFINE_string("model", "mlp", "Name of the network.")
LOCAL_EPOCHS = flags.DEFINE_integer(
  "local_epochs", 1, "Local epochs per round.", lower_bound=1
)
BATCH_SIZE = flags.DEFINE_integer(
  "batch_size", 50, "Examples in a local batch.", lower_bound=1
)
TUNE_SEEDS = flags.DEFINE_integer(
  "tune_seeds",
  1,
  "Seeds per trial while tuning; 0: no tuning, the middle of each grid.",
  lower_bound=0,
)
FEATURE_SKEW = flags.DEFINE_string(
  "feature_skew",
  "none",
  "Groups of clients that see their inputs differently: none,"
  " rotation:0/90/180/270, noise:0/0.5/1, gain:0.5/1/2,"
  " style:plain/negative/dark, ...; held-out data in equal shares.",
)
CONCEPT_SHIFT = flags.DEFINE_string(
  "concept_shift",
  "none",
  "Groups of clients with other labels for the same inputs: none, feddaa,"
  " same/reverse/shift:1, permutation:7, ...; held-out data in equal shares.",
)
FLEET = flags.DEFINE_string(
  "fleet",
  "lognormal:1",
  "The clients' devices, for virtual time and energy: none, constant,"
  " normal:STD, exponential, lognormal:SIGMA, uniform:HALF_WIDTH,"
  " tiers:1/2/4/8; with options such as ,step_seconds=0.1,up_mbit=2.",
)
AVAILABILITY = flags.DEFINE_string(
  "availability",
  "always",
  "When devices are online: always, bernoulli:SHARE, diurnal:SHARE,"
  " markov:SHARE.",
)
SELECTION = flags.DEFINE_string(
  "selection",
  "uniform",
  "Who trains in a round: uniform, available, by_weight, cyclic,"
  " power_of_choice:CANDIDATES, oort, hetero_select.",
)
DEADLINE = flags.DEFINE_float(
  "deadline",
  None,
  "Virtual seconds after which a round leaves out those who are late.",
  lower_bound=0.0,
)
TENSORBOARD = flags.DEFINE_bool(
  "tensorboard", False, "Also write TensorBoard event files."
)

# The shared flags of a federated run; a benchmark takes none of them.
OF_A_RUN = (
  "dataset",
  "partition",
  "model",
  "local_epochs",
  "batch_size",
  "tune_seeds",
  "num_clients",
  "cohort_size",
  "rounds",
  "eval_every",
  "seeds",
  "resume",
  "overwrite",
  "feature_skew",
  "concept_shift",
  "fleet",
  "availability",
  "selection",
  "deadline",
  "tensorboard",
)


def run(
  main: Callable[[list[str]], int | None],
  *,
  unused: Iterable[str] = (),
  **defaults: object,
) -> None:
  """Parses the flags, prepares JAX and exits with what `main` returns.

  Args:
    main: gets `[program]`, as from `absl.app.run`; may be another binary's.
    unused: shared flags that the binary does not take.
    **defaults: the binary's own defaults of any flags.

  Raises:
    SystemExit: code 2 after a mistake of the user or on a full disk.
  """
  for name in unused:
    delattr(flags.FLAGS, name)
  for name, value in defaults.items():
    flags.FLAGS.set_default(name, value)
  # --help lists the key flags of the main module: make these its own
  for module in (__name__, main.__module__):
    for flag in flags.FLAGS.get_key_flags_for_module(module):
      flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
  jax.config.config_with_absl()  # --jax_debug_nans, ...; see --helpfull

  def prepared(argv: list[str]) -> int | None:
    if WORKDIR.name in flags.FLAGS and WORKDIR.value is None:
      flags.FLAGS[WORKDIR.name].value = _default_workdir()
    setup_devices(DEVICES.value if DEVICES.name in flags.FLAGS else 1)
    return main(argv)

  try:
    app.run(prepared, flags_parser=_parse)
  except KeyboardInterrupt:
    print("interrupted", file=sys.stderr)
    sys.exit(130)
  except Exception as error:
    if isinstance(error, UserError):
      message = str(error)
    elif reason := _storage_full(error):
      message = f"{reason}: free some space, then use --resume or --overwrite"
    else:
      raise
    print("error:", " ".join(message.split()), file=sys.stderr)
    sys.exit(2)


_ONE_THREAD_DOTS = "--xla_cpu_multi_thread_eigen"


def setup_devices(count: int) -> None:
  """Sets the host devices and the compilation cache.

  Call it before the first use of a JAX array.  The clients are
  spread over one host device a core: inside one small matmul there is little
  to share.  No XLA flag is set: in jaxlib 0.10.2 the devices share one pool of
  as many threads, and --xla_cpu_multi_thread_eigen=false leaves it as it is.
  --jax_num_cpu_devices, --jax_compilation_cache_dir and their
  environment variables win.

  Args:
    count: host devices if the platform is CPU; other platforms ignore it.
  """
  if jax.config.jax_num_cpu_devices < 1:
    jax.config.update("jax_num_cpu_devices", count)
  if count > 1 and _ONE_THREAD_DOTS not in os.environ.get("XLA_FLAGS", ""):
    # Devices that share every small matmul wait for each other: 1.4 times
    # as many client updates without (bench_engine, MLP, 1,000 clients).
    os.environ["XLA_FLAGS"] = " ".join(
      [os.environ.get("XLA_FLAGS", ""), f"{_ONE_THREAD_DOTS}=false"]
    ).strip()
  if not jax.config.jax_compilation_cache_dir:
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    cache = pathlib.Path(home, "fedjax_het", "xla")
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def _parse(argv: list[str]) -> list[str]:
  """`FLAGS(argv)` that raises `UserError` and lets --help exit with 0."""
  try:
    rest = flags.FLAGS([_packaged(argument) for argument in argv])
  except flags.UnrecognizedFlagError as error:
    near = difflib.get_close_matches(
      error.flagname, list(flags.FLAGS), n=1, cutoff=0.5
    )
    hint = f": did you mean --{near[0]}?" if near else ""
    raise UserError(
      f"unknown flag --{error.flagname}{hint} (--help lists them)"
    ) from None
  except flags.Error as error:
    raise UserError(str(error)) from None
  except SystemExit:  # absl leaves --help with 1
    sys.exit(0)
  if flags.FLAGS["verbosity"].using_default_value:
    # JAX and orbax tell much at level INFO that no user can act on.
    flags.FLAGS.verbosity = logging.WARNING
  if len(rest) > 1:
    raise UserError(
      f"unexpected argument {rest[1]!r}: flags are written --name=value"
    )
  return rest


def _packaged(argument: str) -> str:
  """Finds `--flagfile=NAME` among the presets that are installed with us."""
  flag, _, name = argument.partition("=")
  if flag.lstrip("-") != "flagfile" or pathlib.Path(name).exists():
    return argument
  presets = {path.stem: path for path in sorted(FLAGFILES.glob("*.flags"))}
  if name.removesuffix(".flags") not in presets:
    known = ", ".join(presets)
    raise UserError(f"no flagfile {name!r}: give a path or one of: {known}")
  return f"{flag}={presets[name.removesuffix('.flags')]}"


def _default_workdir() -> str:
  """results/<binary>/<dataset>, under the current folder."""
  parts = ["results", pathlib.Path(sys.argv[0]).stem]
  if DATASET.name in flags.FLAGS:
    parts.append(DATASET.value)
  return os.path.join(*parts)


def _storage_full(error: BaseException) -> str | None:
  """What the system said, if a full disk is behind the error."""
  for cause in _causes(error):
    if isinstance(cause, OSError) and cause.errno in _FULL:
      return str(cause)
    # tensorstore (orbax) gives the text only
    if os.strerror(errno.ENOSPC) in str(cause):
      return os.strerror(errno.ENOSPC)
  return None


_FULL = (errno.ENOSPC, errno.EDQUOT)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
  while error is not None:
    yield error
    error = error.__cause__ or error.__context__
