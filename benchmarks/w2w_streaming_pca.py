"""Streaming PCA of a bank larger than memory, beside the floor of this machine and beside peers.

    python benchmarks/w2w_streaming_pca.py --folder /data [--models 64974 --entries 99648 --k 1000]
    python benchmarks/w2w_streaming_pca.py --folder /data --peers --models 4000 --entries 8000 \\
        --k 100

The bank is written to ``--folder`` (26 GB at full size; removed at the end unless ``--keep``) with
an exactly known standardised spectrum: left and right singular vectors are cosines and sines of
different frequencies, each right pair with one singular value. Every standardised column has then
the same variance, so offset and scale of the entries, which differ widely, are undone exactly.
After the k planted components, whose variance falls from 30 to 1, the rest of ``--rest``
components falls from ``--gap`` squared, and white noise of ``--noise`` is added.

The floor is the operations of the passes that were made (4 N D l each) at the rate measured for
the same two products, plus the bytes of the passes at the rate of this disk without page cache.
"""

import argparse
import os
import resource
import statistics
import threading
import time
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from w2w import subspace
from w2w.pca import streaming
from w2w.pca.products import Products


def waves(places: np.ndarray, frequencies: np.ndarray, size: int) -> np.ndarray:
    """Orthonormal pairs of a cosine and a sine, ``[len(places), 2 len(frequencies)]``."""
    angles = (np.outer(places, frequencies) % size) * (2 * np.pi / size)
    pairs = np.stack([np.cos(angles), np.sin(angles)], axis=2)
    return (np.sqrt(2 / size) * pairs.reshape(len(places), -1)).astype(np.float32)


def spectrum(options) -> np.ndarray:
    """Singular values of the standardised signal and rest, up to a common factor, in pairs."""
    planted = np.geomspace(30, 1, options.k // 2) ** 0.5
    rest = options.gap * np.geomspace(1, 0.1, options.rest // 2)
    return np.repeat(np.concatenate([planted, rest]), 2)


def right_vectors(options) -> np.ndarray:
    """``[k + rest, D]``, the planted ones first."""
    rng = np.random.default_rng(1)
    count = (options.k + options.rest) // 2
    frequencies = 1 + rng.permutation((options.entries - 1) // 2)[:count]
    order = rng.permutation(options.entries)  # no structure along the entries
    result = np.empty((2 * count, options.entries), np.float32)
    for start in range(0, options.entries, 4096):
        where = slice(start, start + 4096)
        result[:, where] = waves(order[where], frequencies, options.entries).T
    return result


def write_bank(path: Path, options) -> np.ndarray:
    """Writes the bank a block of rows at a time; returns the planted ``[k, D]``."""
    n, d = options.models, options.entries
    rng = np.random.default_rng(0)
    right, strength = right_vectors(options), spectrum(options)
    planted = right[: options.k].copy()
    right *= (strength * np.sqrt(n * d / np.sum(strength**2)))[:, None].astype(np.float32)
    frequencies = 1 + rng.permutation((n - 1) // 2)[: len(strength) // 2]
    offset = rng.standard_normal(d, np.float32)
    scale = np.exp(rng.standard_normal(d, np.float32))
    block = max(1, 2**28 // (4 * d))
    with open(path, "wb") as file, tqdm(total=n, desc="bank", unit="row", disable=None) as bar:
        for start in range(0, n, block):
            rows = np.arange(start, min(start + block, n))
            x = waves(rows, frequencies, n) @ right
            if options.noise:
                x += options.noise * rng.standard_normal(x.shape, np.float32)
            x *= scale
            x += offset
            x.tofile(file)
            bar.update(len(rows))
        file.flush()
        os.fsync(file.fileno())
    return planted


def read_rate(path: Path, limit: int = 2**32) -> tuple[float, str]:
    """Bytes per second of reading up to ``limit`` bytes that are not in the page cache."""
    size, chunk = min(limit, path.stat().st_size), 2**24
    with open(path, "rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        buffer, done, start = bytearray(chunk), 0, time.perf_counter()
        while done < size and (count := file.readinto(buffer)):
            done += count
        seconds = time.perf_counter() - start
    return done / seconds, "buffered, the file's cached pages dropped first (POSIX_FADV_DONTNEED)"


def product_rate(options, width: int, rows: int) -> float:
    """Operations per second of ``X Q`` and ``X^T Y`` at the shapes of a pass; median of five."""
    products, rng = Products(), np.random.default_rng(0)
    d = options.entries
    right = products.place(rng.standard_normal((d, width), np.float32))
    block = rng.standard_normal((rows, d), np.float32)
    x, _ = products.standardise(block, rows, np.zeros(d, np.float32), np.ones(d, np.float32))
    seconds, total = [], None
    for _ in range(6):
        start = time.perf_counter()
        total = products.accumulate(None, x, products.times(x, right))
        jax.block_until_ready(total)
        seconds.append(time.perf_counter() - start)
    return 4 * rows * d * width / statistics.median(seconds[1:])


def angle(first: np.ndarray, second: np.ndarray) -> float:
    """Largest principal angle (rad) of two orthonormal row spaces, by its sine."""
    first, second = np.asarray(first), np.asarray(second)
    cross, gram = np.zeros((len(first), len(second))), np.zeros((len(second), len(second)))
    own = np.zeros((len(first), len(first)))
    for start in range(0, first.shape[1], 4096):
        a = first[:, start : start + 4096].astype(np.float64)
        b = second[:, start : start + 4096].astype(np.float64)
        cross += a @ b.T
        gram += b @ b.T
        own += a @ a.T
    # Of the part of `second` outside `first`, both orthonormal up to float32.
    outside = gram - cross.T @ np.linalg.solve(own, cross)
    return float(np.arcsin(np.sqrt(np.linalg.eigvalsh(outside)[-1].clip(0, 1))))


class Resident(threading.Thread):
    """Largest resident memory (bytes) while it runs."""

    def __init__(self):
        super().__init__(daemon=True)
        self.peak, self._ended = 0, threading.Event()

    def run(self):
        while not self._ended.wait(0.05):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.peak = max(self.peak, pages * resource.getpagesize())

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *error):
        self._ended.set()
        self.join()


def peers(weights: np.ndarray, k: int, seed: int = 0):
    """``(name, function -> components)`` of what else computes this, all data in memory."""
    from sklearn.decomposition import PCA, IncrementalPCA

    def standard():
        return (weights - weights.mean(0)) / weights.std(0, ddof=1)

    yield "scikit-learn IncrementalPCA", lambda: IncrementalPCA(
        k, batch_size=2 * k).fit(standard()).components_  # fmt: skip
    for power in (1, 4):
        yield f"scikit-learn PCA, randomized, {power} power iterations", lambda power=power: PCA(
            k, svd_solver="randomized", iterated_power=power, random_state=seed,
            n_oversamples=max(16, k // 10)).fit(standard()).components_  # fmt: skip
    yield "w2w.subspace.fit, gram (float64)", lambda: subspace.fit(weights, k).components
    yield "w2w.subspace.fit, randomized (float64)", lambda: subspace.fit(
        weights, k, "randomized").components  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--models", type=int, default=64974)
    parser.add_argument("--entries", type=int, default=99648)
    parser.add_argument("--k", type=int, default=1000, help="even")
    parser.add_argument("--rest", type=int, default=400, help="components after k, even")
    parser.add_argument("--gap", type=float, default=0.3, help="singular value k+1 over value k")
    parser.add_argument("--noise", type=float, default=1e-4, help="deviation, column unit 1")
    parser.add_argument("--method", default="randomized")
    parser.add_argument("--block-bytes", type=int, default=256 * 2**20)
    parser.add_argument("--keep", action="store_true", help="keep the bank, and use one kept")
    parser.add_argument("--peers", action="store_true", help="time others; all data in memory")
    options = parser.parse_args()
    n, d, k = options.models, options.entries, options.k
    if k % 2 or options.rest % 2 or k + options.rest >= min(n, d) - 2:
        parser.error("k and rest must be even, and k + rest less than models - 2 and entries - 2")
    path = options.folder / f"bank-{n}x{d}-{k}-{options.rest}-{options.gap}-{options.noise}.f32"
    width = k + max(16, k // 10)
    rows = max(1, min(n, options.block_bytes // (4 * d)))
    try:
        if not path.exists() or path.stat().st_size != 4 * n * d:
            temporary = path.with_suffix(".part")
            try:
                write_bank(temporary, options)
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
        bytes_rate, how = read_rate(path)
        rate = product_rate(options, width, rows)
        source, passes = np.memmap(path, np.float32, "r", shape=(n, d)), []
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        with Resident() as resident:
            start = time.perf_counter()
            space = streaming.fit(source, k, options.method, on_pass=passes.append,
                                  block_bytes=options.block_bytes)  # fmt: skip
            jax.block_until_ready(space)
            seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        planted = right_vectors(options)[:k]
        found = angle(planted, space.components)
        print(f"device: {jax.devices()[0].device_kind} x {jax.local_device_count()}")
        print(f"products: {rate / 1e9:.0f} GFLOP/s; disk: {bytes_rate / 1e9:.2f} GB/s, {how}")
        print("| | |\n|---|---|")
        print(f"| bank | {n} x {d} float32, {4e-9 * n * d:.2f} GB; k = {k}, l = {width} |")
        if passes:
            operations, bytes_ = len(passes) * 4 * n * d * width, len(passes) * 4 * n * d
            floor = operations / rate + bytes_ / bytes_rate
            print(f"| passes | {len(passes)} |")
            print(
                f"| floor, s | {operations / rate:.1f} + {bytes_ / bytes_rate:.1f} = {floor:.1f} |"
            )
            print(f"| ratio to the floor | {seconds / floor:.2f} |")
            print(f"| estimated angle, rad | {passes[-1].error:.1e} |")
        print(f"| wall time, s | {seconds:.1f} |")
        print(f"| angle to the planted subspace, rad | {found:.1e} |")
        print(f"| peak memory of the fit, GB | {resident.peak / 1e9:.2f} (sampled) |")
        print(f"| peak memory of this program until its end, GB | {peak / 1e9:.2f} (getrusage) |")
        if options.peers:
            print("\n| | seconds | angle to the planted subspace, rad |\n|---|---|---|")
            print(f"| w2w.pca.streaming.fit, {options.method} | {seconds:.2f} | {found:.1e} |")
            weights = np.fromfile(path, np.float32).reshape(n, d)
            for name, function in peers(weights, k):
                start = time.perf_counter()
                components = np.asarray(function())
                spent = time.perf_counter() - start
                print(f"| {name} | {spent:.2f} | {angle(planted, components):.1e} |", flush=True)
    finally:
        if not options.keep:
            path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
