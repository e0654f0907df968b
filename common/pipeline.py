"""Batches of host arrays from grain: shuffled training streams and padded evaluation batches.

Training batches are defined globally: the examples of global batch n do not depend on the number of
processes, each of which reads only its own rows. One process and many therefore train on the same
data, and the position of the stream is one number, the count of global batches.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import grain
import jax
import numpy as np

Example = Mapping[str, Any]
Batch = dict[str, np.ndarray]
Transform = Callable[[Any, np.random.Generator], Any]
# A mapping of equally long arrays, or any random-access sequence of examples.
Source = Mapping[str, np.ndarray] | Sequence[Any]

MASK = "_mask"
_ENDLESS = 2**31  # epochs of a stream without end; grain needs a finite length
_STREAM_TAG = 0x6D61  # separates the seeds of transforms from other uses of the run's seed


def _length(source: Source) -> int:
    """Returns the number of examples.

    Raises:
        ValueError: the source is empty or its arrays differ in length.
    """
    if isinstance(source, Mapping):
        lengths = {key: len(value) for key, value in source.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the arrays of the source differ in length: {lengths}")
        count = next(iter(lengths.values()), 0)
    else:
        count = len(source)
    if count == 0:
        raise ValueError("the source has no examples")
    return count


def _local_share(batch_size: int) -> tuple[int, int]:
    """Returns (first row, number of rows) of this process in a global batch.

    Raises:
        ValueError: the batch size is not positive or not divided by the number of processes.
    """
    processes = jax.process_count()
    if batch_size < 1 or batch_size % processes:
        raise ValueError(
            f"batch_size={batch_size} must be a positive multiple of the {processes} processes"
        )
    share = batch_size // processes
    return jax.process_index() * share, share


def _gather(
    source: Source, indices: np.ndarray, transform: Transform | None, seeds: list[list[int]]
) -> Batch:
    """Returns the examples `indices` as one batch, each transformed with its own generator."""
    if isinstance(source, Mapping) and transform is None:
        return {key: np.asarray(value[indices]) for key, value in source.items()}
    examples = []
    for index, seed in zip(indices.tolist(), seeds, strict=True):
        if isinstance(source, Mapping):
            example: Any = {key: value[index] for key, value in source.items()}
        else:
            example = source[index]
        if transform is not None:
            example = transform(example, np.random.default_rng(seed))
        examples.append(example)
    return jax.tree.map(lambda *rows: np.stack([np.asarray(row) for row in rows]), *examples)


class _TrainBatches:
    """Random-access sequence of this process's part of the global training batches."""

    def __init__(
        self,
        source: Source,
        order: grain.MapDataset,
        batch_size: int,
        seed: int,
        transform: Transform | None,
    ):
        self._source = source
        self._order = order
        self._batch_size = batch_size
        self._first, self._share = _local_share(batch_size)
        self._seed = seed
        self._transform = transform
        self._count = len(order) // batch_size

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> Batch:
        start = number * self._batch_size + self._first
        positions = range(start, start + self._share)
        indices = np.asarray([self._order[position] for position in positions])
        # The generator belongs to the position in the global stream: the same for any number of
        # processes and threads, and new in every epoch.
        seeds = [[_STREAM_TAG, self._seed, position] for position in positions]
        return _gather(self._source, indices, self._transform, seeds)


def train_iterator(
    source: Source,
    batch_size: int,
    *,
    seed: int,
    transform: Transform | None = None,
    num_epochs: int | None = None,
    threads: int = 1,
    prefetch: int = 4,
) -> grain.DatasetIterator:
    """Returns a checkpointable iterator over shuffled training batches.

    Each epoch is a new permutation of the source; batches run across the borders of epochs, so none
    is padded. With `num_epochs`, the examples that do not fill a last batch are left out.
    `get_state()` and `set_state(value)` read and set the position, as JSON.

    Args:
        source: mapping of equally long arrays `[examples, ...]`, or a random-access sequence.
        batch_size: size of the global batch; each process yields its `batch_size / processes` rows.
        seed: non-negative seed of the permutations and of the transforms' generators.
        transform: `(example, generator) -> example`, applied to one example.
        num_epochs: number of passes over the source; None never ends.
        threads: reading threads; 0 reads in the caller's thread.
        prefetch: number of batches read ahead by the threads.

    Raises:
        ValueError: empty source, arrays of unequal length, a batch size that the number of
            processes does not divide, or fewer examples in all epochs than one batch.
    """
    count = _length(source)
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    epochs = _ENDLESS if num_epochs is None else num_epochs
    # grain takes 32-bit seeds
    order = grain.MapDataset.range(count).seed(seed % 2**32).shuffle().repeat(epochs)
    batches = _TrainBatches(source, order, batch_size, seed, transform)
    if len(batches) == 0:
        raise ValueError(f"{epochs} x {count} examples do not fill one batch of {batch_size}")
    options = grain.ReadOptions(
        num_threads=threads, prefetch_buffer_size=max(prefetch, threads) if threads else 0
    )
    return iter(grain.MapDataset.source(batches).to_iter_dataset(options))


def eval_batches(source: Source, batch_size: int) -> Iterator[Batch]:
    """Yields every example once, in order, in batches of equal shape with a `_mask`.

    The source is split over the processes first and each part padded afterwards, so every process
    yields the same number of batches; padding repeats the source's first example with `_mask` 0.
    Sum metrics over `_mask` (sum, count) and combine them over batches.

    Args:
        source: mapping of arrays `[examples, ...]`, or a random-access sequence of mappings.
        batch_size: size of the global batch.

    Yields:
        Batches of `batch_size / processes` rows with `_mask` float32 `[rows]`, 1 for real examples.

    Raises:
        ValueError: as `train_iterator`, or an example that has a `_mask` already.
    """
    count = _length(source)
    _, share = _local_share(batch_size)
    processes, process = jax.process_count(), jax.process_index()
    per_process = -(-count // processes)
    local = np.arange(process * per_process, min((process + 1) * per_process, count))
    for number in range(-(-per_process // share)):
        indices = local[number * share : (number + 1) * share]
        padded = np.concatenate([indices, np.zeros(share - len(indices), indices.dtype)])
        batch = _gather(source, padded, None, [[]] * share)
        if not isinstance(batch, dict) or MASK in batch:
            raise ValueError(f"evaluation examples must be mappings without the key '{MASK}'")
        batch[MASK] = (np.arange(share) < len(indices)).astype(np.float32)
        yield batch
