"""Tests of the named random streams."""

import jax
import numpy as np
import pytest

from common import rng


def _data(key):
    return tuple(np.asarray(jax.random.key_data(key)).tolist())


def test_hash_is_stable():
    # First four bytes of sha256, from an independent tool: printf dropout | sha256sum.
    assert rng.name_hash("dropout") == int("1b4c0a29", 16)
    assert rng.name_hash("") == int("e3b0c442", 16)


def test_streams_and_steps_differ():
    keys = {
        _data(rng.at_step(jax.random.key(seed), name, step))
        for seed in range(3)
        for name in ("train", "dropout", "sample", "noise")
        for step in range(25)
    }
    assert len(keys) == 3 * 4 * 25


def test_streams_are_uncorrelated():
    key = jax.random.key(0)
    names = ["train", "train1", "dropout", "noise"]
    draws = np.stack([jax.random.normal(rng.stream(key, name), (20_000,)) for name in names])
    correlation = np.corrcoef(draws) - np.eye(len(names))
    assert np.abs(correlation).max() < 5 / np.sqrt(20_000)  # five standard errors


def test_traced_step_equals_python_step():
    key = jax.random.key(7)
    traced = jax.jit(lambda step: rng.at_step(key, "train", step))
    assert _data(traced(np.uint32(12))) == _data(rng.at_step(key, "train", 12))


def test_raw_keys_are_refused():
    with pytest.raises(TypeError, match=r"stream 'train' needs a typed key.*uint32"):
        rng.stream(jax.random.PRNGKey(0), "train")
    with pytest.raises(TypeError, match="stream 'train' needs a typed key"):
        rng.stream(0, "train")
