"""Splits by person, in proportion, reproducible; bad ones are refused."""

import numpy as np
import pytest

from meshgcn import splits


def cohort(people=60, seed=0):
    random = np.random.default_rng(seed)
    subject = np.concatenate([np.arange(people), random.integers(0, people, 20)])
    return subject, (subject % 3 == 0).astype(int)


def test_people_stay_together_and_classes_in_proportion():
    subject, label = cohort()
    roles = splits.monte_carlo(subject, label, 25, (0.6, 0.15, 0.25), 7)
    assert roles.shape == (25, 80)
    for role, parts in zip(roles, splits.people(subject, roles), strict=True):
        sets = [set(parts[name]) for name in splits.ROLES]
        assert len(set.union(*sets)) == sum(map(len, sets)) == 60
        assert [len(s) for s in sets] == [36, 9, 15]
        assert [sum(p % 3 == 0 for p in s) for s in sets] == [12, 3, 5]
        splits.check(subject, label, role)
    assert len({role.tobytes() for role in roles}) == 25


def test_trial_depends_on_its_own_seed_only():
    subject, label = cohort()
    both = splits.monte_carlo(subject, label, 2, (0.5, 0.25, 0.25), 4)
    later = splits.monte_carlo(subject, label, 1, (0.5, 0.25, 0.25), 5)
    np.testing.assert_array_equal(both[1], later[0])


def test_names_of_people_may_be_text():
    subject = np.array([f"sub-{i // 2}" for i in range(40)])
    label = np.repeat([0, 1], 20)
    roles = splits.monte_carlo(subject, label, 3, (0.5, 0.25, 0.25), 0)
    assert splits.people(subject, roles)[0]["train"][0].startswith("sub-")


def test_bad_splits_are_named():
    subject, label = np.array([1, 1, 2, 3, 4, 5]), np.array([0, 0, 1, 1, 0, 1])
    with pytest.raises(splits.OverlapError, match="1 people are in train and test: 1"):
        splits.check(subject, label, np.array([0, 2, 0, 1, 1, 2]))
    with pytest.raises(splits.OneClassError, match=r"no scan with label \[1\] in validation"):
        splits.check(subject, label, np.array([0, 0, 0, 2, 1, 2]))
    with pytest.raises(splits.OneClassError, match="all 6 scans"):
        splits.check(subject, 0 * label, np.array([0, 0, 0, 2, 1, 2]))
    with pytest.raises(splits.OneClassError, match="trial 0"):
        splits.monte_carlo(subject, label, 1, (0.6, 0.1, 0.3), 0)
    with pytest.raises(ValueError, match="sum to 1"):
        splits.monte_carlo(subject, label, 1, (0.6, 0.3, 0.3), 0)
    with pytest.raises(ValueError, match="one length"):
        splits.monte_carlo(subject, label[1:], 1, (0.6, 0.2, 0.2), 0)
