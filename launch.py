"""Runs one experiment: `python launch.py --config=configs/w2w.py[:variant] [--config.key=value]`.

More than one process: the same command on every host, with `--distributed=auto` on a cluster that
JAX knows (SLURM, Open MPI, GKE, Cloud TPU), or with `--coordinator=HOST:PORT --num_processes=N
--process_id=I`; all of them must see the working directory.
"""

import importlib
import importlib.util
import pathlib
import sys

from absl import app, flags, logging

from common import allocator
from common import config as config_lib
from common import workdir as workdir_lib

_CONFIG = flags.DEFINE_string("config", "", "Configuration, FILE[:variant].")
_WORKDIR = flags.DEFINE_string("workdir", None, "Default: runs/NAME[-variant].")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes.", 1)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Index of this process.", 0)
_DISTRIBUTED = flags.DEFINE_enum("distributed", "flags", ["flags", "auto"], "Where from.")


def parse(argv: list[str]) -> config_lib.ConfigDict:
    """Reads the command line into the flags and returns the configuration with its overrides."""
    rest, overrides = config_lib.take_overrides(argv)
    stray = flags.FLAGS(rest)[1:]
    if stray:
        raise config_lib.ConfigError(f"stray argument {stray[0]!r}; flags are --name=value")
    if not _CONFIG.value:
        raise config_lib.ConfigError("--config=FILE[:variant] is missing, e.g. configs/w2w.py")
    cluster = (_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    if any(v is not None for v in cluster) and any(v is None for v in cluster):
        raise config_lib.ConfigError("--coordinator, --num_processes, --process_id go together")
    if _DISTRIBUTED.value == "auto" and _COORDINATOR.value is not None:
        raise config_lib.ConfigError("--distributed=auto and --coordinator exclude each other")
    config = config_lib.apply_overrides(config_lib.load(_CONFIG.value), overrides)
    if importlib.util.find_spec(config.experiment.partition(".")[0]) is None:
        raise config_lib.ConfigError(f"config.experiment: no module {config.experiment!r}")
    return config


def main(config: config_lib.ConfigDict) -> None:
    """Prepares the devices and the working directory, then runs the experiment in it."""
    logging.set_verbosity(logging.WARNING)  # absl shows INFO; orbax writes pages of it
    import jax  # after the flags: a mistake in them is answered at once

    from common import distributed, loop, xla_flags

    quick = config.get("quick_compile", False)  # variants that take longer to compile than to run
    xla_flags.prepare(quick, config.get("short_compile", False))
    jax.config.update("jax_disable_most_optimizations", quick)
    try:
        cluster = (_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
        distributed.initialize(*cluster, auto=_DISTRIBUTED.value == "auto")
    except ValueError as error:
        raise config_lib.ConfigError(f"cannot start several processes: {error}") from error
    variant = config_lib.split(_CONFIG.value)[1]
    workdir = pathlib.Path(_WORKDIR.value or f"runs/{config.name}{variant and '-' + variant}")
    if distributed.is_main():
        workdir_lib.claim(workdir, config)
        kind = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
        print(f"{_CONFIG.value} -> {config.experiment}, in {workdir}, on {kind}", flush=True)
    distributed.barrier("workdir")
    try:
        importlib.import_module(config.experiment).run(config, workdir)
    except loop.Preempted as stop:
        print(f"preempted {stop}; the same command continues", file=sys.stderr)
        sys.exit(143)  # 128 + SIGTERM
    except loop.NonFiniteLoss as stop:
        sys.exit(f"stopped: {stop}")


if __name__ == "__main__":
    allocator.use_huge_pages()
    try:
        app.run(main, flags_parser=parse)
    except (config_lib.ConfigError, flags.Error) as mistake:
        print(f"launch.py: {' '.join(str(mistake).split())}", file=sys.stderr)
        sys.exit(2)
