"""The joint bounds: a good model meets them all, and each known failure misses one."""

import copy

import pytest

from ign import acceptance

BASELINES = {
    "mean image": {"frechet": 100.0},
    "autoencoder of noise": {"frechet": 40.0},
    "real training images": {"duplicates": 0.05},
}
GOOD = {
    "final": "",
    "f": {"coverage": 10, "classes": 10, "entropy": 2.2, "frechet": 15.0, "duplicates": 0.08},
    "idempotence": {"median": 0.08},
    "detection": {
        "real": {"drift": 0.05}, "f(z)": {"drift": 0.04}, "noise z": {"drift": 0.5},
    },
    "restoration": {
        "noise 0.5": {"f": {"psnr": 18.0}, "corrupted": {"psnr": 15.0}},
        "noise 0.15": {"f": {"psnr": 25.0}, "corrupted": {"psnr": 25.5}},
    },
}  # fmt: skip


def changed(path, value):
    member = copy.deepcopy(GOOD)
    *parents, last = path.split("/")
    inner = member
    for name in parents:
        inner = inner[name]
    inner[last] = value
    return member


def test_a_good_model_meets_all_bounds():
    found = {b.name: b.value for b in acceptance.bounds(GOOD, BASELINES)}
    assert len(found) == 10
    assert found["FD / FD of the mean image"] == pytest.approx(0.15)
    assert found["FD / FD of the autoencoder on noise"] == pytest.approx(0.375)
    assert found["duplicates / real duplicates"] == pytest.approx(1.6)
    assert found["drift of test images / of z"] == pytest.approx(0.1)
    assert found["PSNR gain at noise 0.15, dB"] == pytest.approx(-0.5)
    assert acceptance.kept(GOOD, BASELINES)


@pytest.mark.parametrize(
    ("path", "value", "name"),
    [
        ("f/coverage", 9, "classes drawn"),
        ("f/entropy", 1.99, "entropy of the classes"),
        ("f/frechet", 26.0, "FD / FD of the mean image"),
        ("f/frechet", 21.0, "FD / FD of the autoencoder on noise"),
        ("f/duplicates", 0.11, "duplicates / real duplicates"),
        ("idempotence/median", 0.11, "idempotence ratio, median"),
        ("detection/real/drift", 0.09, "drift of test images / of f(z)"),
        ("detection/noise z/drift", 0.1, "drift of test images / of z"),
        ("restoration/noise 0.5/f/psnr", 16.9, "PSNR gain at noise 0.5, dB"),
        ("restoration/noise 0.15/f/psnr", 24.4, "PSNR gain at noise 0.15, dB"),
    ],
)
def test_each_failure_misses_its_bound(path, value, name):
    member = changed(path, value)
    missed = [b.name for b in acceptance.bounds(member, BASELINES) if not b.kept]
    assert name in missed
    assert not acceptance.kept(member, BASELINES)


def test_a_collapse_is_never_accepted_and_sets_without_classes_have_fewer_bounds():
    assert not acceptance.kept(changed("final", "duplicates"), BASELINES)
    bare = copy.deepcopy(GOOD)
    del bare["f"]["coverage"]
    assert len(acceptance.bounds(bare, BASELINES)) == 8
