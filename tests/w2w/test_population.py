"""Populations of adapters: stacking, flat vectors, groups of equal size."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from w2w import lora, population

LAYOUT = lora.Layout((("a.to_q", 5, 3), ("a.to_v", 4, 3)), rank=2)


def adapters(n):
    vectors = jax.random.normal(jax.random.key(0), (n, LAYOUT.size))
    return vectors, [lora.unflatten(vector, LAYOUT) for vector in vectors]


def test_stacking_and_flat_vectors():
    vectors, singles = adapters(6)
    stacked = population.stack(singles)
    assert population.count(stacked) == 6
    chex.assert_trees_all_equal(population.unstack(stacked), singles)
    chex.assert_trees_all_equal(population.take(stacked, 2), singles[2])
    chex.assert_trees_all_equal(
        population.take(stacked, np.array([4, 1])), population.stack([singles[4], singles[1]])
    )
    np.testing.assert_array_equal(population.flatten_population(stacked, LAYOUT), vectors)
    chex.assert_trees_all_equal(population.unflatten_population(vectors, LAYOUT), stacked)
    with pytest.raises(ValueError, match="no trees"):
        population.stack([])
    with pytest.raises(ValueError, match=r"\[\(2,\), \(3,\)\]"):
        population.count({"a": jnp.zeros((2, 1)), "b": jnp.zeros(3)})


@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 100])
@pytest.mark.parametrize(("limit", "devices"), [(1, 1), (4, 1), (8, 1), (3, 4), (100, 8)])
def test_groups_cover_each_model_once(n, limit, devices):
    parts = population.groups(n, limit, devices)
    sizes = {len(part.indices) for part in parts}
    assert len(sizes) == 1
    size = sizes.pop()
    assert size % devices == 0 and size <= limit * devices
    assert len(parts) == -(-n // (limit * devices)), "no more groups than needed"
    covered = np.concatenate([part.indices[: part.valid] for part in parts])
    np.testing.assert_array_equal(covered, np.arange(n))
    assert all((part.indices[part.valid :] == n - 1).all() for part in parts)

    values = {"x": np.arange(n * 3).reshape(n, 3)}
    results = [population.take(values, part.indices) for part in parts]
    chex.assert_trees_all_equal(population.collect(results, parts), values)


def test_groups_refuse_nothing():
    with pytest.raises(ValueError, match="n = 0, limit = 3 and devices = 1 must be positive"):
        population.groups(0, 3)
