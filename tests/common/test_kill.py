"""Training killed at random points and resumed equals the uninterrupted run bit for bit."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from common.writer import read_jsonl

WORKER = pathlib.Path(__file__).with_name("resume_worker.py")
ROOT = WORKER.parents[2]


def _start(folder):
    return subprocess.Popen(
        [sys.executable, "-W", "error", str(WORKER), str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",  # later starts find all programs
        },
    )


def _finish(process):
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def _interrupt(process, after, delay, number):
    """Sends the signal `delay` seconds after `after` more steps; returns (exit code, last step)."""
    last = None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if not line.startswith("step "):
            continue
        last = int(line.split()[1])
        after -= 1
        if after == 0:
            time.sleep(delay)
            process.send_signal(number)
            break
    rest, _ = process.communicate(timeout=300)
    assert last is not None, "".join(lines) + rest
    return process.returncode, last


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    _finish(_start(folder))
    return folder


def _assert_equal(folder, reference):
    with np.load(folder / "final.npz") as ours, np.load(reference / "final.npz") as theirs:
        assert ours.files == theirs.files
        for name in ours.files:
            np.testing.assert_array_equal(ours[name], theirs[name])
    losses, expected = (
        [(r["step"], r["loss"]) for r in read_jsonl(path / "metrics.jsonl")]
        for path in (folder, reference)
    )
    assert losses == expected


@pytest.mark.parametrize("seed", [0, 1])
def test_sigkill_at_random_points(uninterrupted, tmp_path, seed):
    generator = np.random.default_rng(seed)
    for _ in range(2):
        after, delay = int(generator.integers(1, 12)), float(generator.uniform(0, 0.03))
        code, _ = _interrupt(_start(tmp_path), after, delay, signal.SIGKILL)
        assert code == -signal.SIGKILL
    output = _finish(_start(tmp_path))
    first = int(output.split("step ", 1)[1].split()[0])
    assert first > 1  # it did resume
    _assert_equal(tmp_path, uninterrupted)


def test_sigterm(uninterrupted, tmp_path):
    code, _ = _interrupt(_start(tmp_path), 7, 0.0, signal.SIGTERM)
    assert code == 143
    saved = max(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert saved >= 7
    output = _finish(_start(tmp_path))
    assert int(output.split("step ", 1)[1].split()[0]) == saved + 1
    _assert_equal(tmp_path, uninterrupted)
