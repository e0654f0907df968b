"""Flags of the XLA compiler for runs on a CPU; to be set before JAX starts its devices."""

import os

import jaxlib

_FUSION = "--xla_cpu_experimental_ynn_fusion_type"
# Compilers that know the flag (an unknown flag ends the process) and were measured.
_KNOWN = ((0, 10), (0, 11), (0, 12))


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


def prepare() -> None:
    """Sets ``XLA_FLAGS`` for this process and those it starts, by :func:`with_cpu_flags`.

    Other devices ignore the flag. Without effect once JAX has computed something.
    """
    os.environ["XLA_FLAGS"] = with_cpu_flags(os.environ.get("XLA_FLAGS", ""))
