"""Two local processes with two CPU devices each train like one process."""

import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest

from common import distributed
from common.writer import read_jsonl

WORKER = pathlib.Path(__file__).with_name("fit_worker.py")
ROOT = WORKER.parents[2]
NUM_STEPS = 20

pytestmark = pytest.mark.distributed


def _start(folder, devices, steps, cluster=(), pause=0.0):
    return subprocess.Popen(
        [sys.executable, "-W", "error", str(WORKER), *map(str, (folder, devices, steps, *cluster))],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "STEP_PAUSE": str(pause),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",  # later starts find all programs
        },
    )


def _start_two(folder, steps, pause=0.0):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    return [_start(folder, 2, steps, (f"localhost:{port}", 2, i), pause) for i in range(2)]


def _finish(processes, code=0):
    outputs = []
    try:
        for process in processes:
            outputs.append(process.communicate(timeout=400)[0])
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert [p.returncode for p in processes] == [code] * len(processes), "\n".join(outputs)
    return outputs


def _assert_close(folder, reference, tolerance):
    with np.load(folder / "final.npz") as ours, np.load(reference / "final.npz") as theirs:
        assert ours.files == theirs.files
        for name in ours.files:
            scale = np.abs(theirs[name]).max()
            assert np.abs(ours[name] - theirs[name]).max() <= tolerance * scale, name
    ours, theirs = (read_jsonl(path / "metrics.jsonl") for path in (folder, reference))
    assert [r["step"] for r in ours] == [r["step"] for r in theirs] == list(range(NUM_STEPS))
    np.testing.assert_allclose(
        [r["loss"] for r in ours], [r["loss"] for r in theirs], rtol=max(tolerance, 1e-7)
    )


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one_process")
    _finish([_start(folder, 4, NUM_STEPS)])
    return folder


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two_processes")
    _finish(_start_two(folder, NUM_STEPS))
    return folder


def test_two_processes_equal_one_with_as_many_devices(two_processes, one_process):
    _assert_close(two_processes, one_process, 1e-6)
    with np.load(two_processes / "final.npz") as result:
        assert result["count"] == 50  # every example was evaluated once
    names = {path.name for path in two_processes.iterdir()}
    assert names == {"checkpoints", "final.npz", "metrics.jsonl", "tensorboard"}


def test_two_processes_equal_one_device(two_processes, tmp_path):
    _finish([_start(tmp_path, 1, NUM_STEPS)])
    _assert_close(two_processes, tmp_path, 1e-6)


def test_preemption_of_one_process_stops_both_and_two_or_one_continue(two_processes, tmp_path):
    both, one = tmp_path / "both", tmp_path / "one"
    processes = _start_two(both, NUM_STEPS, pause=0.2)
    while not (line := processes[1].stdout.readline()).startswith("step 3"):
        assert line, processes[1].communicate()[0]
    processes[1].send_signal(signal.SIGTERM)
    outputs = _finish(processes, code=143)
    stops = {line for text in outputs for line in text.splitlines() if "preempted at" in line}
    assert len(stops) == 1, outputs
    stop = int(stops.pop().split()[-1])
    assert 3 <= stop < NUM_STEPS
    assert stop in {int(path.name) for path in (both / "checkpoints").iterdir()}
    shutil.copytree(both, one)

    _finish(_start_two(both, NUM_STEPS))
    _assert_close(both, two_processes, 0.0)
    output = _finish([_start(one, 1, NUM_STEPS)])[0]  # one process reads what two have written
    assert output.startswith(f"step {stop + 1}\n")
    _assert_close(one, two_processes, 1e-6)


def test_damaged_checkpoint_is_set_aside_by_all_processes(two_processes, tmp_path):
    shutil.copytree(two_processes, tmp_path / "run")
    (tmp_path / "run" / "final.npz").unlink()
    for path in (tmp_path / "run" / "checkpoints" / str(NUM_STEPS)).rglob("*"):
        if path.is_file() and path.name == "manifest.ocdbt":
            path.unlink()
    outputs = _finish(_start_two(tmp_path / "run", NUM_STEPS))
    assert all("step 16\n" in text and "step 15\n" not in text for text in outputs)
    assert (tmp_path / "run" / "checkpoints" / f"damaged-{NUM_STEPS}").is_dir()
    _assert_close(tmp_path / "run", two_processes, 0.0)


def test_incomplete_flags_are_refused():
    with pytest.raises(ValueError, match="missing: num_processes, process_id"):
        distributed.initialize("localhost:1")
    with pytest.raises(ValueError, match=r"process_id=2 is not in 0\.\.1"):
        distributed.initialize("localhost:1", 2, 2)
    distributed.initialize()  # nothing asked, nothing done
    assert distributed.is_main()
    distributed.barrier("alone")
