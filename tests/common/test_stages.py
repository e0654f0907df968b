"""Stages: skipping, invalidation, interruption at every point, artefact files."""

import hashlib
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from common import stages, storage

# The only function-scoped fixture around the property test is `fast_disk`, which has no state.
FIXTURE = [HealthCheck.function_scoped_fixture]
ROOT = pathlib.Path(__file__).resolve().parents[2]


class Study:
    """A three-stage experiment that counts the work it does."""

    def __init__(self, workdir):
        self.workdir = workdir
        self.calls = []
        self.lines = []

    def count(self, config, inputs, out):
        """Writes `parts` files one by one and continues from those it finds."""
        for part in range(config["parts"]):
            if not (out / f"{part}.json").exists():
                self.calls.append(f"count {part}")
                stages.save_json(out / f"{part}.json", part * config["step"])

    def add(self, config, inputs, out):
        self.calls.append("add")
        parts = sorted(inputs["count"].glob("[0-9]*.json"))
        total = sum(stages.load_json(part) for part in parts)
        stages.save_arrays(out / "total.safetensors", {"total": np.array(total)}, {"n": len(parts)})

    def tell(self, config, inputs, out):
        self.calls.append("tell")
        arrays, header = stages.load_arrays(inputs["add"] / "total.safetensors")
        (out / "text").write_text(f"{config['word']} {arrays['total']} {header['n']}")

    def run(self, parts=3, step=2, word="sum", version=1):
        self.calls, self.lines = [], []
        pipeline = stages.Pipeline(self.workdir, echo=self.lines.append)
        pipeline.stage("count", self.count, {"parts": parts, "step": step})
        pipeline.stage("add", self.add, {}, needs=["count"], version=version)
        out = pipeline.stage("tell", self.tell, ConfigDict({"word": word}), needs=["add"])
        return (out / "text").read_text()


@pytest.fixture(autouse=True)
def fast_disk(monkeypatch):
    """Processes are killed here, never the machine, so nothing needs to reach the disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def study(tmp_path):
    return Study(tmp_path)


def test_a_second_run_skips_everything_and_says_so(study):
    assert study.run() == "sum 6 3"
    assert study.calls == ["count 0", "count 1", "count 2", "add", "tell"]
    assert study.run() == "sum 6 3"
    assert study.calls == []
    assert study.lines[0].startswith("count: done before (0.") and len(study.lines) == 3
    assert study.lines[0].endswith(" s), skipped")


def test_a_change_reruns_only_what_depends_on_it(study):
    study.run()
    assert study.run(word="total") == "total 6 3"
    assert study.calls == ["tell"]
    assert 'tell: runs again, its configuration changed (word "sum" -> "total")' in study.lines

    assert study.run(word="total", version=2) == "total 6 3"
    assert study.calls == ["add", "tell"]
    assert "add: runs again, its code's version changed (1 -> 2)" in study.lines
    assert "tell: runs again, what it needs changed (add)" in study.lines

    assert study.run(parts=2, step=5, word="total", version=2) == "total 5 2"
    assert study.calls == ["count 0", "count 1", "add", "tell"]


def test_a_replaced_result_is_kept_until_the_new_one_is_whole(study, monkeypatch):
    study.run()

    def fail(config, inputs, out):
        (out / "text").write_text("half")
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(study, "tell", fail)
        with pytest.raises(RuntimeError, match="killed"):
            study.run(word="total")
    assert (study.workdir / "stages/tell/text").read_text() == "sum 6 3"
    assert study.run() == "sum 6 3" and study.calls == []


def test_the_partial_result_of_another_configuration_is_wiped(study, monkeypatch):
    def fail(config, inputs, out):
        (out / "0.json").write_text("99")
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(study, "count", fail)
        with pytest.raises(RuntimeError):
            study.run(step=3)
    assert study.run(step=2) == "sum 6 3"


class Killed(BaseException):
    """Stands for a process that ends here."""


def _fuse(operation, left, mode):
    """`operation`, whose call number `left[0]` kills the process before, after or half way."""

    def run(*arguments, **keywords):
        burnt = left[0] == 0
        left[0] -= 1
        if burnt and mode == "half" and operation is shutil.rmtree:
            for path in pathlib.Path(arguments[0]).glob("*"):
                if path.name != stages.RECORD:
                    path.unlink()
        if burnt and mode != "after":
            raise Killed
        result = operation(*arguments, **keywords)
        if burnt:
            raise Killed
        return result

    return run


@pytest.mark.parametrize("mode", ["before", "half", "after"])
def test_interruption_at_every_file_operation_is_recovered(tmp_path, monkeypatch, mode):
    """The k-th rename, replace, mkdir or removal kills the run, for every k."""
    owners = [(pathlib.Path, "rename"), (pathlib.Path, "replace"), (pathlib.Path, "mkdir")]
    owners.append((shutil, "rmtree"))
    reference = Study(tmp_path / "reference")
    old, new = reference.run(parts=2), reference.run(parts=3)
    for k in range(1000):
        studies = [Study(tmp_path / f"{k}-{goal}") for goal in ("new", "old")]
        for study in studies:
            study.run(parts=2)  # so that the killed run replaces results
            with monkeypatch.context() as patch:
                left = [k]
                for owner, name in owners:
                    patch.setattr(owner, name, _fuse(getattr(owner, name), left, mode))
                try:
                    assert study.run(parts=3) == new
                except Killed:
                    pass
            finished = left[0] >= 0
        if finished:  # fewer than k operations: every point was tried
            break
        forward, back = studies
        counted = [call for call in forward.calls if call.startswith("count")]
        assert forward.run(parts=3) == new
        assert len([call for call in forward.calls if call in counted]) <= 1, f"point {k}"
        assert back.run(parts=2) == old  # nothing half-removed is taken for the old result
        found = {path.name for path in (forward.workdir / "stages").iterdir()}
        assert found == {"add", "count", "tell"}, f"point {k}"
    assert k > 15


def test_a_stage_that_returned_is_not_called_again(study, monkeypatch):
    def killed(partial, done):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(stages, "_publish", killed)
        with pytest.raises(Killed):
            study.run()
    assert study.calls == ["count 0", "count 1", "count 2"]
    assert study.run() == "sum 6 3"
    assert study.calls == ["add", "tell"]
    assert study.lines[0].startswith("count: done before")


SCRIPT = """
import hashlib, sys, time
from common import stages

def work(config, inputs, out):
    state = inputs[config["after"]] / "state.json" if config["after"] else None
    value = stages.load_json(state)["value"] if state else "seed"
    step = 0
    if (out / "state.json").exists():
        value, step = stages.load_json(out / "state.json").values()
    for step in range(step, 20):
        value = hashlib.sha256(value.encode()).hexdigest()
        time.sleep(0.01)
        stages.save_json(out / "state.json", {"value": value, "step": step + 1})

pipeline = stages.Pipeline(sys.argv[1])
print("ready", flush=True)
pipeline.stage("one", work, {"after": None})
pipeline.stage("two", work, {"after": "one"}, needs=["one"])
last = pipeline.stage("last", work, {"after": "two"}, needs=["two"])
print(stages.load_json(last / "state.json"))
"""


def test_sigkill_at_random_moments_and_resume(tmp_path):
    value = "seed"
    for _ in range(60):
        value = hashlib.sha256(value.encode()).hexdigest()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    rng = random.Random(0)
    for _ in range(4):
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as child:
            first = child.stdout.readline()
            time.sleep(rng.uniform(0.05, 0.3))
            child.kill()
        assert first == "ready\n" and child.returncode == -signal.SIGKILL
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == str({"value": value, "step": 20})


def test_misuse_is_refused(study):
    pipeline = stages.Pipeline(study.workdir, echo=study.lines.append)
    with pytest.raises(ValueError, match="needs 'count', which no earlier stage provides"):
        pipeline.stage("add", study.add, {}, needs=["count"])
    with pytest.raises(ValueError, match="stage name '../x'"):
        pipeline.stage("../x", study.add, {})
    with pytest.raises(TypeError, match="configuration of stage 'count'.parts has type object"):
        pipeline.stage("count", study.count, {"parts": object()})
    pipeline.stage("count", study.count, {"parts": 1, "step": 1})
    with pytest.raises(ValueError, match="'count' is defined twice"):
        pipeline.stage("count", study.count, {"parts": 1, "step": 1})
    assert set(pipeline.seconds()) == {"count"}


def test_a_damaged_record_is_named(study):
    study.run()
    record = study.workdir / "stages/add/stage.json"
    record.write_text("{")
    with pytest.raises(RuntimeError, match="stages/add has no readable stage.json"):
        study.run()


def test_record_holds_configuration_seconds_and_versions(study):
    study.run()
    record = json.loads((study.workdir / "stages/count/stage.json").read_text())
    assert record["config"] == {"parts": 3, "step": 2}
    assert record["seconds"] >= 0 and record["attempts"] == 1
    assert {"python", "jax", "numpy"} <= set(record["versions"])


@settings(max_examples=40, deadline=None, suppress_health_check=FIXTURE)
@given(
    shape=st.lists(st.integers(0, 4), max_size=3),
    dtype=st.sampled_from(["float32", "float64", "int8", "uint8", "int64", "bool", "float16"]),
    fortran=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_arrays_survive_bit_for_bit(tmp_path_factory, shape, dtype, fortran, seed):
    array = np.random.default_rng(seed).integers(0, 2, shape).astype(dtype)
    array = np.asfortranarray(array) if fortran and array.ndim else array
    path = tmp_path_factory.mktemp("arrays") / "a.safetensors"
    storage.save_arrays(path, {"x/y": array, "strided": array[..., ::2] if array.ndim else array})
    loaded, header = storage.load_arrays(path)
    assert header == {} and loaded["x/y"].dtype == array.dtype
    np.testing.assert_array_equal(loaded["x/y"], array, strict=True)
    np.testing.assert_array_equal(loaded["strided"], array[..., ::2] if array.ndim else array)


def test_arrays_of_jax_bfloat16_and_header(tmp_path):
    path = tmp_path / "a.safetensors"
    values = jnp.asarray([1.5, -2.0], jnp.bfloat16)
    storage.save_arrays(path, {"b": values}, {"sizes": (1, 2), "rate": np.float32(0.5)})
    loaded, header = storage.load_arrays(path)
    assert loaded["b"].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(loaded["b"], np.asarray(values))
    assert header == {"sizes": [1, 2], "rate": 0.5}


def test_artefact_files_refuse_what_they_cannot_hold(tmp_path):
    with pytest.raises(ValueError, match="must end in .safetensors"):
        storage.save_arrays(tmp_path / "a.npz", {})
    with pytest.raises(TypeError, match="'names' has dtype"):
        storage.save_arrays(tmp_path / "a.safetensors", {"names": np.array(["a"])})
    with pytest.raises(ValueError, match=r"r.json.score is nan"):
        storage.save_json(tmp_path / "r.json", {"score": np.float32("nan")})
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match="broken.json is not valid JSON"):
        storage.load_json(tmp_path / "broken.json")
    assert [path.name for path in tmp_path.iterdir()] == ["broken.json"]  # nothing half-written


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = storage.save_json(tmp_path / "r.json", {"score": 1})

    def full(descriptor):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        storage.save_json(path, {"score": 2})
    assert storage.load_json(path) == {"score": 1}
    assert [found.name for found in tmp_path.iterdir()] == ["r.json"]
