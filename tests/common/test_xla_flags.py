"""The compiler's flags: added once, only for known versions, and accepted by this compiler."""

import importlib.metadata
import importlib.util
import os
import subprocess
import sys

import pytest

from common import xla_flags

FLAG = "--xla_cpu_experimental_ynn_fusion_type"


@pytest.mark.parametrize(
    "flags, version, expected",
    [
        ("", "0.10.2", f"{FLAG}="),
        ("--a=1", "0.12.0.1", f"--a=1 {FLAG}="),
        (f"{FLAG}=X --a=1", "0.10.2", f"{FLAG}=X --a=1"),
        ("--a=1", "0.9.2", "--a=1"),
        ("--a=1", "1.10.0", "--a=1"),
    ],
)
def test_flags(flags, version, expected):
    assert xla_flags.with_cpu_flags(flags, version) == expected


def test_quick_flags():
    first, second = xla_flags.QUICK
    assert xla_flags.with_quick_flags("--a=1", "0.10.2") == f"--a=1 {first} {second}"
    name = first.split("=")[0]
    assert xla_flags.with_quick_flags(f"{name}=true", "0.10.9") == f"{name}=true {second}"
    assert xla_flags.with_quick_flags("--a=1", "0.12.0.1") == "--a=1"


def test_short_flags():
    level, emitters = "--xla_backend_optimization_level", "--xla_cpu_use_fusion_emitters"
    found = xla_flags.with_short_flags("--a=1", "0.10.2")
    assert found == f"--a=1 {level}=1 {emitters}=false"
    assert xla_flags.with_short_flags("", "0.12.0.1") == f"{level}=1"
    own = f"{level}=3 {emitters}=true"
    assert xla_flags.with_short_flags(own, "0.10.2") == own


def test_short_flags_are_for_cpus_alone(monkeypatch):
    def flags(platforms, plugins=()):
        monkeypatch.setenv("XLA_FLAGS", "")
        monkeypatch.setenv("JAX_PLATFORMS", platforms)
        monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: plugins)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        xla_flags.prepare(short=True)
        return os.environ["XLA_FLAGS"]

    for given in (("cpu",), ("",), ("cpu", ("cuda",))):
        assert "optimization_level=1" in flags(*given)
    for given in (("cuda",), ("cuda,cpu",), ("", ("cuda",))):
        assert "optimization_level" not in flags(*given)


@pytest.mark.parametrize("quick", ["", "quick=True", "short=True"])
def test_this_compiler_accepts_them(quick):
    """An unknown flag, or one that swallows the next, ends a process when the devices start."""
    code = (
        f"from common import xla_flags; xla_flags.prepare({quick}); import jax; "
        "x = jax.numpy.ones((1, 8, 8, 32)); k = jax.numpy.ones((3, 3, 32, 32)); "
        "f = jax.jit(lambda x, k: jax.lax.conv_general_dilated(x, k, (1, 1), 'VALID', "
        "dimension_numbers=('NHWC', 'HWIO', 'NHWC'))); "
        "print('ynn' in f.lower(x, k).compile().as_text(), f(x, k).sum(), jax.device_count())"
    )
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=3"}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert result.stdout.split() == ["False", "331776.0", "3"], result.stderr
