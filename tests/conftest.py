"""Settings of every test: CPU devices, strict promotion, few threads, one compilation cache."""

import contextlib
import os
import pathlib

# Before jax is imported. An explicit JAX_PLATFORMS (say, cuda) wins; otherwise tests run on CPU.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "2")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # oracles use random weights; nothing is fetched
# Shared by the processes of a run (xdist workers, launched subprocesses) and by later runs.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    str(pathlib.Path(__file__).resolve().parents[1] / ".cache" / "jax-compilation"),
)

import jax  # noqa: E402
import jaxlib  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

from common import xla_flags  # noqa: E402
from common.nets import by_device, conv_products  # noqa: E402

xla_flags.prepare()  # as launch.py does

# Four devices, so that sharding is exercised; a computation without shardings still runs on one.
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture
def standard_promotion():
    """Opts one test out of strict dtype promotion, for library code that mixes dtypes.

    Write `@pytest.mark.usefixtures("standard_promotion")  # which library, which operation`.
    """
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def rank_promotion():
    """Opts one test out of the ban on implicit rank promotion, for library code that relies on it.

    Write `@pytest.mark.usefixtures("rank_promotion")  # which library, which operation`.
    """
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def same_on_accelerators(monkeypatch):
    """A function that computes something twice: as on this device, and in the form for others.

    Its argument returns a tree of arrays, jitted or not; what it jits must be new in each call, for
    what is traced depends on the device, which is no argument of it.
    """

    def compare(compute):
        here = compute()
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
        assert by_device.layers()[0] is conv_products.Conv
        there = compute()
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * np.abs(a).max()),
            here, there)

    return compare


# What `xla_flags.with_quick_flags` sets for a process, for the programs of a module.
QUICK_OPTIONS = {
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}


@contextlib.contextmanager
def _compile_options(options):
    """Options of the compiler for all programs; JAX has no public switch for that."""
    from jax._src import compiler

    original = compiler.get_compile_options

    def with_options(*args, env_options_overrides=None, **kwargs):
        merged = {**options, **(env_options_overrides or {})}
        return original(*args, env_options_overrides=merged, **kwargs)

    compiler.get_compile_options = with_options
    try:
        yield
    finally:
        compiler.get_compile_options = original


@pytest.fixture(scope="module", autouse=True)
def quick_compile(request):
    """Programs compile with few optimisations, as in the smoke variants.

    Most tests take longer to compile than to run. A module for which it is the other way round, or
    that needs the programs which users run, says `pytestmark = pytest.mark.full_compile`.
    """
    if request.node.get_closest_marker("full_compile"):
        yield
        return
    jax.config.update("jax_disable_most_optimizations", True)
    # An option that a compiler lacks is an error.
    known = jaxlib.__version__.startswith("0.10.")
    with _compile_options(QUICK_OPTIONS) if known else contextlib.nullcontext():
        yield
    jax.config.update("jax_disable_most_optimizations", False)
