"""Streaming PCA: agreement with the dense methods, blocks, devices, processes, resuming."""

import os
import pathlib
import socket
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from w2w import subspace
from w2w.pca import krylov, streaming

WORKER = pathlib.Path(__file__).with_name("streaming_worker.py")
FIELDS = ("mean", "std", "components", "variances")


def population(n, d, k, noise=0.1, seed=0):
    """Models whose standardised spectrum falls by far after ``k`` well separated components."""
    rng = np.random.default_rng(seed)
    strong = rng.normal(size=(n, k)) * np.geomspace(8, 2, k)
    x = strong @ rng.normal(size=(k, d)) + noise * rng.normal(size=(n, d))
    return (3 * rng.normal(size=d) + np.exp(2 * rng.normal(size=d)) * x).astype(np.float32)


def largest_angle(first, second):
    """Largest principal angle (rad) between two row spaces, by its sine."""
    first, second = (np.linalg.qr(np.asarray(x, np.float64).T)[0] for x in (first, second))
    return np.arcsin(np.linalg.norm(second - first @ (first.T @ second), 2).clip(0, 1))


def assert_close(first, second, tolerance=1e-5):
    """Means in units of the deviation (beside their own rounding), the others relative."""
    for name in FIELDS:
        a, b = (np.asarray(getattr(s, name), np.float64) for s in (first, second))
        std = np.asarray(second.std, np.float64)
        if name == "mean":
            scale = std + 0.01 * np.abs(b)
        else:
            scale = np.abs(b) if name != "components" else np.ones_like(b)
        excess = np.abs(a - b) - tolerance * scale
        assert (excess <= 0).all(), f"{name} differs by up to {np.abs(a - b).max()}"


class Slices:
    """A source with nothing but the promised interface; remembers the rows that were read."""

    def __init__(self, weights):
        self._weights, self.shape, self.dtype = weights, weights.shape, weights.dtype
        self.read = []

    def __getitem__(self, rows):
        self.read.append(range(rows.start, rows.stop))
        return self._weights[rows]


@pytest.mark.parametrize("method", ["gram", "randomized"])
@pytest.mark.parametrize(("n", "d"), [(60, 500), (500, 60)])
def test_agrees_with_the_dense_methods(method, n, d):
    k = 6
    weights = population(n, d, k)
    space = streaming.fit(Slices(weights), k, method, block=37)
    assert (space.k, space.n) == (k, n)
    v = np.asarray(space.components, np.float64)
    np.testing.assert_allclose(v @ v.T, np.eye(k), atol=1e-5)
    assert (v[np.arange(k), np.abs(v).argmax(1)] > 0).all()
    for other in ("svd", "gram", "randomized"):
        reference = subspace.fit(weights, k, other)
        assert largest_angle(v, reference.components) < 1e-3, other
        assert_close(space, reference, 2e-5)
    # Negative control: another population has another subspace.
    other = streaming.fit(population(n, d, k, seed=1), k, method)
    assert largest_angle(other.components, v) > 0.5


@pytest.mark.parametrize("method", ["gram", "randomized"])
@pytest.mark.parametrize(("n", "d"), [(40, 300), (300, 40)])
def test_invariants_at_full_rank(method, n, d):
    weights = population(n, d, 5, noise=3.0)
    k = min(n - 1, d)
    space = streaming.fit(weights, k, method)
    v, variances = np.asarray(space.components, np.float64), np.asarray(space.variances)
    np.testing.assert_allclose(v @ v.T, np.eye(k), atol=1e-5)
    assert (np.diff(variances) <= 0).all() and variances[-1] > 0
    np.testing.assert_allclose(variances.sum(), d, rtol=1e-5)
    coefficients = np.asarray(subspace.project(space, weights))
    sigma = np.sqrt(variances)
    assert (np.abs(coefficients.mean(axis=0)) <= 1e-4 * sigma).all()
    np.testing.assert_allclose(coefficients.var(axis=0, ddof=1), variances, rtol=1e-3)
    rebuilt = np.asarray(subspace.unproject(space, coefficients))
    assert np.abs((rebuilt - weights) / np.asarray(space.std)).max() < 1e-4


@pytest.mark.parametrize("method", ["gram", "randomized"])
@pytest.mark.parametrize(("n", "d"), [(90, 400), (400, 90)])
def test_blocks_and_devices_do_not_matter(method, n, d):
    weights = population(n, d, 5)
    whole = streaming.fit(weights, 5, method, block=n, devices=jax.devices()[:1])
    for block, devices in ((7, 1), (64, 1), (n, 4), (30, 3), (2, 4)):
        if block < 10 and n > 100:
            continue  # slow, and shown by the other shape
        pieces = streaming.fit(weights, 5, method, block=block, devices=jax.devices()[:devices])
        assert_close(pieces, whole)


@settings(max_examples=8, deadline=None)
@given(n=st.sampled_from([3, 19, 40]), d=st.sampled_from([4, 19, 37]), data=st.data())
def test_any_shape_gives_the_leading_subspace(n, d, data):
    """The captured variance is that of the dense method, whatever the spectrum."""
    k = data.draw(st.integers(1, min(n - 1, d)))
    method = data.draw(st.sampled_from(["gram", "randomized"]))
    weights = np.random.default_rng(n + 100 * d).normal(size=(n, d)).astype(np.float32)
    space = streaming.fit(weights, k, method, tolerance=0.9, max_passes=40, oversampling=40,
                          devices=jax.devices()[:1], block=40)  # fmt: skip
    reference = subspace.fit(weights, k, "svd")
    np.testing.assert_allclose(space.variances, reference.variances, rtol=1e-4)


@pytest.mark.parametrize("noise", [1e-3, 0.5])
def test_planted_subspace(noise):
    """Known exactly: the left and right factors of signal and rest are orthogonal.

    Right factors are pairs of a cosine and a sine, so every column has the same variance, and
    standardising only undoes scale and offset.
    """
    n, d, k, rest = 400, 900, 20, 150
    rng = np.random.default_rng(0)
    frequencies = rng.permutation(np.arange(1, d // 2))[: (k + rest) // 2]
    angles = 2 * np.pi * np.outer(frequencies, np.arange(d)) / d
    right = np.sqrt(2 / d) * np.stack([np.cos(angles), np.sin(angles)], 1).reshape(-1, d)
    left = np.linalg.qr(np.c_[np.ones(n), rng.normal(size=(n, k + rest))])[0][:, 1:]
    strength = np.r_[np.repeat(np.linspace(4, 2, k // 2), 2), np.full(rest, noise)]
    planted = (left * strength) @ right
    weights = (rng.normal(size=d) + np.exp(2 * rng.normal(size=d)) * planted).astype(np.float32)
    passes = []
    space = streaming.fit(weights, k, "randomized", on_pass=passes.append)
    angle = largest_angle(space.components, right[:k])
    assert angle < 1e-3
    assert passes[-1].error <= 2e-4 and len(passes) == passes[-1].number
    assert len(passes) == 2 if noise < 0.01 else 3 <= len(passes) <= 6
    share = (strength[:k] ** 2).sum() / (strength**2).sum()
    np.testing.assert_allclose(subspace.explained_variance(space).sum(), share, rtol=1e-4)
    # Estimates of the error are of the right size or cautious, never far too small.
    assert angle < 3 * passes[-1].error + 5e-5  # the latter is float32


def test_every_row_is_read_once_a_pass():
    source, passes = Slices(population(300, 500, 4)), []
    streaming.fit(source, 4, "randomized", block=64, on_pass=passes.append)
    reads = np.bincount(np.concatenate([list(r) for r in source.read if len(r) > 1]))
    assert (reads == len(passes)).all()


def test_restarts_reach_the_same_subspace():
    weights = population(200, 300, 8, noise=6.0)
    deep, shallow = [], []
    reference = streaming.fit(weights, 8, "gram")
    for depth, passes in ((4, deep), (1, shallow)):
        space = streaming.fit(weights, 8, "randomized", depth=depth, max_passes=60,
                              oversampling=8, on_pass=passes.append)  # fmt: skip
        assert largest_angle(space.components, reference.components) < 1e-3
    assert len(deep) < len(shallow), "a Krylov basis needs fewer passes than subspace iteration"


def test_no_gap_is_told():
    weights = np.random.default_rng(0).normal(size=(300, 400)).astype(np.float32)
    with pytest.warns(UserWarning, match="after 3 passes the 10 components .* little gap"):
        streaming.fit(weights, 10, "randomized", max_passes=3)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_types(tmp_path, dtype):
    weights = population(150, 200, 4).astype(dtype)
    path = tmp_path / "bank.bin"
    weights.tofile(path)
    mapped = np.memmap(path, dtype, "r", shape=weights.shape)
    for method in ("gram", "randomized"):
        space = streaming.fit(mapped, 4, method, block=40)
        assert_close(space, subspace.fit(weights, 4), 2e-5)


def test_slices_of_a_memory_map(tmp_path):
    """Bytes are read from the file at the place of the slice, header and views included."""
    weights = population(120, 90, 4)
    np.save(tmp_path / "bank.npy", weights)
    mapped = np.load(tmp_path / "bank.npy", mmap_mode="r")
    whole = streaming.fit(weights[20:], 4)
    assert_close(streaming.fit(mapped[20:], 4), whole, 0)
    assert_close(streaming.fit(Slices(mapped[20:]), 4), whole, 0)
    changed = np.load(tmp_path / "bank.npy", mmap_mode="c")
    changed[50] *= 2  # not in the file
    assert_close(streaming.fit(changed, 4), streaming.fit(np.array(changed), 4), 0)


@pytest.mark.parametrize("method", ["gram", "randomized"])
@pytest.mark.parametrize("shape", [(300, 400), (400, 300)])
def test_entries_that_do_not_vary(method, shape):
    weights = population(*shape, 4, noise=1.0)
    rng = np.random.default_rng(0)
    weights[:, 10], weights[:, 20] = 0.1, 0.0
    weights[:, 30] = 5 + 1e-6 * rng.normal(size=len(weights))  # rounding only
    weights[:, 40] = 1e-5 * weights[:, 41]
    weights[:, 50] = 7.0
    weights[3, 50] = 7.5  # not in the sample of the first pass
    reference = subspace.fit(weights, 4)
    assert np.flatnonzero(np.asarray(reference.std) == 0).tolist() == [10, 20, 30]
    space = streaming.fit(weights, 4, method, block=100)
    assert_close(space, reference, 2e-5)
    assert not np.asarray(space.components)[:, [10, 20, 30]].any()
    floor = float(np.asarray(reference.std)[40] * 1.001)
    assert_close(streaming.fit(weights, 4, method, std_floor=floor),
                 subspace.fit(weights, 4, std_floor=floor), 2e-5)  # fmt: skip


def test_a_large_mean_does_not_blur_the_deviations():
    """The mean is 3,000 deviations; its float32 rounding must not enter the products."""
    weights = population(200, 300, 4)
    weights = (weights - weights.mean(0)) / weights.std(0) + 3000
    for method in ("gram", "randomized"):
        space = streaming.fit(weights, 4, method, block=50)
        assert_close(space, subspace.fit(weights, 4), 5e-5)


@pytest.mark.parametrize("method", ["gram", "randomized"])
def test_a_row_that_is_not_finite_is_named(method):
    for shape in ((600, 40), (600, 700)):
        weights = population(*shape, 4)
        for row, value in ((599, np.inf), (301, np.nan), (300, -np.inf)):
            bad = weights.copy()
            bad[row, 3] = value
            with pytest.raises(ValueError, match=f"weights of model {row} are not finite"):
                streaming.fit(bad, 4, method, block=90)


class Stopped(Exception):
    pass


@pytest.mark.parametrize("stop", [1, 2, 4])
def test_resumed_equals_uninterrupted(tmp_path, stop):
    """Bit for bit, over restarts of the basis too; and an ended fit reads no row again."""
    weights = population(200, 300, 8, noise=12.0)
    options = dict(method="randomized", depth=2, oversampling=4, max_passes=40)
    passes = []
    whole = streaming.fit(weights, 8, on_pass=passes.append, **options)
    assert len(passes) > 5

    def interrupt(report):
        if report.number == stop:
            raise Stopped

    folder = tmp_path / "state"
    with pytest.raises(Stopped):
        streaming.fit(weights, 8, checkpoint=folder, on_pass=interrupt, **options)
    rest = []
    resumed = streaming.fit(weights, 8, checkpoint=folder, on_pass=rest.append, **options)
    assert [p.number for p in rest] == list(range(stop + 1, len(passes) + 1))
    assert_close(resumed, whole, 0)
    source = Slices(weights)
    assert_close(streaming.fit(source, 8, checkpoint=folder, **options), whole, 0)
    assert all(len(rows) == 1 for rows in source.read), "only the sample"
    assert len(list(folder.iterdir())) <= 5
    more = []
    streaming.fit(weights, 8, checkpoint=folder, on_pass=more.append, tolerance=2e-5, **options)
    assert more and more[0].number == len(passes) + 1

    with pytest.raises(ValueError, match="fit with k = 8, not 7"):
        streaming.fit(weights, 7, checkpoint=folder, **options)
    with pytest.raises(ValueError, match="of other weights"):
        streaming.fit(weights + 1, 8, checkpoint=folder, **options)


def test_bad_input():
    weights = population(20, 30, 4)
    with pytest.raises(ValueError, match="unknown method 'svd'; expected one of auto, gram"):
        streaming.fit(weights, 2, "svd")
    with pytest.raises(ValueError, match=r"\[N >= 2, D\], got shape \(20,\)"):
        streaming.fit(weights[:, 0], 2)
    with pytest.raises(ValueError, match="floating-point numbers, got int64"):
        streaming.fit(weights.astype(np.int64), 2)
    with pytest.raises(ValueError, match="k = 20 components of 20 models with 30 entries; at most"):
        streaming.fit(weights, 20)
    with pytest.raises(ValueError, match="got 1, 3 and 0.0002"):
        streaming.fit(weights, 2, max_passes=1)
    for method in ("gram", "randomized"):
        for repeated in (np.tile(weights[:5], (4, 1)), np.tile(weights[:5], (20, 1))):
            with pytest.raises(ValueError, match="k = 8 .* span only 4 directions"):
                streaming.fit(repeated, 8, method)
        constant = weights.copy()
        constant[:, 3:] = 1
        with pytest.raises(ValueError, match="k = 4 components .* at most 3"):
            streaming.fit(constant, 4, method)

    class Liar(Slices):
        def __getitem__(self, rows):
            return super().__getitem__(rows)[:, :-1]

    with pytest.raises(ValueError, match=r"rows 0:1 are float32 \(1, 29\), expected"):
        streaming.fit(Liar(weights), 2)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), width=st.integers(1, 12), rank=st.integers(1, 12))
def test_orthonormalise(seed, width, rank):
    """``Z = K C + Q S`` for graded and rank-deficient blocks."""
    rng = np.random.default_rng(seed)
    basis = [krylov.orthonormalise(rng.normal(size=(50, 4)).astype(np.float32))[0]]
    rank = min(rank, width)
    z = rng.normal(size=(50, rank)) @ rng.normal(size=(rank, width))
    z = (z * np.geomspace(1, 1e-4, width)).astype(np.float32)
    q, c, s = krylov.orthonormalise(z.copy(), basis)
    assert q.shape[1] == rank
    both = np.concatenate([*basis, q], axis=1).astype(np.float64)
    np.testing.assert_allclose(both.T @ both, np.eye(4 + rank), atol=2e-6)
    error = basis[0] @ c + q @ s - z
    assert (np.linalg.norm(error, axis=0) <= 3e-6 * np.linalg.norm(z, axis=0)).all()


def _start(folder, cluster):
    root = WORKER.parents[2]
    return subprocess.Popen(
        [sys.executable, "-W", "error", str(WORKER), str(folder), *map(str, cluster)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip


@pytest.mark.distributed
def test_two_processes_equal_one(tmp_path):
    """Also where only one of them meets the row that is not finite: both stop."""
    for method in ("randomized", "gram"):
        np.save(tmp_path / f"{method}.npy", population(150, 260, 5))
    broken = population(450, 460, 5)
    broken[201, 3] = np.nan  # not in the sample, in the share of process 0
    np.save(tmp_path / "bad.npy", broken)
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    processes = [_start(tmp_path, (f"localhost:{port}", 2, i)) for i in range(2)]
    outputs = []
    try:
        for process in processes:
            outputs.append(process.communicate(timeout=200)[0])
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert [p.returncode for p in processes] == [0, 0], "\n".join(outputs)
    assert outputs[0].count("weights of model 201 are not finite") == 2
    assert outputs[1].count("another process failed") == 2
    for method in ("randomized", "gram"):
        space = streaming.fit(np.load(tmp_path / f"{method}.npy"), 5, method)
        for i in range(2):
            assert_close(subspace.load(tmp_path / f"{method}-{i}.safetensors")[0], space)
