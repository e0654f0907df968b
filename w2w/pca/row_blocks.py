"""Rows of a matrix larger than memory: checked at the door, read in blocks, one block ahead.

A source is anything with ``shape``, ``dtype`` and row slices ``source[i:j]`` that are numpy arrays:
an array, a memory map, a weight bank. Where a slice is a memory map, its bytes are read from the
file by name instead of through the mapping, so that the pages that were read do not stay resident
in this process; the file must still be there under that name.
"""

import mmap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import ml_dtypes
import numpy as np
from tqdm import tqdm

_FLOATS = (np.dtype(np.float64), np.dtype(np.float32), np.dtype(np.float16),
           np.dtype(ml_dtypes.bfloat16))  # fmt: skip


def _read_mapped(block: np.memmap) -> np.ndarray:
    """A copy of a slice of a memory map, by ordinary reads of its file where that is the same."""
    root: Any = block
    while isinstance(root.base, np.ndarray):
        root = root.base
    mapped = isinstance(root, np.memmap) and isinstance(root.base, mmap.mmap)
    # Changes of a map of mode "c" are not in the file.
    if not mapped or root.mode == "c" or root.filename is None or not block.flags.c_contiguous:
        return np.array(block, order="C")
    offset = root.offset + block.ctypes.data - root.ctypes.data
    content = np.fromfile(root.filename, np.uint8, block.nbytes, offset=offset)
    if len(content) != block.nbytes:
        raise ValueError(f"{root.filename} ends after {offset + len(content)} bytes")
    return content.view(block.dtype).reshape(block.shape)


class Rows:
    """Rows ``[N, D]`` of a source.

    Attributes:
      shape: ``(N, D)``.
      dtype: of the source; blocks have it too, except that float64 is read as float32.
      block: rows of a block.
    """

    def __init__(self, source: Any, block_bytes: int, block: int | None = None, least: int = 2):
        shape, dtype = tuple(source.shape), np.dtype(source.dtype)
        if len(shape) != 2 or shape[0] < least:
            raise ValueError(f"weights must be [N >= {least}, D], got shape {shape}")
        if dtype not in _FLOATS:
            raise ValueError(f"weights must be floating-point numbers, got {dtype}")
        if block is None:
            block = block_bytes // max(1, 4 * shape[1])
        elif block < 1:
            raise ValueError(f"a block needs at least one row, got {block}")
        self.shape: tuple[int, int] = (shape[0], shape[1])
        self.dtype = dtype
        self.block = max(1, min(block, shape[0]))
        self._source = source

    def read(self, start: int, stop: int) -> np.ndarray:
        """A copy of rows ``start`` to ``stop``, ``[stop - start, D]``.

        Raises:
          ValueError: the source gives another shape than it promised.
        """
        n, d = self.shape
        stop = min(stop, n)
        block = self._source[start:stop]
        if block.shape != (stop - start, d) or block.dtype != self.dtype:
            raise ValueError(
                f"rows {start}:{stop} are {block.dtype} {block.shape}, "
                f"expected {self.dtype} {(stop - start, d)}"
            )
        block = _read_mapped(block) if isinstance(block, np.memmap) else np.array(block, order="C")
        return block.astype(np.float32) if self.dtype == np.float64 else block

    def sample(self, count: int) -> np.ndarray:
        """Up to ``count`` rows, evenly spaced over the source, in float32 ``[count, D]``.

        Raises:
          ValueError: a row is not finite.
        """
        places = np.unique(np.linspace(0, self.shape[0] - 1, min(count, self.shape[0]), dtype=int))
        sample = np.empty((len(places), self.shape[1]), np.float32)
        for i, place in enumerate(places):
            sample[i] = self.read(place, place + 1)[0]
            if not np.isfinite(sample[i]).all():
                raise ValueError(f"weights of model {place} are not finite")
        return sample

    def own_range(self) -> tuple[int, int]:
        """First row and end of the share of this process."""
        share = -(-self.shape[0] // jax.process_count())
        start = min(jax.process_index() * share, self.shape[0])
        return start, min(start + share, self.shape[0])

    def blocks(self, start: int, stop: int, title: str) -> Iterator[tuple[int, np.ndarray]]:
        """Blocks of rows ``start`` to ``stop``, each with its first row's number.

        A thread reads the next block while the caller works on one. Progress is shown on a
        terminal.
        """
        starts = range(start, stop, self.block)
        with (
            ThreadPoolExecutor(1, "row-reader") as reader,
            tqdm(total=stop - start, desc=title, unit="row", disable=None, leave=False) as bar,
        ):

            def ask(place: int) -> Any:
                return reader.submit(self.read, place, min(place + self.block, stop))

            ahead = ask(starts[0]) if starts else None
            for i, place in enumerate(starts):
                assert ahead is not None
                block = ahead.result()
                ahead = ask(starts[i + 1]) if i + 1 < len(starts) else None
                yield place, block
                bar.update(len(block))
