"""Tests of the data pipelines; process counts are simulated, real processes: tests/distributed."""

import json

import jax
import numpy as np
import pytest

from common.pipeline import eval_batches, train_iterator

SOURCE = {"x": np.arange(10), "y": np.arange(10, dtype=np.float32) * 2}


def _take(iterator, count):
    return [next(iterator)["x"].tolist() for _ in range(count)]


def _as_process(monkeypatch, index, count):
    monkeypatch.setattr(jax, "process_index", lambda: index)
    monkeypatch.setattr(jax, "process_count", lambda: count)


def _jitter(example, generator):
    return {"x": example["x"] + generator.uniform(), "index": example["x"]}


def test_every_epoch_is_a_new_permutation():
    batches = _take(train_iterator(SOURCE, 5, seed=0), 20)
    epochs = [sum(batches[i : i + 2], []) for i in range(0, 20, 2)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 10


def test_fields_stay_together():
    batch = next(train_iterator(SOURCE, 4, seed=0))
    np.testing.assert_array_equal(batch["y"], batch["x"] * 2)


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_order_depends_on_the_seed_only(threads):
    reference = _take(train_iterator(SOURCE, 4, seed=3, transform=_jitter, threads=0), 12)
    other = _take(train_iterator(SOURCE, 4, seed=3, transform=_jitter, threads=threads), 12)
    assert other == reference
    assert _take(train_iterator(SOURCE, 4, seed=4, transform=_jitter), 12) != reference


def test_transform_differs_between_examples_and_epochs():
    draws = np.concatenate(
        [
            b["x"] - b["index"]
            for b in train_iterator(SOURCE, 5, seed=0, transform=_jitter, num_epochs=4)
        ]
    )
    assert len(np.unique(draws.round(9))) == 40


@pytest.mark.parametrize("threads", [0, 2])
def test_state_restores_through_json(threads):
    iterator = train_iterator(SOURCE, 4, seed=1, transform=_jitter, threads=threads)
    _take(iterator, 7)
    position = json.loads(json.dumps(iterator.get_state()))
    expected = _take(iterator, 9)
    fresh = train_iterator(SOURCE, 4, seed=1, transform=_jitter, threads=threads)
    _take(fresh, 2)
    fresh.set_state(position)
    assert _take(fresh, 9) == expected


def test_finite_epochs_leave_out_the_remainder():
    batches = list(train_iterator(SOURCE, 4, seed=0, num_epochs=2))
    assert [len(batch["x"]) for batch in batches] == [4] * 5
    assert len(list(train_iterator(SOURCE, 3, seed=0, num_epochs=1))) == 3


def test_sequence_source():
    class Squares:
        def __len__(self):
            return 6

        def __getitem__(self, index):
            return {"x": np.float32(index**2)}

    values = _take(train_iterator(Squares(), 3, seed=0, num_epochs=1), 2)
    assert sorted(sum(values, [])) == [0, 1, 4, 9, 16, 25]


def test_processes_share_the_global_batches(monkeypatch):
    whole = _take(train_iterator(SOURCE, 4, seed=5, transform=_jitter, threads=0), 8)
    parts = []
    for index in range(2):
        with monkeypatch.context() as patch:
            _as_process(patch, index, 2)
            parts.append(_take(train_iterator(SOURCE, 4, seed=5, transform=_jitter, threads=0), 8))
    assert [a + b for a, b in zip(*parts, strict=True)] == whole


def test_evaluation_pads_the_last_batch():
    batches = list(eval_batches(SOURCE, 4))
    assert [batch["_mask"].tolist() for batch in batches] == [[1] * 4, [1] * 4, [1, 1, 0, 0]]
    assert {batch["x"].shape for batch in batches} == {(4,)}
    real = np.concatenate([batch["x"][batch["_mask"] > 0] for batch in batches])
    np.testing.assert_array_equal(real, SOURCE["x"])


@pytest.mark.parametrize(("count", "batch_size"), [(10, 4), (9, 8), (3, 4), (1, 4), (5, 4)])
def test_evaluation_is_sliced_before_it_is_padded(monkeypatch, count, batch_size):
    seen, lengths = [], []
    for index in range(4):
        with monkeypatch.context() as patch:
            _as_process(patch, index, 4)
            batches = list(eval_batches({"x": np.arange(count)}, batch_size))
        lengths.append(len(batches))
        seen += [int(x) for b in batches for x in b["x"][b["_mask"] > 0]]
    assert sorted(seen) == list(range(count))  # each once: slicing padded data would repeat some
    assert len(set(lengths)) == 1  # every process takes part in every global batch


def test_bad_input_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="differ in length.*'x': 3, 'y': 2"):
        train_iterator({"x": np.zeros(3), "y": np.zeros(2)}, 1, seed=0)
    with pytest.raises(ValueError, match="no examples"):
        train_iterator([], 1, seed=0)
    with pytest.raises(ValueError, match="1 x 10 examples do not fill one batch of 11"):
        train_iterator(SOURCE, 11, seed=0, num_epochs=1)
    with pytest.raises(ValueError, match="seed must not be negative, got -1"):
        train_iterator(SOURCE, 2, seed=-1)
    with pytest.raises(ValueError, match="without the key '_mask'"):
        next(eval_batches({"_mask": np.zeros(3)}, 2))
    _as_process(monkeypatch, 0, 2)
    with pytest.raises(ValueError, match="batch_size=3 must be a positive multiple of the 2"):
        train_iterator(SOURCE, 3, seed=0)
