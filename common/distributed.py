"""Start, coordination and preemption of runs of one or more processes."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
from jax.experimental import multihost_utils


def initialize(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    auto: bool = False,
) -> None:
    """Joins a multi-process run if one is asked for; call it before any other use of JAX.

    Args:
        coordinator: address "host:port" of process 0.
        num_processes: number of processes.
        process_id: number of this process, from 0.
        auto: take what is not given from the cluster's environment (SLURM, Open MPI, GKE, TPU), as
            JAX detects it.

    Raises:
        ValueError: without `auto`, some but not all of the three values are given, or they do not
            fit each other.
        RuntimeError: the coordinator cannot be reached, or JAX was used before.
    """
    given = {
        "coordinator": coordinator,
        "num_processes": num_processes,
        "process_id": process_id,
    }
    missing = [name for name, value in given.items() if value is None]
    if not auto:
        if len(missing) == len(given):
            return
        if missing:
            raise ValueError(
                "a multi-process run needs coordinator, num_processes and process_id together;"
                f" missing: {', '.join(missing)}"
            )
    if num_processes is not None and num_processes < 1:
        raise ValueError(f"num_processes must be at least 1, got {num_processes}")
    if process_id is not None and num_processes is not None:
        if not 0 <= process_id < num_processes:
            raise ValueError(f"process_id={process_id} is not in 0..{num_processes - 1}")
    jax.distributed.initialize(
        coordinator_address=coordinator, num_processes=num_processes, process_id=process_id
    )
    # The first collective makes the communicators, for which Gloo gives a late process 30 seconds.
    # Here none is late; later one may have a minute more to compile than another.
    barrier("initialize")


def is_main() -> bool:
    """True in process 0, the one that writes logs, figures and artefacts."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until all processes have reached the barrier `name`; free in a single process."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


@contextmanager
def preemption_notice() -> Iterator[Callable[[int], bool]]:
    """Gives `steps_done -> bool`, true when the run must save and stop.

    One process: SIGTERM. More processes: JAX's preemption service, which is told of SIGTERM on any
    of them and picks a step that none has passed yet.
    """
    if jax.process_count() > 1:
        yield lambda done: bool(multihost_utils.reached_preemption_sync_point(done))
        return
    notice = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield lambda done: False  # only the main thread may handle signals
        return
    previous = signal.signal(signal.SIGTERM, lambda number, frame: notice.set())
    try:
        yield lambda done: notice.is_set()
    finally:
        signal.signal(signal.SIGTERM, previous)
