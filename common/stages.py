"""Stages of an experiment: named steps that leave artefacts, are skipped when done, and resume.

A stage is a function `function(config, inputs, out)`. It reads the directories of the stages it
needs from `inputs` and writes files into `out`. A finished stage is identified by a fingerprint of
its name, version, configuration and the fingerprints of what it needs, so a changed setting runs
again exactly the stages that depend on it. A stage that was killed finds in `out` what it had
written there and continues from it.
"""

import hashlib
import json
import os
import pathlib
import platform
import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from common import distributed
from common.config import to_plain
from common.storage import load_arrays, load_json, save_arrays, save_json

__all__ = ["Pipeline", "StageFunction", "load_arrays", "load_json", "save_arrays", "save_json"]

RECORD = "stage.json"
StageFunction = Callable[[Any, dict[str, pathlib.Path], pathlib.Path], None]


class Pipeline:
    """The stages of one run, in the working directory `workdir`.

    With several processes every process calls the same stages in the same order. Process 0 decides
    what is skipped and gives finished directories their name; a stage's function runs on all
    processes and lets process 0 write what is not written collectively, or, where the stage says
    so, on process 0 alone while the others wait. `workdir` must be on a file system that all
    processes share.
    """

    def __init__(
        self, workdir: str | os.PathLike[str], echo: Callable[[str], None] = print
    ) -> None:
        """Stages live in `workdir/stages/NAME`; `echo` receives one line per event."""
        self.workdir = pathlib.Path(workdir)
        self._root = self.workdir / "stages"
        self._echo = echo
        self._fingerprints: dict[str, str] = {}

    def stage(
        self,
        name: str,
        function: StageFunction,
        config: Any,
        needs: Sequence[str] = (),
        version: int = 1,
        everywhere: bool = True,
    ) -> pathlib.Path:
        """Runs a stage unless it is already done.

        Args:
          name: Lower-case letters, digits, `_` and `-`.
          function: Called as `function(config, inputs, out)`; `inputs` maps each name in `needs` to
            that stage's directory; `out` exists and holds what an interrupted call left there.
          config: What the result depends on (ConfigDict, mapping, or any JSON value), nothing else:
            a change of it runs the stage again.
          needs: Names of earlier stages of this pipeline whose artefacts the function reads.
          version: Raise it when the code changes so that old results are wrong.
          everywhere: Call the function on every process; otherwise on process 0 only.

        Returns:
          The directory of the finished stage.

        Raises:
          ValueError: A bad or repeated name, or a need that no earlier stage provides.
          RuntimeError: A stage record is damaged, or a process does not see the directory.
        """
        self._check_names(name, needs)
        plain = to_plain(config, f"configuration of stage {name!r}")
        parts = {
            "name": name,
            "version": version,
            "config": plain,
            "needs": {need: self._fingerprints[need] for need in needs},
        }
        fingerprint = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
        record = {"fingerprint": fingerprint, **parts, "versions": _versions()}
        done, out = self._root / name, self._root / f"{name}.partial"

        _barrier(f"{name}:begin")
        if self._is_done(name, record):
            self._fingerprints[name] = fingerprint
            return done
        if distributed.is_main():
            attempt = _prepare(out, record)
            if attempt > 1:
                self._say(f"{name}: continues an interrupted run (attempt {attempt})")
        _barrier(f"{name}:prepared")
        if not out.is_dir():
            raise RuntimeError(f"this process does not see {out}: processes must share the workdir")

        self._say(f"{name}: started")
        start = time.perf_counter()
        if everywhere or distributed.is_main():
            function(config, {need: self._root / need for need in needs}, out)
        seconds = time.perf_counter() - start

        _barrier(f"{name}:returned")
        if distributed.is_main():
            stored = _read_record(out)
            save_json(out / RECORD, {**stored, "seconds": seconds})
            _publish(out, done)
        _barrier(f"{name}:published")
        self._fingerprints[name] = fingerprint
        self._say(f"{name}: done ({_duration(seconds)})")
        return done

    def seconds(self) -> dict[str, float]:
        """Seconds that each stage of this pipeline took when it ran (its last attempt)."""
        return {name: _read_record(self._root / name)["seconds"] for name in self._fingerprints}

    def _check_names(self, name: str, needs: Sequence[str]) -> None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
            raise ValueError(f"stage name {name!r}: only lower-case letters, digits, _ and -")
        if name in self._fingerprints:
            raise ValueError(f"stage {name!r} is defined twice in one pipeline")
        for need in needs:
            if need not in self._fingerprints:
                raise ValueError(f"stage {name!r} needs {need!r}, which no earlier stage provides")

    def _is_done(self, name: str, record: dict[str, Any]) -> bool:
        """Whether process 0 finds the stage finished; says so, or says why it runs again."""
        done, partial = self._root / name, self._root / f"{name}.partial"
        finished = False
        if distributed.is_main():
            stored = _read_record(partial) if (partial / RECORD).exists() else None
            if stored and "seconds" in stored and stored["fingerprint"] == record["fingerprint"]:
                _publish(partial, done)  # killed between the two last operations
            stored = _read_record(done) if done.is_dir() else None
            if stored is not None:
                shutil.rmtree(_replaced(done), ignore_errors=True)  # killed before its removal
                finished = stored["fingerprint"] == record["fingerprint"]
                if finished:
                    self._say(f"{name}: done before ({_duration(stored['seconds'])}), skipped")
                else:
                    self._say(f"{name}: runs again, {_difference(stored, record)}")
        return _broadcast(finished)

    def _say(self, line: str) -> None:
        if distributed.is_main():
            self._echo(line)


def _prepare(out: pathlib.Path, record: dict[str, Any]) -> int:
    """Makes `out` ready, keeping what an equal interrupted run left; returns the attempt's number.

    The record is written before anything else, so a directory without one holds nothing of value.
    """
    attempt = 1
    if out.is_dir():
        stored = _read_record(out) if (out / RECORD).exists() else None
        if stored and stored["fingerprint"] == record["fingerprint"]:
            attempt = stored["attempts"] + 1
        else:
            shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    save_json(out / RECORD, {**record, "attempts": attempt})
    return attempt


def _publish(partial: pathlib.Path, done: pathlib.Path) -> None:
    """Gives a finished directory its name; the one it replaces is removed."""
    old = _replaced(done)
    shutil.rmtree(old, ignore_errors=True)
    if done.exists():
        done.rename(old)
    partial.rename(done)
    shutil.rmtree(old, ignore_errors=True)


def _replaced(done: pathlib.Path) -> pathlib.Path:
    return done.with_name(f"{done.name}.old")


def _read_record(directory: pathlib.Path) -> dict[str, Any]:
    try:
        return load_json(directory / RECORD)
    except (OSError, ValueError) as error:
        raise RuntimeError(f"{directory} has no readable {RECORD} ({error}); remove it") from error


def _difference(stored: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    """Why two records have different fingerprints, in words."""
    for part, what in (("version", "its code's version"), ("config", "its configuration")):
        before, after = stored[part], record[part]
        if before != after:
            changes = list(_changes(before, after, ""))
            more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
            return f"{what} changed ({', '.join(changes[:3])}{more})"
    needs = {**stored["needs"], **record["needs"]}
    changed = [n for n in needs if stored["needs"].get(n) != record["needs"].get(n)]
    return f"what it needs changed ({', '.join(changed)})"


def _changes(before: Any, after: Any, key: str) -> Any:
    """Yields `key before -> after` for every differing leaf of two JSON values."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in dict.fromkeys([*before, *after]):
            below = f"{key}.{name}" if key else name
            yield from _changes(before.get(name), after.get(name), below)
    elif before != after:
        yield f"{key} {json.dumps(before)} -> {json.dumps(after)}".strip()


def _versions() -> dict[str, str]:
    """Versions of what computed a stage; recorded, not part of the fingerprint."""
    loaded = {name: sys.modules.get(name) for name in ("jax", "flax", "numpy")}
    found = {name: str(module.__version__) for name, module in loaded.items() if module}
    return {"python": platform.python_version(), **found}


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


def _barrier(name: str) -> None:
    distributed.barrier(f"stage:{name}")


def _broadcast(value: bool) -> bool:
    """Process 0's value on every process."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.broadcast_one_to_all(np.array(value)))
