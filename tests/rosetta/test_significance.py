"""Planted twins are found, noise is not: dictionaries and error rates on data with known truth."""

import jax
import numpy as np
import pytest
from scipy.stats import false_discovery_control

from rosetta import matching, mining, neighbours, significance, state
from tests.rosetta.maps import enlarge, plan_of

IMAGES, BATCH = 64, 16


def smooth(random, images, size, channels):
    """Maps with spatial correlation and, in every unit, a layout common to all images."""
    coarse = random.normal(size=(images, 3, 3, channels))
    layout = random.normal(size=(1, 3, 3, 1)) + random.normal(size=(1, 3, 3, channels))
    return enlarge(coarse + layout, size) + 0.2 * random.normal(size=(images, size, size, channels))


def mine(maps, permutations=0, pairs=(("gan", "net"),)):
    plan = plan_of(maps, pairs, permutations=permutations)
    update = mining.make_update(plan)
    found = None
    for start in range(0, IMAGES, BATCH):
        batch = jax.tree.map(lambda a, s=start: a[s : s + BATCH].astype(np.float32), maps)
        found = state.init(plan, batch) if found is None else found
        found = update(found, batch)
    return plan, found


def independent(seed, images=IMAGES):
    """Two models that share nothing but spatial layouts."""
    random = np.random.default_rng(seed)
    return {
        "gan": {"a": smooth(random, images, 4, 30), "b": smooth(random, images, 8, 30)},
        "net": {"c": smooth(random, images, 6, 30), "d": smooth(random, images, 4, 30)},
    }


def planted(seed, snr):
    """As `independent`, with 40 units of `net` copies of `gan`'s, at other layers and sizes."""
    maps = independent(seed)
    random = np.random.default_rng([seed, 1])
    truth = {}
    for tap, size, source, own in (("c", 6, "a", 4), ("d", 4, "b", 8)):
        targets, origins = (random.permutation(30)[:20] for _ in range(2))
        for target, origin in zip(targets.tolist(), origins.tolist(), strict=True):
            signal = maps["gan"][source][..., origin : origin + 1]
            copy = enlarge(signal, size) if own < size else shrink(signal, size)
            noise = random.normal(size=copy.shape) * copy.std() / snr
            gain, offset = np.exp(random.normal()), 5 * random.normal()
            maps["net"][tap][..., target] = (gain * (copy + noise) + offset)[..., 0]
            truth[origin + 30 * (source == "b")] = target + 30 * (tap == "d")
    return maps, truth


def shrink(x, size):
    factor = x.shape[1] // size
    return x.reshape(len(x), size, factor, size, factor, -1).mean((2, 4))


def row_maxima(plan, found):
    near = neighbours.nearest(plan, found, ("gan", "net"), 1)
    null = [
        neighbours.nearest(plan, found, ("gan", "net"), 1, i).row_scores[:, 0]
        for i in range(plan.permutations)
    ]
    return near, np.stack(null)


@pytest.mark.parametrize("snr", [3.0, 10.0])
def test_planted_twins(snr):
    maps, truth = planted(int(snr), snr)
    plan, found = mine(maps, permutations=4)
    near, null = row_maxima(plan, found)
    test = significance.permutation_test(near.row_scores[:, 0], null)
    accepted = near.rows[test.accepted(0.01)]
    pairs = matching.best_buddies(near)
    pairs = pairs.keep(np.isin(pairs.rows, accepted))
    matched = set(zip(pairs.rows.tolist(), pairs.columns.tolist(), strict=True))
    right = len(matched & set(truth.items()))
    assert right / len(truth) >= 0.99  # recall
    assert right / len(matched) >= 0.99  # precision
    # By r alone, units without a twin seem to have one.
    others = ~np.isin(near.rows, list(truth))
    assert near.row_scores[others, 0].max() > 0.35


def test_independent_models_have_no_matches():
    rate, discoveries = 0.1, []
    for seed in range(12):
        plan, found = mine(independent(seed), permutations=4)
        near, null = row_maxima(plan, found)
        assert (near.row_scores[:, 0] > 0.3).mean() > 0.2  # r alone would call them matched
        test = significance.permutation_test(near.row_scores[:, 0], null)
        discoveries.append(test.accepted(rate).sum())
        buddies = matching.best_buddies(near).scores
        shuffled = np.concatenate(
            [
                matching.best_buddies(neighbours.nearest(plan, found, plan.pairs[0], 1, i)).scores
                for i in range(4)
            ]
        )
        discoveries.append((significance.q_values(buddies, shuffled, 4) <= rate).sum())
    # 24 rounds with probability 0.1 of any: more than 7 have probability 0.002.
    assert np.count_nonzero(discoveries) <= 7


def test_shuffled_twins_are_lost():
    maps, _ = planted(7, 10.0)
    order = np.random.default_rng(0).permutation(IMAGES)
    maps["net"] = {tap: array[order] for tap, array in maps["net"].items()}
    near, null = row_maxima(*mine(maps, permutations=4))
    test = significance.permutation_test(near.row_scores[:, 0], null)
    assert test.accepted(0.01).sum() == 0


def test_benjamini_hochberg():
    p = np.random.default_rng(0).uniform(1e-4, 1, 50) ** 2
    np.testing.assert_allclose(significance.benjamini_hochberg(p), false_discovery_control(p))
    with pytest.raises(ValueError, match="in .0, 1."):
        significance.benjamini_hochberg(np.array([0.0, 0.5]))


def test_q_values_by_counting():
    observed, null = np.array([0.9, 0.5, 0.7, 0.5, 0.2]), np.array([0.6, 0.55, 0.3, 0.1, 0.1])
    rates = {0.9: 1 / 2 / 1, 0.7: 1 / 2 / 2, 0.5: 3 / 2 / 4, 0.2: 4 / 2 / 5}
    expected = [min(v for t, v in rates.items() if t <= score) for score in observed]
    np.testing.assert_allclose(significance.q_values(observed, null, 2), expected)
    curve = significance.false_discovery_curve(observed, null, 2, np.array([0.0, 0.5, 0.95]))
    np.testing.assert_array_equal(curve["observed"], [5, 4, 0])
    np.testing.assert_array_equal(curve["null"], [2.5, 1, 0])


def test_null_is_pooled_as_stated():
    random = np.random.default_rng(0)
    observed, permuted = random.uniform(0, 0.9, 6), random.uniform(0, 0.9, (3, 6))
    z = np.arctanh(np.concatenate([observed[None], permuted]))
    d = np.array([z[j] - np.delete(z, j, 0).mean(0) for j in range(4)])
    p = [(1 + (d[1:] >= d[0, u]).sum()) / (1 + 18) for u in range(6)]
    np.testing.assert_allclose(significance.permutation_test(observed, permuted).p, p)
    with pytest.raises(ValueError, match="between -1 and 1"):
        significance.permutation_test(np.array([np.nan]), np.zeros((2, 1)))
    with pytest.raises(ValueError, match="expected .units."):
        significance.permutation_test(observed, permuted[:, 1:])
