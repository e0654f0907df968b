"""Inversion: the loss against its definition, independence of images, and a toy that must work."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rosetta import inversion
from rosetta.inversion import Settings, Weights
from rosetta.units import MapError
from rosetta.zoo.tapped import Generator
from tests.rosetta import toy
from tests.rosetta.maps import enlarge

# optax.adam: 1 - decay**count
pytestmark = pytest.mark.usefixtures("standard_promotion")

random = np.random.default_rng(0)


@pytest.fixture(scope="module")
def given():
    return toy.statistics()


def test_agreement_is_the_cosine_of_enlarged_maps(given):
    layout, statistics = given
    model = toy.generator()
    z = model.sample(jax.random.key(1), 3)
    _, maps = model.apply(model.params, z)
    units, sizes = [0, 1, 2, 1, 0], [16, 4, 16, 23, 8]
    wanted = [random.normal(size=(3, size, size)) for size in sizes]
    weights = [1.0, 2.0, 0.5, 1.0, 3.0]
    targets = inversion.make_targets(layout, statistics, units, wanted, weights)
    assert [target.tap for target in targets] == ["coarse", "fine"]
    expected = np.zeros(3)
    for unit, target, weight in zip(units, wanted, weights, strict=True):
        tap, channel = layout.find(unit)
        own = statistics.standardise(np.asarray(maps[layout.taps[tap]])[..., channel], unit)
        size = max(own.shape[1], target.shape[1])
        a, b = (enlarge(x[..., None], size).reshape(3, -1) for x in (own, target))
        cosine = (a * b).sum(1) / np.sqrt((a**2).sum(1) * (b**2).sum(1))
        expected += weight * cosine / sum(weights)
    np.testing.assert_allclose(inversion.agreement(targets, maps), expected, atol=1e-5)


def test_pairs_without_content_count_zero(given):
    layout, statistics = given
    targets = inversion.make_targets(layout, statistics, [0], [np.zeros((2, 8, 8))])
    flat = jnp.full((2, 8, 8, 1), statistics.mean[0])

    def total(maps):
        return inversion.agreement(targets, {"coarse": maps}).sum()

    value, gradient = jax.value_and_grad(total)(flat)
    assert value == 0 and np.isfinite(gradient).all()


def test_the_toy_is_inverted_from_its_maps(given):
    """Bumps at known places are found again, by maps alone, and the agreement rises to 1."""
    layout, statistics = given
    model = toy.generator()
    truth = model.sample(jax.random.key(2), 4)
    images, maps = model.apply(model.params, truth)
    wanted = [
        statistics.standardise(np.asarray(maps[tap])[..., channel], unit)
        for unit, (tap, channel) in enumerate([("coarse", 0), ("fine", 0)])
    ]
    targets = inversion.make_targets(layout, statistics, [0, 1], wanted)
    weights = Weights.of(4)
    start = inversion.starts(model, jax.random.key(3), 16, targets, images, weights)
    found = inversion.invert(
        model, start, targets, images, weights, Settings(150, 0.03, (0.9, 0.999), "ramp")
    )
    assert (found.after > found.before).all() and (found.after > 0.99).all()
    np.testing.assert_allclose(found.latents, truth, atol=0.01)
    np.testing.assert_allclose(found.images, np.clip(images, 0, 1), atol=0.1)
    assert found.losses.shape == (150, 4)
    np.testing.assert_allclose(-found.losses[0], found.before, atol=1e-6)


def test_images_of_a_batch_are_independent(given):
    """A batch of images and weightings is each of them alone."""
    layout, statistics = given
    model = toy.generator()
    images, _ = model.apply(model.params, model.sample(jax.random.key(4), 2))
    first = inversion.make_targets(layout, statistics, [0], [random.normal(size=(2, 8, 8))])
    start = model.sample(jax.random.key(5), 2)
    settings = Settings(5, 0.05)
    one = inversion.invert(model, start, first, images, Weights.of(2, pixel=3.0), settings)
    two = inversion.invert(model, start, first, images, Weights.of(2, prior=1.0), settings)
    weights = jax.tree.map(
        lambda *x: jnp.concatenate(x), Weights.of(2, pixel=3.0), Weights.of(2, prior=1.0)
    )
    both = inversion.invert(
        model, jnp.tile(start, (2, 1)), inversion.repeat(first, 2),
        jnp.tile(images, (2, 1, 1, 1)), weights, settings,
    )  # fmt: skip
    np.testing.assert_allclose(both.latents, np.concatenate([one.latents, two.latents]), atol=2e-5)
    np.testing.assert_allclose(both.after, np.concatenate([one.after, two.after]), atol=1e-5)
    again = inversion.repeat(first, 3)
    assert again[0].maps.shape == (6, 8, 8, 1)
    np.testing.assert_array_equal(again[0].maps[2:4], first[0].maps)


def test_terms_of_the_loss(given):
    layout, statistics = given
    model = toy.generator()
    images = jnp.asarray(random.uniform(size=(2, 16, 16, 3)), jnp.float32)
    targets = inversion.make_targets(layout, statistics, [1], [random.normal(size=(2, 4, 4))])
    z = model.sample(jax.random.key(6), 2)
    made, maps = model.apply(model.params, z)
    weights = Weights.of(2, activation=2.0, pixel=3.0, prior=5.0)
    loss, agreed = inversion.objective(model)(
        model.params, z, model.mean[None], targets, images, weights
    )
    expected = (
        -2 * np.asarray(inversion.agreement(targets, maps))
        + 3 * np.square(np.asarray(made - images)).mean((1, 2, 3))
        + 5 * np.square(np.asarray(z) - 0.5).mean(1)
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(agreed, inversion.agreement(targets, maps), rtol=1e-6)


def test_the_ramp():
    rate = inversion._rate(Settings(100, 0.1, schedule="ramp"))
    values = np.array([rate(jnp.int32(step)) for step in range(100)])
    np.testing.assert_allclose(values[[0, 4, 50]], [0.02, 0.1, 0.1], rtol=1e-5)
    assert (np.diff(values[75:]) < 0).all() and values[-1] == 0
    assert inversion._rate(Settings(5, 0.3)) == 0.3
    with pytest.raises(ValueError, match="0 steps with schedule 'constant'"):
        Settings(0)


def test_mistakes_are_named(given):
    layout, statistics = given
    model = toy.generator()
    make = inversion.make_targets
    with pytest.raises(MapError, match="1 wanted maps for 2 units of 'toy'"):
        make(layout, statistics, [0, 1], [np.zeros((1, 4, 4))])
    with pytest.raises(MapError, match=r"unit 1 .*shape \(2, 4, 5\), expected \[2, size, size\]"):
        make(layout, statistics, [0, 1], [np.zeros((2, 4, 4)), np.zeros((2, 4, 5))])
    with pytest.raises(MapError, match="unit 0 of 'toy': the wanted map is not finite"):
        make(layout, statistics, [0], [np.full((2, 4, 4), np.nan)])
    targets = make(layout, statistics, [0], [np.ones((2, 4, 4))])
    with pytest.raises(ValueError, match=r"3 latents, but .* of \[2, 3\]"):
        z = model.sample(jax.random.key(0), 3)
        inversion.invert(model, z, targets, np.zeros((3, 16, 16, 3)), Weights.of(3), Settings(1))

    def broken(params, latents):
        image, maps = toy.apply(params, latents)
        return image * jnp.log(latents.sum() - 9), maps

    wrong = Generator("broken", broken, model.params, model.taps, model.sample, model.mean)
    with pytest.raises(FloatingPointError, match="loss of image 0 is not finite at step 0"):
        inversion.invert(
            wrong, jnp.ones((2, 4)), targets, np.zeros((2, 16, 16, 3)), Weights.of(2, pixel=1.0),
            Settings(1),
        )  # fmt: skip


def test_parts_are_the_whole(given):
    """Inversion in parts of a bounded number of images equals that of all at once."""
    layout, statistics = given
    model = toy.generator()
    images, _ = model.apply(model.params, model.sample(jax.random.key(8), 5))
    wanted = list(random.normal(size=(2, 5, 8, 8)))
    targets = inversion.make_targets(layout, statistics, [0, 2], wanted)
    start = model.sample(jax.random.key(9), 5)
    weights = Weights.of(5, pixel=1.0, prior=0.5)
    arguments = (model, start, targets, images, weights, Settings(4, 0.05), start)
    whole = inversion.invert(*arguments)
    parts = inversion.invert(*arguments, most=2)
    for field in ("latents", "images", "losses", "before", "after"):
        first, second = (np.asarray(getattr(x, field)) for x in (whole, parts))
        assert first.shape == second.shape
        np.testing.assert_allclose(first, second, atol=2e-5)
