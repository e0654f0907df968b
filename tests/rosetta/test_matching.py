"""Dictionaries against plain Python on random tables, ties and constant units included."""

import itertools

import numpy as np
import pytest

from rosetta import matching
from rosetta.neighbours import from_table


def best(scores, k, forbidden=None):
    """Numbers of the k largest scores; the smaller number of equal ones."""
    candidates = [i for i in range(len(scores)) if i != forbidden]
    return sorted(candidates, key=lambda i: (-scores[i], i))[:k]


def brute(table, k_rows, k_columns, itself=False):
    found = set()
    for u, v in itertools.product(range(table.shape[0]), range(table.shape[1])):
        forward = v in best(table[u], k_rows, u if itself else None)
        backward = u in best(table[:, v], k_columns, v if itself else None)
        if forward and backward and table[u, v] > 0:
            found.add((u, v))
    return found


def as_set(pairs):
    return set(zip(pairs.rows.tolist(), pairs.columns.tolist(), strict=True))


def random_table(seed, rows=12, columns=15):
    """Few distinct values, so there are ties; one constant unit on each side; negatives."""
    random = np.random.default_rng(seed)
    table = (random.integers(-6, 7, (rows, columns)) / 8).astype(np.float32)
    table[3], table[:, 4] = 0, 0
    return table


@pytest.mark.parametrize("seed", range(5))
def test_pairs(seed):
    table = random_table(seed)
    near = from_table(table, 5)
    assert as_set(matching.best_buddies(near)) == brute(table, 1, 1)
    assert as_set(matching.asymmetric(near, 5)) == brute(table, 1, 5)
    assert as_set(matching.mutual(near, 3, 3)) == brute(table, 3, 3)
    strongest = {}
    for u, v in brute(table, 3, 3):
        strongest[u] = min(strongest.get(u, v), v, key=lambda i: (-table[u, i], i))
    pairs = matching.symmetric(near, 3)
    assert as_set(pairs) == set(strongest.items()) and len(pairs) > 2
    np.testing.assert_array_equal(pairs.scores, table[pairs.rows, pairs.columns])
    assert 3 not in pairs.rows and 4 not in pairs.columns


def test_negative_correlations_never_match():
    table = -np.abs(random_table(0)) - 0.1
    assert len(matching.mutual(from_table(table, 5), 5, 5)) == 0


@pytest.mark.parametrize("seed", range(3))
def test_intersection(seed):
    tables = [random_table(seed + 10 * i, rows=30, columns=20) for i in range(3)]
    near = [from_table(t, 5) for t in tables]
    matches = {f"m{i}": matching.asymmetric(n, 5) for i, n in enumerate(near)}
    expected = {}
    for u in range(30):
        partners = [dict(brute(t, 1, 5)).get(u) for t in tables]
        if None not in partners:
            expected[u] = tuple(partners)
    found = matching.intersect(matches)
    assert found.models == ("m0", "m1", "m2") and len(found) == len(expected) > 1
    for u, partners, scores in zip(found.anchors, found.partners, found.scores, strict=True):
        assert tuple(partners) == expected[u]
        np.testing.assert_array_equal(scores, [tables[i][u, partners[i]] for i in range(3)])
    keys = [(-s.mean(), -s.min()) for s in found.scores]
    assert keys == sorted(keys)
    with pytest.raises(ValueError, match="several partners in model 'm0'"):
        matching.intersect({"m0": matching.mutual(near[0], 3, 3)})
    with pytest.raises(ValueError, match="at least one model"):
        matching.intersect({})


@pytest.mark.parametrize("k", [1, 2])
def test_concepts(k):
    random = np.random.default_rng(k)
    vectors = random.normal(size=(20, 3))
    table = np.corrcoef(vectors).astype(np.float32)
    anchors = random.permutation(20)[:14]
    links = brute(table, k, k, itself=True)
    groups = {int(u): {int(u)} for u in anchors}
    for u, v in links:
        if u in groups and v in groups and groups[u] is not groups[v]:
            joined = groups[u] | groups[v]
            groups.update(dict.fromkeys(joined, joined))
    labels = matching.concepts(anchors, from_table(table, 2, itself=True), k)
    for (u, a), (v, b) in itertools.combinations(zip(anchors, labels, strict=True), 2):
        assert (v in groups[u]) == (a == b)
    firsts = [labels.tolist().index(n) for n in range(labels.max() + 1)]
    assert firsts == sorted(firsts) and len(set(labels.tolist())) < 14


def test_too_few_partners():
    with pytest.raises(ValueError, match="1 and 5 partners of the 3 that were kept"):
        matching.asymmetric(from_table(random_table(0), 3), 5)
    with pytest.raises(ValueError, match="without NaN"):
        from_table(np.array([[np.nan]]), 1)
