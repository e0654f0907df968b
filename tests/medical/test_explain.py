"""Explanations against closed forms: linear and quadratic scores, completeness, exact ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medical.explain import grad_cam, gradients, latent, occlusion
from tests.medical import small_net

RNG = np.random.default_rng(0)
IMAGES = jnp.asarray(RNG.normal(size=(3, 8, 8, 1)), jnp.float32)
BASE = jnp.asarray(RNG.normal(size=(3, 8, 8, 1)), jnp.float32)
WEIGHTS = jnp.asarray(RNG.normal(size=(1, 8, 8, 1)), jnp.float32)
NET = small_net.make(1)
MATRIX = jnp.asarray(RNG.normal(size=(5, 64)) / 3, jnp.float32)
NEGATIVE = jnp.asarray(RNG.normal(size=(3, 5)), jnp.float32)
POSITIVE = jnp.asarray(RNG.normal(size=(3, 5)), jnp.float32)


def linear(x):
    return jnp.sum(WEIGHTS * x, axis=(1, 2, 3))


def quadratic(x):
    return jnp.sum(WEIGHTS * x * x, axis=(1, 2, 3))


def net(x):
    return small_net.logits(NET, x)[:, 1]


def generate(codes):
    return jnp.tanh(codes @ MATRIX).reshape(-1, 8, 8, 1)


def generate_linear(codes):
    return (codes @ MATRIX).reshape(-1, 8, 8, 1)


def test_a_linear_score_is_explained_by_its_weights():
    every = jnp.broadcast_to(WEIGHTS, IMAGES.shape)
    np.testing.assert_allclose(gradients.saliency(linear, IMAGES), jnp.abs(every))
    smooth = gradients.smooth_grad(linear, IMAGES, jax.random.key(0), 0.3, 4)
    np.testing.assert_allclose(smooth, every, rtol=1e-6)
    found = gradients.integrated_gradients(linear, IMAGES, BASE, 3)
    np.testing.assert_allclose(found, every * (IMAGES - BASE), rtol=1e-5, atol=1e-6)


def test_smooth_grad_averages_over_the_noise():
    # The gradient 2 w (x + e) has mean 2 w x and mean square 4 w^2 (x^2 + deviation^2).
    found = gradients.smooth_grad(quadratic, IMAGES, jax.random.key(1), 0.5, 4000)
    np.testing.assert_allclose(found, 2 * WEIGHTS * IMAGES, atol=0.15)
    squared = gradients.smooth_grad(quadratic, IMAGES, jax.random.key(1), 0.5, 4000, square=True)
    expected = 4 * WEIGHTS**2 * (IMAGES**2 + 0.25)
    np.testing.assert_allclose(squared, expected, rtol=0.2, atol=0.1)


@pytest.mark.parametrize("rule", gradients.RULES)
def test_quadrature_rules_integrate(rule):
    places, weights = gradients.nodes(rule, 400)
    assert weights.sum() == pytest.approx(1)
    assert weights @ places**3 == pytest.approx(0.25, abs=2e-3)
    assert places.min() >= 0 and places.max() <= 1


def test_gauss_legendre_is_exact_for_its_degree():
    places, weights = gradients.nodes("gausslegendre", 4)
    for degree in range(8):
        assert weights @ places**degree == pytest.approx(1 / (degree + 1), abs=1e-14)
    # The gradient of a square is linear: one point is enough, for the middle rule too.
    found = gradients.integrated_gradients(quadratic, IMAGES, BASE, 1)
    np.testing.assert_allclose(found, WEIGHTS * (IMAGES**2 - BASE**2), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="unknown rule"):
        gradients.nodes("simpson", 4)
    with pytest.raises(ValueError, match="too few"):
        gradients.nodes("riemann_trapezoid", 1)
    with pytest.raises(ValueError, match="baseline"):
        gradients.integrated_gradients(linear, IMAGES, BASE[:1], 2)


def test_integrated_gradients_are_complete():
    wanted = net(IMAGES) - net(BASE)
    errors = []
    for points in (2, 8, 200):
        found = gradients.integrated_gradients(net, IMAGES, BASE, points, "riemann_trapezoid")
        errors.append(float(jnp.max(jnp.abs(found.sum((1, 2, 3)) / wanted - 1))))
    assert errors[2] <= 0.01 and errors[2] < errors[1] < errors[0]


def test_occlusion_of_a_linear_score():
    # One window covers each pixel once: the sum of the contributions under it.
    found = occlusion.occlusion(linear, IMAGES, (4, 4), (4, 4), baseline=BASE)
    drop = (WEIGHTS * (IMAGES - BASE)).reshape(3, 2, 4, 2, 4).sum(axis=(2, 4))
    np.testing.assert_allclose(found, drop.repeat(4, 1).repeat(4, 2), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="stride"):
        occlusion.occlusion(linear, IMAGES, (2, 2), (3, 3))


def test_grad_cam_of_a_linear_head():
    maps = jnp.asarray(RNG.normal(size=(3, 4, 4, 6)), jnp.float32)
    weights = jnp.asarray(RNG.normal(size=(1, 6)), jnp.float32)

    def head(features, scale):
        return jnp.mean(features, axis=(1, 2)) @ weights[0] * scale

    scale = jnp.asarray([1.0, 2.0, -1.0])
    found = grad_cam.grad_cam(head, maps, scale, relu=False)
    expected = (maps * weights.reshape(1, 1, 1, 6)).sum(-1) * scale.reshape(3, 1, 1) / 16
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        grad_cam.grad_cam(head, maps, scale), jnp.maximum(expected, 0), rtol=1e-4, atol=1e-5)
    released = grad_cam.as_released(head, maps, scale)
    activation = jnp.maximum(maps.mean(-1), 0)
    # The published code's map hardly depends on the class it is asked to explain.
    assert np.corrcoef(np.ravel(released), np.ravel(activation))[0, 1] > 0.9
    assert np.corrcoef(np.ravel(released), np.ravel(jnp.maximum(expected, 0)))[0, 1] < 0.5
    assert grad_cam.enlarge(found, (16, 16)).shape == (3, 16, 16)


def test_the_ends_of_a_path_are_exact():
    path = latent.interpolate(net, generate, NEGATIVE, POSITIVE, 5)
    np.testing.assert_array_equal(path.images[0], generate(NEGATIVE))
    np.testing.assert_array_equal(path.images[-1], generate(POSITIVE))
    np.testing.assert_allclose(path.scores[2], net(path.images[2]), rtol=1e-5)
    np.testing.assert_allclose(path.alpha, [0, 0.25, 0.5, 0.75, 1])


def test_the_path_integral_is_complete_and_the_published_form_is_not():
    wanted = net(generate(POSITIVE)) - net(generate(NEGATIVE))
    errors = []
    for points in (4, 16, 200):
        found = latent.path_integral(net, generate, NEGATIVE, POSITIVE, points)
        errors.append(float(jnp.max(jnp.abs(found.sum((1, 2, 3)) / wanted - 1))))
    assert errors[2] <= 0.02 and errors[2] < errors[1] < errors[0]
    published = latent.lig(net, generate, NEGATIVE, POSITIVE, 200).sum((1, 2, 3))
    assert float(jnp.max(jnp.abs(published / wanted - 1))) > 0.05


def test_a_linear_generator_makes_both_forms_integrated_gradients():
    negative, positive = generate_linear(NEGATIVE), generate_linear(POSITIVE)
    wanted = gradients.integrated_gradients(net, positive, negative, 64, "riemann_middle")
    found = latent.path_integral(net, generate_linear, NEGATIVE, POSITIVE, 64)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    step = 1 / 10
    published = latent.lig(net, generate_linear, NEGATIVE, POSITIVE, 11)
    mean = sum(
        gradients.gradient(net, negative + k * step * (positive - negative)) for k in range(11)
    ) / 11
    np.testing.assert_allclose(published, (positive - negative) * mean, atol=1e-5)


def test_equal_ends_explain_nothing():
    for function in (latent.lig, latent.path_integral):
        assert not np.any(function(net, generate, POSITIVE, POSITIVE, 7))
    same = latent.lig_as_released(
        lambda x: small_net.logits(NET, x), generate, POSITIVE, POSITIVE, 7)
    assert not np.any(same)


def test_the_released_form_follows_the_class_that_leads():
    # Two logits of opposite sign; on the way the lead passes from the second to the first.
    def logits(x):
        value = jnp.sum(x, axis=(1, 2, 3))
        return jnp.stack([value, -value], axis=-1)

    def line(codes):
        return jnp.broadcast_to(codes[:, :, None, None], (len(codes), 2, 2, 1))

    negative, positive = jnp.full((1, 2), -1.0), jnp.full((1, 2), 1.0)
    fixed = latent.lig(lambda x: logits(x)[:, 0], line, negative, positive, 11)
    np.testing.assert_allclose(fixed, 2.0)
    released = latent.lig_as_released(logits, line, negative, positive, 10)
    np.testing.assert_allclose(released, 0.0, atol=1e-6)  # five steps of each sign cancel


def test_difference_map_is_the_published_one():
    positive = jnp.asarray([[0.5, -1.0], [1.0, 0.0]]).reshape(1, 2, 2, 1)
    negative = jnp.asarray([[0.5, 1.0], [0.0, 0.0]]).reshape(1, 2, 2, 1)
    found = latent.difference(positive, negative)
    np.testing.assert_allclose(found.reshape(2, 2), [[0.5, 0.0], [1.0, 0.5]])


def test_latent_shift_lowers_the_score_by_as_much_as_asked():
    shifts = latent.calibrated_shifts(net, generate, POSITIVE, 0.05, points=5)
    images, found = latent.latent_shift(net, generate, POSITIVE, shifts)
    assert shifts.shape == (5, 3) and images.shape == (5, 3, 8, 8, 1)
    # the last shift is 0; vmapped products may round otherwise
    np.testing.assert_allclose(images[-1], generate(POSITIVE), atol=1e-6)
    drop = net(generate(POSITIVE)) - net(images[0])
    assert (drop >= 0.05 - 1e-4).all()
    np.testing.assert_allclose(found, jnp.abs(images - images[-1:]).max(0))


def test_maps_follow_the_classifier():
    """Model randomisation (Adebayo et al., 2018): another last layer, another map."""
    from scipy import stats

    other = dict(NET, dense=small_net.make(5)["dense"])
    first = gradients.gradient(net, IMAGES)
    second = gradients.gradient(lambda x: small_net.logits(other, x)[:, 1], IMAGES)
    assert abs(stats.spearmanr(np.ravel(first), np.ravel(second)).statistic) <= 0.5


def test_a_batch_is_explained_in_one_program():
    found = jax.jit(lambda x, b: gradients.integrated_gradients(net, x, b, 8))(IMAGES, BASE)
    single = [gradients.integrated_gradients(net, IMAGES[i:i + 1], BASE[i:i + 1], 8)
              for i in range(3)]
    np.testing.assert_allclose(found, np.concatenate(single), atol=1e-6)
