"""Filling a weight bank from a folder of adapter files, in parallel, and continuing where it ended.

Rows are in natural order of their names (``anna2`` before ``anna10``) and do not depend on the
number of workers or on interruptions. No file is dropped without a word: what is refused is in the
report, with the reason.
"""

import collections
import contextlib
import os
import pathlib
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import tqdm

from common.storage import save_json
from w2w import adapters, folders
from w2w.adapters import AdapterError, Loaded, Reading
from w2w.adapters.config import CONFIG
from w2w.adapters.files import DIFFUSERS_STEM, PEFT_STEM, SUFFIXES
from w2w.bank import Bank, BankError, checksum

_COMMIT_BYTES = 64 << 20  # rows are committed in groups of this size
_FIXED_NAMES = (PEFT_STEM, DIFFUSERS_STEM)


class Source(NamedTuple):
    """An adapter in a folder: its name, and its file."""

    name: str
    path: pathlib.Path


def find(folder: str | os.PathLike[str]) -> list[Source]:
    """The adapters below a folder, in natural order of their names.

    Links to folders are followed, so a folder of links to adapter folders is one, too; every real
    folder is entered once, see :func:`w2w.folders.walk`.

    A name is the path relative to the folder without suffix; files that libraries always call the
    same (``adapter_model``, ``pytorch_lora_weights``) are named after their folder, those in a
    folder ``unet`` after its parent. Two adapters may have one name here.

    Also found, and refused when they are read: a configuration without weights, links that lead
    nowhere (of an adapter's suffix, or of none, as a folder's link has) and sub-folders that may
    not be read.

    Raises:
      NotADirectoryError: there is no such folder.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder")
    found = []
    for path in folders.walk(folder):
        place = path.relative_to(folder)
        if path.is_dir():  # unreadable
            found.append(Source(_name(place, folder), path))
            continue
        weights = path.suffix in SUFFIXES
        alone = path.name == CONFIG and not any(path.parent.glob(f"{PEFT_STEM}.*"))
        dangling = folders.is_dangling(path)
        if not (weights or alone or (dangling and not path.suffix)):
            continue
        if not (dangling or path.is_file()):
            continue
        name = place.with_suffix("")
        if alone or path.stem in _FIXED_NAMES:
            name = place.parent.parent if place.parent.name == "unet" else place.parent
        found.append(Source(_name(name, folder), path))
    return sorted(found, key=lambda source: (folders.natural(source.name), str(source.path)))


def _name(place: pathlib.Path, folder: pathlib.Path) -> str:
    """Name of what is at a place below the folder; the folder's own where it is the folder."""
    return place.as_posix() if place.parts else folder.resolve().name


def import_folder(
    bank: Bank,
    folder: str | os.PathLike[str],
    workers: int = 8,
    reading: Reading | None = None,
    labels: Mapping[str, Mapping[str, float]] | None = None,
    report: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Appends every adapter below a folder to a bank.

    An import that was interrupted continues: files that are in the bank, under their name and of
    the same size and time of change, are not read again.

    Args:
      bank: receives the rows.
      folder: see :func:`find`.
      workers: files read at a time, by threads.
      reading: what to make of files of another strength or rank; its alpha is the bank's.
      labels: adapter name to label name to number.
      report: JSON file to write the result to; also of an import that fails, where possible.

    Returns:
      ``{"folder", "found", "imported", "already", "refused": [{"name", "file", "reason"}, ...],
      "changed": [{"name", "note"}, ...], "rows"}``; found = imported + already + refused.

    Raises:
      BankError: the bank cannot be written; what was committed before is kept.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    settings = Reading() if reading is None else reading
    settings = Reading(
        bank.alpha,
        settings.missing_alpha,
        settings.reduce,
        settings.canonical,
        settings.text_encoder,
    )
    folder = pathlib.Path(folder)
    sources = find(folder)
    result: dict[str, Any] = {"folder": str(folder), "found": len(sources)}
    result |= {"imported": 0, "already": 0, "refused": [], "changed": []}
    group = _Group(bank, labels or {})
    new = [source for source in sources if not _is_in(bank, folder, source)]
    result["already"] = len(sources) - len(new)

    def refuse(source: Source, reason: str) -> None:
        file = source.path.relative_to(folder).as_posix()
        result["refused"].append({"name": source.name, "file": file, "reason": reason})

    def finish() -> None:
        result["imported"] = group.committed
        result["rows"] = len(bank)
        if report is not None:
            save_json(report, result)

    try:
        for source, loaded in _loaded(new, bank, settings, workers):
            if isinstance(loaded, AdapterError):
                refuse(source, str(loaded))
                continue
            try:
                group.add(source.name, loaded.vector, stamp(folder, source))
            except _Refused as error:
                refuse(source, str(error))
                continue
            result["changed"] += [{"name": source.name, "note": note} for note in loaded.notes]
            group.commit(_COMMIT_BYTES)
        group.commit()
    except BaseException:
        with contextlib.suppress(OSError):  # of the two errors the first says what happened
            finish()
        raise
    finish()
    return result


class _Refused(ValueError):
    """One row is not taken."""


class _Group:
    """Rows that are not committed yet."""

    def __init__(self, bank: Bank, labels: Mapping[str, Mapping[str, float]]) -> None:
        self._bank, self._labels = bank, labels
        self._names: dict[str, None] = {}  # in order
        self._rows: list[np.ndarray] = []
        self._stamps: list[str] = []
        self._digests: dict[str, str] = {}
        self.committed = 0

    def add(self, name: str, vector: np.ndarray, stamp: str) -> None:
        try:
            row = self._bank.convert(vector, name)
        except BankError as error:
            raise _Refused(str(error)) from error
        digest = checksum(row)
        reason = self._bank.conflict(name, digest)
        if name in self._names:
            reason = f"the name {name!r} occurs twice in the folder"
        elif digest in self._digests:
            reason = f"{name!r} has the values of {self._digests[digest]!r}"
        if reason:
            raise _Refused(reason)
        self._names[name] = None
        self._rows.append(row)
        self._stamps.append(stamp)
        self._digests[digest] = name

    def commit(self, at_least: int = 0) -> None:
        """Appends the rows to the bank once they have this number of bytes."""
        if not self._rows or len(self._rows) * self._rows[0].nbytes < at_least:
            return
        given = [self._labels.get(name, {}) for name in self._names]
        labels = {
            key: [values.get(key, np.nan) for values in given] for key in self._bank.label_names
        }
        self._bank.append(list(self._names), self._rows, labels, self._stamps)
        self.committed += len(self._rows)
        self._names, self._rows, self._stamps, self._digests = {}, [], [], {}


def _loaded(
    sources: list[Source], bank: Bank, reading: Reading, workers: int
) -> Iterator[tuple[Source, Loaded | AdapterError]]:
    """Reads files by threads; yields in order, a bounded number ahead."""

    def read(source: Source) -> Loaded | AdapterError:
        path = source.path.parent if source.path.name == CONFIG else source.path
        try:
            return adapters.read(path, bank.layout, reading)
        except AdapterError as error:
            return error

    waiting: collections.deque[tuple[Source, Future[Loaded | AdapterError]]] = collections.deque()
    with (
        ThreadPoolExecutor(workers) as pool,
        tqdm.tqdm(total=len(sources), desc="import", unit="adapter", disable=None) as bar,
    ):
        try:
            for source in sources:
                waiting.append((source, pool.submit(read, source)))
                if len(waiting) > 4 * workers:
                    first, future = waiting.popleft()
                    yield first, future.result()
                    bar.update()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
                bar.update()
        finally:
            for _, future in waiting:
                future.cancel()


def stamp(folder: pathlib.Path, source: Source) -> str:
    """Place, size and time of change of a file; the place is relative to the folder."""
    status = source.path.stat(follow_symlinks=not folders.is_dangling(source.path))
    return f"{source.path.relative_to(folder).as_posix()} {status.st_size} {status.st_mtime_ns}"


def _is_in(bank: Bank, folder: pathlib.Path, source: Source) -> bool:
    row = bank.row_of(source.name)
    return row is not None and bank.entries[row].source == stamp(folder, source)
