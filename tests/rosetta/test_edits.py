"""Edits: transformations of maps, single units in the real generator, and a toy that must move."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rosetta import edits, inversion, manipulate, metrics
from rosetta.guidance import Guides, random_guides, unit_maps
from rosetta.inversion import Settings, Statistics, Weights
from rosetta.matching import Pairs
from rosetta.units import Layout
from rosetta.zoo import shipped
from tests.rosetta import toy

# optax.adam: 1 - decay**count
pytestmark = pytest.mark.usefixtures("standard_promotion")

random = np.random.default_rng(0)


def test_shift_is_a_move_of_cells():
    maps = random.normal(size=(2, 8, 8))
    moved = edits.shift(maps, right=0.25, down=-0.125)
    np.testing.assert_allclose(moved[:, :7, 2:], maps[:, 1:, :6])
    assert (moved[:, 7] == 0).all() and (moved[:, :, :2] == 0).all()
    small = edits.shift(random.normal(size=(1, 4, 4)), right=0.3)  # int(1.2) cells
    assert (small[..., 0] == 0).all() and (small[..., 1] != 0).any()
    np.testing.assert_allclose(edits.shift(maps), maps)


def test_zoom_is_about_the_centre():
    ramp = np.tile(np.arange(8.0) - 3.5, (1, 8, 1))
    np.testing.assert_allclose(edits.zoom(ramp, 2.0), ramp / 2)
    inner = edits.zoom(ramp, 0.5)[0, 4]
    np.testing.assert_allclose(inner[2:6], [-3, -1, 1, 3])
    assert (edits.zoom(np.ones((1, 8, 8)), 0.5)[0, 4, [0, 7]] == 0).all()
    with pytest.raises(ValueError, match="enlargement by 0"):
        edits.zoom(ramp, 0)


def test_paste():
    a, b = np.zeros((1, 4, 4)), np.ones((1, 4, 4))
    np.testing.assert_array_equal(edits.paste(a, b)[0, 0], [0, 0, 1, 1])
    np.testing.assert_array_equal(edits.paste(a, b, 0.25)[0, 0], [0, 1, 1, 1])
    with pytest.raises(ValueError, match=r"maps of \(1, 4, 4\) and \(1, 2, 2\)"):
        edits.paste(a, np.ones((1, 2, 2)))


def test_centroid():
    maps = np.zeros((2, 4, 4))
    maps[0, 1, 3] = 2.0
    maps[1] = -1
    np.testing.assert_allclose(edits.centroid(maps), [[1.5 / 4, 3.5 / 4], [0.5, 0.5]])


@pytest.mark.parametrize("right, down, factor", [(0.25, 0.0, 1.0), (-0.125, 0.2, 1.0)])
def test_the_toy_moves_as_asked(right, down, factor):
    """The centroid of an edited map moves by the requested offset within one cell."""
    layout, statistics = toy.statistics()
    model = toy.generator()
    z = jnp.asarray([[0.5, 0.4, 0.5, 0.5], [0.4, 0.6, 0.6, 0.5]])
    _, maps = model.apply(model.params, z)
    own = unit_maps(layout, statistics, maps, [0, 1])
    wanted = [edits.warp(x, right, down, factor) for x in own]
    targets = inversion.make_targets(layout, statistics, [0, 1], wanted)
    found = inversion.invert(
        model, z, targets, np.zeros((2, 16, 16, 3)), Weights.of(2),
        Settings(100, 0.02, (0.9, 0.999), "ramp"), z,
    )  # fmt: skip
    assert (found.after > found.before).all()
    _, moved = model.apply(model.params, jnp.asarray(found.latents))
    for tap, size in (("coarse", 8), ("fine", 16)):
        before, after = (edits.centroid(np.asarray(m[tap])[..., 0] - (tap == "coarse"))
                         for m in (maps, moved))
        assert np.abs(after - before - [down, right]).max() < 1 / size


def test_moved_by():
    image = random.uniform(size=(16, 32, 3))
    for d in (-5, 0, 7):
        assert manipulate.moved_by(image, np.roll(image, d, axis=1)) == d


def test_warped_image_says_where_it_has_content():
    image = random.uniform(size=(1, 8, 8, 3))
    moved, inside = edits.warped_image(image, right=0.25)
    np.testing.assert_allclose(moved[:, :, 2:], image[:, :, :6])
    assert inside[:, 2:].all() and not inside[:, :2].any()


def test_single_units_of_the_real_generator():
    generator = shipped.dcgan_faces()
    layout = generator.layout()
    z = generator.sample(jax.random.key(0), 2)
    same, maps = generator.apply_edited(generator.params, z, lambda tap, x: x)
    image, own = generator.apply(generator.params, z)
    np.testing.assert_allclose(same, image, atol=1e-6)
    assert maps.keys() == own.keys()
    unit = layout.offsets[2] + 3  # block2
    change = edits.change_units(layout, {unit: 0.0, 5: 1.0}, {5: 0.25})
    changed, edited = generator.apply_edited(generator.params, z, change)
    np.testing.assert_allclose(edited["block0"][..., 5], own["block0"][..., 5] + 0.25, atol=1e-6)
    assert (edited["block2"][..., 3] == 0).all()
    assert np.abs(changed - image).max() > 1e-3
    only, after = generator.apply_edited(
        generator.params, z, edits.change_units(layout, {unit: 0.0})
    )
    np.testing.assert_allclose(after["block1"], own["block1"], atol=1e-6)  # what was before stays
    expected = np.array(own["block2"])
    expected[..., 3] = 0
    np.testing.assert_allclose(after["block2"], expected, atol=1e-6)
    with pytest.raises(IndexError, match="has 960 units, not 960"):
        edits.change_units(layout, {960: 0.0})


def test_random_guides_keep_the_numbers_and_avoid_constant_units():
    layout = Layout("a", ("t",), (4,), (6,))
    deviation = np.array([0, 1, 1, 0, 1, 1.0])
    statistics = {name: Statistics(np.zeros(6), deviation) for name in ("a", "b")}
    pairs = Pairs(np.arange(4), np.arange(4), np.ones(4, np.float32))
    given = Guides({"b": pairs}, statistics, {"a": layout, "b": layout})
    drawn = random_guides(given, "a", 0).pairs["b"]
    assert len(drawn) == 4 and not set(drawn.rows) & {0, 3} and not set(drawn.columns) & {0, 3}
    again = random_guides(given, "a", 0).pairs["b"]
    np.testing.assert_array_equal(drawn.rows, again.rows)


def test_the_best_matched_units_come_first():
    layout = Layout("a", ("t",), (4,), (6,))
    pairs = {
        "b": Pairs(np.array([3, 1]), np.array([0, 1]), np.array([0.2, 0.5], np.float32)),
        "c": Pairs(np.array([3, 4]), np.array([0, 1]), np.array([0.9, 0.1], np.float32)),
    }
    assert Guides(pairs, {}, {"a": layout}).units.tolist() == [3, 1, 4]


def test_metrics_are_scikit_image_s():
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    first = random.uniform(size=(2, 20, 24, 3))
    second = np.clip(first + 0.1 * random.normal(size=first.shape), 0, 1)
    a, b = (np.round(x * 255).astype(np.uint8) for x in (first, second))
    x, y = a.astype(float), b.astype(float)
    for i in range(2):
        similar = structural_similarity(a[i], b[i], channel_axis=2, data_range=255)
        np.testing.assert_allclose(metrics.ssim(x, y)[i], similar, rtol=1e-6)
        ratio = peak_signal_noise_ratio(a[i], b[i], data_range=255)
        np.testing.assert_allclose(metrics.psnr(x, y)[i], ratio, rtol=1e-6)
    assert set(metrics.image_metrics(None, first, second)) == {"psnr", "ssim"}  # too small
    with pytest.raises(ValueError, match="are not in"):
        metrics.image_metrics(None, first * 2, second)
    with pytest.raises(ValueError, match="SSIM needs 7 x 7 pixels"):
        metrics.ssim(x[:, :5], y[:, :5])
