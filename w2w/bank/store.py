"""Weight bank: an append-only store of adapter vectors ``[N, D]`` on disk, mapped into memory.

A bank is a folder of three files:

    bank.json     what the bank holds (layout, alpha, type of values, labels) and how much of the
                  other two files is valid; written last, under a temporary name, and renamed
    rows.bin      the vectors, one after another
    index.jsonl   one line for each vector: name, checksum, labels, source

An append that is cut short (a crash, a full disk) leaves bytes beyond what ``bank.json`` counts;
they are no part of the bank, and the next append overwrites them.
"""

import contextlib
import errno
import fcntl
import math
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import tqdm

from common.storage import load_json, save_json
from w2w.bank.files import BankError, Entry, append, checksum, from_line, raw_bytes, to_line
from w2w.lora_layout import Layout

__all__ = ["Bank", "BankError", "Entry", "checksum"]

DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
_STATE, _ROWS, _INDEX, _LOCK = "bank.json", "rows.bin", "index.jsonl", "lock"
_VERSION = 1


class Bank:
    """An open bank. Any number of readers; one process appends at a time.

    Attributes:
      path: the folder.
      layout: order and shapes of each row.
      alpha: what the rows refer to: the update is ``alpha / layout.rank * lora_B lora_A``.
      dtype: of the stored values.
      label_names: names of the numeric labels.
      entries: one for each row.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Opens an existing bank.

        Raises:
          FileNotFoundError: there is no bank.
          BankError: it is damaged; names the file and both sizes.
        """
        self.path = pathlib.Path(path)
        if not (self.path / _STATE).is_file():
            raise FileNotFoundError(f"{self.path} is not a weight bank: it has no {_STATE}")
        self._read_state()

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        layout: Layout,
        alpha: float,
        dtype: str = "float32",
        labels: Sequence[str] = (),
    ) -> "Bank":
        """Makes an empty bank.

        Args:
          path: folder; made if absent.
          layout: of all its rows.
          alpha: of all its rows.
          dtype: ``"float32"``, ``"float16"`` or ``"bfloat16"``.
          labels: names of numeric labels.

        Raises:
          FileExistsError: there is a bank already.
          ValueError: unknown dtype, bad alpha or repeated labels.
        """
        folder = pathlib.Path(path)
        if dtype not in DTYPES:
            raise ValueError(f"unknown dtype {dtype!r}; expected one of {', '.join(DTYPES)}")
        if not 0 < alpha < math.inf:
            raise ValueError(f"alpha must be positive, got {alpha}")
        if len(set(labels)) != len(labels):
            raise ValueError(f"repeated labels: {', '.join(labels)}")
        if (folder / _STATE).exists():
            raise FileExistsError(f"{folder} is a weight bank already")
        folder.mkdir(parents=True, exist_ok=True)
        state = {
            "version": _VERSION,
            "rows": 0,
            "index_bytes": 0,
            "dtype": dtype,
            "alpha": alpha,
            "labels": list(labels),
            "layout_sha256": layout.sha256,
            "rank": layout.rank,
            "modules": [list(module) for module in layout.modules],
        }
        for name in (_ROWS, _INDEX, _LOCK):  # later no file has to be made on a full disk
            (folder / name).write_bytes(b"")
        save_json(folder / _STATE, state)
        return cls(folder)

    def _read_state(self) -> None:
        state = load_json(self.path / _STATE)
        if state.get("version") != _VERSION:
            raise BankError(f"{self.path}: version {state.get('version')}, expected {_VERSION}")
        modules = tuple((str(n), int(i), int(o)) for n, i, o in state["modules"])
        self.layout = Layout(modules, state["rank"])
        if self.layout.sha256 != state["layout_sha256"]:
            raise BankError(
                f"{self.path / _STATE}: layout of sha256 {self.layout.sha256}, but it says "
                f"{state['layout_sha256']}"
            )
        self.alpha = float(state["alpha"])
        self.dtype = DTYPES[state["dtype"]]
        self.label_names: tuple[str, ...] = tuple(state["labels"])
        self._state = state
        self._check_size(_ROWS, state["rows"] * self.layout.size * self.dtype.itemsize)
        self._check_size(_INDEX, state["index_bytes"])
        with open(self.path / _INDEX, "rb") as file:
            lines = file.read(state["index_bytes"]).splitlines()
        if len(lines) != state["rows"]:
            raise BankError(f"{self.path / _INDEX}: {len(lines)} lines for {state['rows']} rows")
        self.entries = [from_line(self.path / _INDEX, line) for line in lines]
        self._names = {entry.name: row for row, entry in enumerate(self.entries)}
        self._checksums = {entry.checksum: row for row, entry in enumerate(self.entries)}
        self._rows: np.ndarray | None = None

    def _check_size(self, name: str, wanted: int) -> None:
        size = (self.path / name).stat().st_size
        if size < wanted:
            raise BankError(f"{self.path / name}: {size} bytes, but {wanted} are in use")

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, where: Any) -> np.ndarray:
        """Rows as a NumPy array that maps the file: ``bank[i]`` is ``[D]``, ``bank[i:j]`` a block.

        Nothing is read before the values are used.
        """
        return self.rows[where]

    @property
    def shape(self) -> tuple[int, int]:
        """``(N, D)``."""
        return len(self), self.layout.size

    @property
    def rows(self) -> np.ndarray:
        """All rows ``[N, D]`` as a read-only memory map."""
        if self._rows is None or len(self._rows) != len(self):
            self._rows = (
                np.memmap(self.path / _ROWS, self.dtype, "r", shape=self.shape)
                if len(self)
                else np.empty(self.shape, self.dtype)
            )
        return self._rows

    @property
    def names(self) -> tuple[str, ...]:
        """Name of each row."""
        return tuple(entry.name for entry in self.entries)

    @property
    def labels(self) -> np.ndarray:
        """Float64 ``[N, L]``, NaN where unknown."""
        values = [entry.labels for entry in self.entries]
        return np.asarray(values, np.float64).reshape(len(self), len(self.label_names))

    def row_of(self, name: str) -> int | None:
        """Index of the row of this name, None if there is none."""
        return self._names.get(name)

    def conflict(self, name: str, digest: str) -> str | None:
        """Why a row cannot be added: its name or its values are in the bank already."""
        if name in self._names:
            return f"the name {name!r} is in the bank already (row {self._names[name]})"
        if digest in self._checksums:
            row = self._checksums[digest]
            return f"{name!r} has the values of {self.entries[row].name!r} (row {row})"
        return None

    def convert(self, vector: Any, name: str) -> np.ndarray:
        """A vector as it is stored.

        Raises:
          BankError: another shape, or values that are not finite (also once rounded).
        """
        vector = np.asarray(vector)
        if vector.shape != (self.layout.size,):
            raise BankError(f"{name!r}: a vector of shape {vector.shape}, rows of {self.shape[1]}")
        with np.errstate(over="ignore"):  # reported below
            row = vector.astype(self.dtype)
        bad = row.size - np.count_nonzero(np.isfinite(row.astype(np.float32)))
        if bad:
            raise BankError(f"{name!r}: {bad} of {row.size} values are not finite in {self.dtype}")
        return row

    def append(
        self,
        names: Sequence[str],
        rows: Any,
        labels: Mapping[str, Sequence[float]] | None = None,
        sources: Sequence[str] | None = None,
    ) -> None:
        """Adds rows; all of them or none.

        Args:
          names: ``n`` names.
          rows: ``[n, D]`` vectors that refer to the bank's alpha; rounded to its dtype.
          labels: for some of the label names, ``n`` numbers, NaN where unknown.
          sources: where each row came from, for continued imports.

        Raises:
          BankError: names or values that are there already or occur twice, vectors of another size
            or not finite, unknown labels, another process that appends, or a full disk. The bank
            is as it was before.
        """
        labels = dict(labels or {})
        if unknown := set(labels) - set(self.label_names):
            known = ", ".join(self.label_names) or "none"
            raise BankError(f"unknown labels {', '.join(sorted(unknown))}; the bank has {known}")
        counts = {"names": len(names), "rows": len(rows), **{k: len(v) for k, v in labels.items()}}
        counts["sources"] = len(names if sources is None else sources)
        if len(set(counts.values())) != 1:
            raise BankError(f"different counts: {counts}")
        stored = [self.convert(row, name) for name, row in zip(names, rows, strict=True)]
        entries: list[Entry] = []
        digests: dict[str, str] = {}
        taken = set()
        for i, (name, row) in enumerate(zip(names, stored, strict=True)):
            digest = checksum(row)
            if reason := self.conflict(name, digest):
                raise BankError(reason)
            if name in taken:
                raise BankError(f"the name {name!r} occurs twice")
            if digest in digests:
                raise BankError(f"{name!r} has the values of {digests[digest]!r}")
            digests[digest] = name
            taken.add(name)
            values = (float(labels[k][i]) if k in labels else math.nan for k in self.label_names)
            entries.append(Entry(name, digest, tuple(values), sources[i] if sources else ""))
        if entries:
            with self._writing():
                self._write(stored, entries)

    def _write(self, stored: Sequence[np.ndarray], entries: Sequence[Entry]) -> None:
        lines = b"".join(to_line(entry) for entry in entries)
        row_bytes, index_bytes = len(self) * stored[0].nbytes, self._state["index_bytes"]
        try:
            append(self.path / _ROWS, row_bytes, map(raw_bytes, stored))
            append(self.path / _INDEX, index_bytes, [lines])
            state = {
                **self._state,
                "rows": len(self) + len(entries),
                "index_bytes": index_bytes + len(lines),
            }
            save_json(self.path / _STATE, state)
        except OSError as error:
            with contextlib.suppress(OSError):  # frees what was written; it counts for nothing
                os.truncate(self.path / _ROWS, row_bytes)
                os.truncate(self.path / _INDEX, index_bytes)
            what = f"cannot write {len(entries)} rows: {error}"
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                needed = len(entries) * stored[0].nbytes + len(lines)
                free = shutil.disk_usage(self.path).free
                what = f"out of disk space: {needed} bytes needed, {free} free"
            raise BankError(f"{self.path}: {what}; the bank keeps its {len(self)} rows") from error
        self._state = state
        for entry in entries:
            self._names[entry.name] = self._checksums[entry.checksum] = len(self.entries)
            self.entries.append(entry)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Holds the lock; reads the state again, which another process may have advanced."""
        with open(self.path / _LOCK, "ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise BankError(f"{self.path}: another process appends to this bank") from error
            if load_json(self.path / _STATE) != self._state:
                raise BankError(f"{self.path}: another process has appended; open the bank again")
            yield

    def verify(self) -> None:
        """Reads every row and compares it with its checksum.

        Raises:
          BankError: names the damaged rows, ten at most, and their number.
        """
        self._check_size(_ROWS, len(self) * self.layout.size * self.dtype.itemsize)
        bad = [
            entry.name
            for row, entry in enumerate(tqdm.tqdm(self.entries, "verify", disable=None))
            if checksum(self.rows[row]) != entry.checksum
        ]
        if bad:
            names = ", ".join(bad[:10]) + (", ..." if len(bad) > 10 else "")
            raise BankError(f"{self.path}: {len(bad)} of {len(self)} rows are damaged: {names}")
