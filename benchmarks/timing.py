"""What the benchmarks beside PyTorch share: devices, precision, clocks, memory, taking turns.

On a GPU both libraries multiply float32 as JAX does by default there: by TensorFloat-32, with
float32 sums. What is compared before anything is timed is computed in :func:`exact` float32.

Benchmarks may be started side by side if ``BENCHMARK_LOCK`` names a file: they then prepare
together and are timed one after another. ``BENCHMARK_PATIENCE`` is the time (seconds since 1970)
until which a clock waits for others that prepare; one that starts beside them says so.
"""

import argparse
import contextlib
import fcntl
import os
import platform
import time
from collections.abc import Iterator
from typing import IO, Any

import jax
import torch

from common import xla_flags

_LOCKS: list[IO] = []  # of those that prepare (shared) and of the one that is timed


def add_device(parser: argparse.ArgumentParser) -> None:
    """The option ``--device``."""
    parser.add_argument("--device", default="cpu", help="of torch; JAX takes its default device")


def prepare(device: str = "cpu", threads: int = 0) -> None:
    """Both libraries as they are fastest, at equal precision; call it before JAX computes.

    Args:
      device: of torch.
      threads: of torch; 0 for all cores.
    """
    xla_flags.prepare()
    torch.set_num_threads(threads or os.cpu_count() or 1)
    torch.backends.cudnn.benchmark = True
    tensor_float(True)
    if path := os.environ.get("BENCHMARK_LOCK"):
        _LOCKS[:] = [open(path, "a"), open(f"{path}.turn", "a")]
        fcntl.flock(_LOCKS[0], fcntl.LOCK_SH)
    if device != "cpu" and jax.default_backend() == "cpu":
        raise SystemExit(f"torch on {device}, but JAX has no other device than the CPU")


def my_turn() -> None:
    """Waits until no other benchmark prepares or is timed; the turn lasts as the process does."""
    if not _LOCKS:
        return
    preparing, turn = _LOCKS
    fcntl.flock(preparing, fcntl.LOCK_UN)
    fcntl.flock(turn, fcntl.LOCK_EX)
    patience = float(os.environ.get("BENCHMARK_PATIENCE", "inf"))
    while True:
        try:
            fcntl.flock(preparing, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.time() > patience:
                print("timed while other benchmarks were preparing", flush=True)
                return
            time.sleep(0.2)


@contextlib.contextmanager
def exact() -> Iterator[None]:
    """Float32 products of both libraries in float32, for programs that are traced within."""
    tensor_float(False)
    try:
        with jax.default_matmul_precision("highest"):
            yield
    finally:
        tensor_float(True)


def wait(device: str) -> None:
    """Waits for torch."""
    if device != "cpu":
        torch.cuda.synchronize()


def devices(device: str) -> str:
    """Versions and devices of both libraries, for the head of a table."""
    there = f"{torch.get_num_threads()} threads"
    if device != "cpu":
        there = torch.cuda.get_device_name()
    return (
        f"jax {jax.__version__} on {jax.devices()[0].device_kind}, torch {torch.__version__} on "
        f"{there}; {os.cpu_count()} cores, {platform.machine()}"
    )


def peaks(device: str = "cpu") -> dict[str, float]:
    """GiB of the GPU that each library has held at once so far; empty without a GPU."""
    used: Any = jax.devices()[0].memory_stats()
    found = {"JAX": used["peak_bytes_in_use"] / 2**30} if used else {}
    if device != "cpu":
        found["torch"] = torch.cuda.max_memory_allocated() / 2**30
    return found


def print_memory(device: str = "cpu") -> None:
    """Prints :func:`peaks`, if there is a GPU."""
    if found := peaks(device):
        parts = (f"{name} {size:.2f} GiB" for name, size in found.items())
        print(f"peak memory of the GPU: {', '.join(parts)}", flush=True)


def tensor_float(allowed: bool) -> None:
    """Whether torch may multiply by TensorFloat-32."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed
