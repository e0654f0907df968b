"""Two processes that share a population out make the adapters of one process."""

import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

WORKER = pathlib.Path(__file__).with_name("population_worker.py")
ROOT = WORKER.parents[2]

pytestmark = pytest.mark.distributed


def run(folder, count):
    """Trains with `count` processes; returns their output and the adapters."""
    folder.mkdir()
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    clusters = [[address, str(count), str(i)] for i in range(count)] if count > 1 else [[]]
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(folder), *cluster],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        )
        for cluster in clusters
    ]
    try:
        outputs = [process.communicate(timeout=400)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert [p.returncode for p in processes] == [0] * count, "\n".join(outputs)
    with np.load(folder / "final.npz") as found:
        return outputs, found["vectors"]


def test_two_processes_share_the_groups(tmp_path):
    outputs, together = run(tmp_path / "two", 2)
    done = [text.count("adapters: group") for text in outputs]
    assert done == [2, 1], outputs
    assert ["collected by process" in text for text in outputs] == [True, False], outputs
    _, alone = run(tmp_path / "one", 1)
    assert np.abs(alone).max() > 1e-2
    np.testing.assert_array_equal(together, alone)
