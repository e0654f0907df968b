"""Measures of a run: guards that catch what they are there for, intervals, and all maps at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medical.medxgan import evaluate, figures, maps, models, stages, train

# Small networks: they take longer to compile than to run.
LATENT = (4, 2)
RNG = np.random.default_rng(0)


def values(**changes) -> dict[str, float]:
    good = {"diversity": 0.9, "inversion": 0.1, "negative_agreement": 1.0,
            "positive_agreement": 0.97, "class_kept": 0.98, "class_flipped": 1.0}
    return {**good, **changes}


def test_guards_name_what_fails():
    assert evaluate.failed(values()) == []
    assert evaluate.failed(values(diversity=0.3)) == ["diversity"]
    assert evaluate.failed(values(inversion=0.5, class_kept=0.9)) == ["inversion", "class_kept"]


def test_a_collapsed_generator_is_caught():
    real = RNG.normal(size=(50, 8, 8, 1))
    same = np.broadcast_to(real[:1], real.shape) + 0.01 * RNG.normal(size=real.shape)
    generated = {"healthy": same, "negative_agreement": 1.0, "positive_agreement": 1.0}
    margins = np.array([[3.0] * 50, [3.0] * 50, [-3.0] * 50, [-3.0] * 50])
    found = evaluate.guards(generated, real, real, real, margins)
    # The published count is perfect; the diversity is not.
    assert evaluate.failed(found) == ["diversity"] and found["diversity"] < 0.05
    generated["healthy"] = real[::-1]
    assert evaluate.failed(evaluate.guards(generated, real, real, real, margins)) == []
    far = evaluate.guards(generated, real, real, real[::-1], margins)
    assert evaluate.failed(far) == ["inversion"] and far["inversion"] == pytest.approx(2, rel=0.2)


def test_diversity_by_definition():
    images = RNG.normal(size=(5, 3, 3, 1))
    pairs = [np.linalg.norm(images[i] - images[j]) for i in range(5) for j in range(i)]
    assert evaluate.diversity(images) == pytest.approx(np.mean(pairs))


def test_interval_of_a_mean():
    sample = np.append(RNG.normal(1.0, 2.0, 400), np.nan)
    found = evaluate.mean_interval(sample, np.random.default_rng(0))
    assert found["low"] < found["mean"] < found["high"]
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * 2 / 20, rel=0.2)


def test_change_outside_the_lesion():
    masks = np.zeros((2, 32, 32), bool)
    masks[:, 10:12, 10:12] = True
    negative = np.zeros((2, 32, 32, 1))
    positive = masks[..., None] * 1.0 + 0.1 * ~masks[..., None]
    found = evaluate.preservation(positive, negative, negative, masks)
    # Of constants a and b SSIM is (2 a b + c) / (a^2 + b^2 + c); the lesion is out of its windows.
    similar = (2 * 0.55 * 0.5 + 1e-4) / (0.55**2 + 0.5**2 + 1e-4)
    assert found == {"outside_inside": pytest.approx(0.1), "healthy_error": 0.0,
                     "outside_similarity": pytest.approx(similar, rel=1e-4)}
    positive = masks[..., None] * 1.0
    found = evaluate.preservation(positive, negative, negative, masks)
    assert found["outside_similarity"] == pytest.approx(1.0, abs=1e-5)


def test_images_to_explain_are_lesions_called_positive_first():
    masks = np.zeros((6, 2, 2), bool)
    masks[[0, 2, 3, 5], 0, 0] = True
    margins = np.array([-1.0, 5, 2, -3, 1, 4])
    sick = masks.any(axis=(1, 2))
    np.testing.assert_array_equal(stages.choose(sick, margins, 3), [2, 5, 0])
    with pytest.raises(ValueError, match="4 test images are positive, 9"):
        stages.choose(sick, margins, 9)


@pytest.fixture(scope="module")
def explained():
    nets = train.Nets(models.Generator(16, (8, 8), 1), models.Discriminator((8, 8)),
                      models.Classifier((4, 8)), None, LATENT)
    images = RNG.uniform(-1, 1, (3, 16, 16, 1)).astype(np.float32)
    frozen = nets.classifier.init(jax.random.key(0), jnp.asarray(images))
    codes = [RNG.normal(size=(3, d)).astype(np.float32) for d in LATENT]
    generator = nets.generator.init(jax.random.key(1), *map(jnp.asarray, codes))
    found = maps.explain(nets, frozen, generator, images, tuple(codes), jax.random.key(2), 4)
    return nets, frozen, generator, images, codes, found


def test_every_map_of_the_table_is_made(explained):
    nets, frozen, generator, images, codes, found = explained
    masks = np.zeros((3, 16, 16), bool)
    masks[:, 4:8, 4:8] = True
    every = found.maps | maps.references(images, images, masks)
    assert set(every) == set(maps.TITLES) - {"random"}
    for name, values in every.items():
        assert values.shape == (3, 16, 16) and np.isfinite(values).all(), name
        assert values.min() >= 0
    drawn = nets.generator.apply(generator, *map(jnp.asarray, codes))
    np.testing.assert_allclose(found.positive, drawn, atol=1e-6)
    change = np.abs(found.positive - found.negative)[..., 0]
    np.testing.assert_allclose(every["difference"], change, atol=1e-6)
    every.pop("oracle")  # zero here: the image is its own healthy image
    scores = evaluate.localisation(every, masks, images, nets, frozen)
    assert set(scores["lig"]) == set(evaluate.METRICS)
    assert scores["prior"]["pointing"].mean() == 1  # the masks are the training masks


def test_disentanglement_counts(explained):
    nets, frozen, generator, _, _, _ = explained
    found = evaluate.disentanglement(nets, frozen, generator, jax.random.key(0), 20)
    draws = nets.classifier.apply(frozen, jnp.asarray(found["healthy"]))
    share = float(np.mean(np.asarray(draws[:, 1] - draws[:, 0]) <= 0))
    assert found["negative_agreement"] == pytest.approx(share)
    assert 0 <= found["positive_agreement"] <= 1


def test_overlays():
    image = np.zeros((4, 4, 1))
    values = np.zeros((4, 4))
    values[1, 1] = 2.0
    mask = values > 0
    picture = figures.overlay(image, values, mask, 4)
    assert picture.shape == (16, 16, 3)
    np.testing.assert_array_equal(picture[4, 4], figures.OUTLINE)
    assert picture[5, 5].sum() > 2.5  # the maximum is bright
    border = figures.outline(mask, 4)
    assert border.sum() == 12 and border[4:8, 4:8].sum() == 12


def test_tiles_of_a_grid_have_one_size():
    assert [figures.factor_of(size) for size in (28, 32, 64, 128, 224)] == [4, 4, 2, 1, 1]
    assert figures.factor_of(32, 96) == 3
