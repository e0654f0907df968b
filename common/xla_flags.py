"""Flags of the XLA compiler for runs on a CPU; to be set before JAX starts its devices."""

import importlib.metadata
import importlib.util
import os

import jaxlib

_FUSION = "--xla_cpu_experimental_ynn_fusion_type"
# Compilers that know the flag (an unknown flag ends the process) and were measured.
_KNOWN = ((0, 10), (0, 11), (0, 12))
_EMITTERS = "--xla_cpu_use_fusion_emitters"
_LEVEL = "--xla_backend_optimization_level=1"
QUICK = (f"{_EMITTERS}=false", "--xla_cpu_parallel_codegen_split_count=1")


def with_cpu_flags(flags: str, version: str = jaxlib.__version__) -> str:
    """``flags`` (the value of ``XLA_FLAGS``) with those added that make convolutions faster.

    XLA's CPU compiler of jaxlib 0.10 to 0.12 hands convolutions to a library (YNNPACK) that is
    slower than the compiler's own code for most layers, most of all for the gradient of the kernel:
    ``benchmarks/cpu_convolutions.py`` prints both. Large matrix products are the same. A flag that
    ``flags`` has already stays as it is; other versions of the compiler get ``flags`` unchanged.
    """
    if tuple(int(part) for part in version.split(".")[:2]) not in _KNOWN or _FUSION in flags:
        return flags
    return f"{flags} {_FUSION}=".strip()


def with_quick_flags(flags: str, version: str = jaxlib.__version__) -> str:
    """``flags`` with those added that shorten compilation at the lowest level of optimisation.

    The code generator of jaxlib 0.9 and before, which 0.10 still has, compiles a training step in a
    fraction of the time of its successor there; splitting programs for threads costs a fifth. Later
    compilers do not know the flags.
    """
    if tuple(int(part) for part in version.split(".")[:2]) != (0, 10):
        return flags
    new = [flag for flag in QUICK if flag.split("=")[0] not in flags]
    return " ".join([flags, *new]).strip()


def with_short_flags(flags: str, version: str = jaxlib.__version__) -> str:
    """``flags`` with those added that halve the time to compile and leave large steps as fast.

    The lowest level of optimisation but one, and the older code generator where there is one: good
    for programs of large convolutions and products, which are a library's, and worse for those
    with many small layers. All compilers know the level, also those for other devices.
    """
    new = [_LEVEL] if _LEVEL.split("=")[0] not in flags else []
    if tuple(int(part) for part in version.split(".")[:2]) == (0, 10) and _EMITTERS not in flags:
        new.append(f"{_EMITTERS}=false")
    return " ".join([flags, *new]).strip()


def only_cpus() -> bool:
    """Whether JAX can have no other device: by its choice of platforms, or for want of plugins."""
    platforms = os.environ.get("JAX_PLATFORMS")
    if platforms:
        return platforms == "cpu"
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return not plugins and not importlib.util.find_spec("libtpu")


def prepare(quick: bool = False, short: bool = False) -> None:
    """Sets ``XLA_FLAGS`` for this process and those it starts, by :func:`with_cpu_flags`.

    Other devices ignore the flags. Without effect once JAX has computed something.

    Args:
      quick: also by :func:`with_quick_flags`, for runs that take longer to compile than to run.
      short: also by :func:`with_short_flags`, for runs that take about as long; if there are only
        CPUs, as other devices would heed them.
    """
    flags = with_cpu_flags(os.environ.get("XLA_FLAGS", ""))
    if quick:
        flags = with_quick_flags(flags)
    elif short and only_cpus():
        flags = with_short_flags(flags)
    os.environ["XLA_FLAGS"] = flags
