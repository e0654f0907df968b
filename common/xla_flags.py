"""Flags of the XLA compiler that runs on a CPU want; set before JAX starts its devices."""

import os

import jaxlib

_FUSION = "--xla_cpu_experimental_ynn_fusion_type"
# Compilers that know the flag (an unknown flag ends the process) and were measured.
_KNOWN = ((0, 10), (0, 11), (0, 12))


def with_cpu_flags(flags: str, version: str = jaxlib.__version__) -> str:
    """``flags`` (the value of ``XLA_FLAGS``) with those added that make convolutions faster.

    XLA's CPU compiler of jaxlib 0.10 to 0.12 hands convolutions with small images and many channels
    to a library (YNNPACK) that takes about 1.4 times as long for them as the compiler's own code:
    a training step of ten adapters of the face model takes 0.65 s with it and 0.48 s without (two
    cores of an AMD EPYC). Large matrix products are the same. A flag that ``flags`` has already
    stays as it is; other versions of the compiler get ``flags`` unchanged.
    """
    if tuple(int(part) for part in version.split(".")[:2]) not in _KNOWN or _FUSION in flags:
        return flags
    return f"{flags} {_FUSION}=".strip()


def prepare() -> None:
    """Sets ``XLA_FLAGS`` for this process and those it starts, by :func:`with_cpu_flags`.

    Other devices ignore the flag. Without effect once JAX has computed something.
    """
    os.environ["XLA_FLAGS"] = with_cpu_flags(os.environ.get("XLA_FLAGS", ""))
