"""Synthetic subjects: realistic variance, plants that are what they are said to be."""

import numpy as np
import pytest

from meshgcn import cohort
from tests.meshgcn.small import PEOPLE, template, with_bodies


def rates(made):
    """Share of patients among people with (A, B) thin."""
    return {
        key: made.label[(made.thin == key).all(axis=1)].mean()
        for key in {tuple(row) for row in made.thin.tolist()}
    }


def test_plants_are_balanced_and_mean_what_they_say():
    brain = template()
    for plant, expected in (
        ("additive", {(True, False): 1, (False, False): 0}),
        ("either", {(True, False): 1, (False, True): 1, (False, False): 0}),
        ("xor", {(True, False): 1, (False, True): 1, (False, False): 0, (True, True): 0}),
    ):
        made = cohort.make(brain, PEOPLE, plant, 0.3, 0)
        assert rates(made) == expected
        first = np.unique(made.subject, return_index=True)[1]
        assert made.label[first].mean() == 0.5
        if plant == "xor":  # neither region says anything alone
            for region in (0, 1):
                thin = made.thin[first, region]
                assert made.label[first][thin].mean() == made.label[first][~thin].mean() == 0.5


def test_thinning_is_where_it_is_planted_and_as_large():
    brain = template()
    quiet = cohort.CohortConfig(
        subjects=60, repeated=0, smooth_sd=0, global_sd=0, noise=0, severity_sd=0,
        region_a=("front",), region_b=("top",), falloff=0,
    )  # fmt: skip
    made = cohort.make(brain, quiet, "additive", 0.3, 0)
    patient, control = (made.thickness[made.label == k].mean(axis=0) for k in (1, 0))
    front = brain.region("front")
    np.testing.assert_array_equal(made.truth, front)
    np.testing.assert_allclose(patient[front], 0.7 * control[front], rtol=1e-6)
    np.testing.assert_array_equal(patient[~front], control[~front])


def test_variation_is_smooth_and_of_the_size_asked_for():
    brain = template(3)
    config = cohort.CohortConfig(subjects=400, smooth_sd=0.12, global_sd=0.05, scales=(2, 8))
    found = cohort.variation(brain, config, 0)
    assert found.std() == pytest.approx(np.hypot(0.12, 0.05), rel=0.05)
    a, b = brain.mesh.edges().T
    neighbours = np.mean(found[:, a] * found[:, b]) / found.var()
    random = np.random.default_rng(0).permutation(found.shape[1])
    strangers = np.mean(found * found[:, random]) / found.var()
    assert neighbours > 0.7 and strangers < 0.4


def test_people_do_not_depend_on_the_plant():
    brain = template()
    nothing = [cohort.make(brain, PEOPLE, plant, 0.0, 3) for plant in cohort.PLANTS]
    for made in nothing[1:]:
        np.testing.assert_array_equal(made.thickness, nothing[0].thickness)
    other = cohort.make(brain, PEOPLE, "xor", 0.0, 4)
    assert np.abs(other.thickness - nothing[0].thickness).max() > 0.1
    assert (nothing[0].thickness[:, brain.labels < 0] == 0).all()


def test_repeated_scans_share_the_person():
    made = cohort.make(template(), PEOPLE, "additive", 0.0, 0)
    assert len(made.subject) == 96
    second = np.flatnonzero(np.arange(96) >= 80)
    cortex = template().labels >= 0
    own = np.abs(made.thickness[second] - made.thickness[made.subject[second]])[:, cortex]
    strangers = np.abs(made.thickness[second] - made.thickness[made.subject[second] - 1])
    assert own.mean() < 0.5 * strangers[:, cortex].mean()


def test_features():
    brain, made = template(), cohort.make(template(), PEOPLE, "additive", 0.2, 0)
    x = cohort.features(brain, made.thickness, "xyz+thickness")
    assert x.shape == (96, len(brain.mesh), 7) and x.dtype == np.float32
    cortex = brain.labels >= 0
    length = np.linalg.norm(x[..., 3:6] - x[..., :3], axis=-1)
    np.testing.assert_allclose(length[:, cortex], made.thickness[:, cortex], atol=1e-4)
    np.testing.assert_array_equal(x[..., 6], made.thickness)
    assert cohort.features(brain, made.thickness, "thickness").shape[-1] == 1
    with pytest.raises(ValueError, match="'area'"):
        cohort.features(brain, made.thickness, "area")


def test_hippocampus_can_be_planted():
    """Its distance from the medial curve is less in patients, and so are its coordinates."""
    brain = with_bodies()
    quiet = cohort.CohortConfig(
        subjects=40, repeated=0, smooth_sd=0, global_sd=0, noise=0, severity_sd=0,
        region_a=("hippocampus", "front"), region_b=("top",), falloff=0,
    )  # fmt: skip
    made = cohort.make(brain, quiet, "additive", 0.25, 0)
    inside = brain.region("hippocampus")
    patient, control = (made.thickness[made.label == k] for k in (1, 0))
    np.testing.assert_allclose(control[:, inside], 4.0)
    np.testing.assert_allclose(patient[:, inside], 3.0)
    assert made.truth[inside].all()
    x = cohort.features(brain, made.thickness, "xyz")
    np.testing.assert_array_equal(x[0, inside, :3], brain.inner[inside].astype(np.float32))
    radius = np.linalg.norm(x[..., 3:] - x[..., :3], axis=-1)
    np.testing.assert_allclose(radius[:, inside], made.thickness[:, inside], rtol=1e-5)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="'and'"):
        cohort.make(template(), PEOPLE, "and", 0.2, 0)
    with pytest.raises(ValueError, match="outside"):
        cohort.make(template(), PEOPLE, "xor", 1.2, 0)
    with pytest.raises(KeyError, match="'insula' on spheres among 4: back, bottom, front, top"):
        template().region("insula")


def test_parcels_average_regions():
    brain = template()
    matrix = brain.parcels()
    np.testing.assert_allclose(matrix.sum(axis=1), 1)
    np.testing.assert_allclose(matrix @ brain.thickness, 2.5)
    assert (matrix[:, brain.labels < 0] == 0).all()
