"""What a weight bank writes: checksums, lines of its index, and appending to its files."""

import dataclasses
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Iterable

import numpy as np


class BankError(ValueError):
    """A bank is damaged, or refuses what would be appended; it is unchanged then."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """What is known of one row.

    Attributes:
      name: unique in the bank.
      checksum: of the row's bytes, see :func:`checksum`; unique in the bank.
      labels: ``[L]``, NaN where unknown.
      source: where the row came from, for continued imports.
    """

    name: str
    checksum: str
    labels: tuple[float, ...]
    source: str = ""


def checksum(row: np.ndarray) -> str:
    """BLAKE2b of the bytes of a row as stored, 128 bits in hexadecimal."""
    return hashlib.blake2b(raw_bytes(row), digest_size=16).hexdigest()


def raw_bytes(row: np.ndarray) -> memoryview:
    """The bytes of an array; views of bfloat16 arrays have no buffer format of their own."""
    return np.ascontiguousarray(row).view(np.uint8).data


def append(path: pathlib.Path, start: int, parts: Iterable[bytes | memoryview]) -> None:
    """Writes after the first ``start`` bytes of a file and waits until they are on the disk."""
    with open(path, "r+b") as file:
        file.truncate(start)
        file.seek(start)
        for part in parts:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())


def to_line(entry: Entry) -> bytes:
    """One line of the index; JSON has no NaN."""
    labels = [None if math.isnan(value) else value for value in entry.labels]
    return (json.dumps([entry.name, entry.checksum, labels, entry.source]) + "\n").encode()


def from_line(path: pathlib.Path, line: bytes) -> Entry:
    """Inverse of :func:`to_line`.

    Raises:
      BankError: a damaged line of the file ``path``.
    """
    try:
        name, digest, labels, source = json.loads(line)
    except (ValueError, TypeError) as error:
        raise BankError(f"{path}: damaged line {line[:80]!r}") from error
    return Entry(name, digest, tuple(math.nan if v is None else v for v in labels), source)
