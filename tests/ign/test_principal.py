"""Principal components as the fixed linear maps of a network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import ign as ign_config
from ign import baseline, losses, models, population, principal, settings, stages, train


@pytest.fixture(scope="module")
def images():
    """uint8 `[96, 28, 28, 1]` of six directions and a mean, far from black and white."""
    rng = np.random.default_rng(0)
    patterns = rng.normal(size=(6, 28 * 28))
    codes = rng.normal(size=(96, 6)) * np.array([5.0, 4.0, 3.0, 2.0, 1.5, 1.0])
    flat = 120.0 + codes @ patterns
    return np.clip(np.rint(flat), 0, 255).astype(np.uint8).reshape(96, 28, 28, 1)


def test_components_are_those_of_the_singular_value_decomposition(images):
    found = principal.fit(images, 4)
    flat = images.reshape(96, -1) / 127.5 - 1
    centred = flat - flat.mean(axis=0)
    _, values, rows = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(np.diag(rows[:4] @ found.encoder)), 1.0, atol=1e-5)
    code = flat @ found.encoder + found.encoder_bias
    np.testing.assert_allclose(code.mean(axis=0), 0.0, atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(code, axis=0), values[:4], rtol=1e-4)
    # The decoder is the least-squares solution for the inverse tanh.
    inverse = np.arctanh(flat)
    expected = np.linalg.lstsq(code, inverse - inverse.mean(axis=0), rcond=None)[0]
    np.testing.assert_allclose(found.decoder, expected, atol=1e-4)
    again = found.reconstruct(flat.reshape(images.shape).astype(np.float32))
    best = centred @ rows[:4].T @ rows[:4] + flat.mean(axis=0)
    np.testing.assert_allclose(again.reshape(96, -1), best, atol=0.04)  # tanh is nearly straight
    drawn = found.sample(np.random.default_rng(0), 4000)
    assert drawn.shape == (4000, 784)
    codes = drawn @ found.encoder + found.encoder_bias
    np.testing.assert_allclose(codes.std(axis=0), values[:4] / np.sqrt(96), rtol=0.05)
    np.testing.assert_allclose(codes.mean(axis=0), 0.0, atol=0.05 * values[0] / np.sqrt(96))


def test_fewer_images_than_pixels_and_more_give_the_same():
    """Either product of the matrix with itself: 60 images of 784 pixels, and 784 of 60."""
    centred = np.random.default_rng(1).normal(size=(60, 784)) * np.linspace(1, 4, 784)
    _, _, rows = np.linalg.svd(centred, full_matrices=False)
    columns, _, _ = np.linalg.svd(centred, full_matrices=False)
    wide, tall = principal._directions(centred, 5), principal._directions(centred.T, 5)
    np.testing.assert_allclose(np.abs(np.diag(rows[:5] @ wide)), 1.0, atol=1e-8)
    np.testing.assert_allclose(np.abs(np.diag(columns[:, :5].T @ tall)), 1.0, atol=1e-8)


def test_more_components_than_images_are_an_error(images):
    with pytest.raises(ValueError, match="97 components of 96 images"):
        principal.fit(images, 97)
    assert principal.fit(images[:40], 100, distortion=1.0).encoder.shape == (784, 100)


@pytest.mark.parametrize("kind", models.KINDS)
def test_a_network_starts_as_the_linear_autoencoder(images, kind):
    config = models.NetConfig(kind=kind, width=8, latent=6, hidden=16, principal=True)
    net = models.build(config)
    params = models.init(net, jax.random.key(0), config.shape)["params"]
    signed = settings.signed(images)
    silent = jax.tree.map(jnp.zeros_like, {k: v for k, v in params.items() if k != "principal"})
    silent = principal.start({**params, **silent}, principal.fit(images, 6))
    exact = net.apply({"params": silent}, signed)
    np.testing.assert_allclose(exact, signed, atol=0.05)  # six directions, rounded to 8 bits
    started = net.apply({"params": principal.start(params, principal.fit(images, 6))}, signed)
    spread = float(signed.std(axis=0).mean())
    assert float(jnp.abs(started - signed).mean()) < 0.2 * spread
    assert float(jnp.abs(net.apply({"params": params}, signed) - signed).mean()) > 0.7 * spread


@pytest.mark.usefixtures("standard_promotion")  # optax's Adam: 1 - decay**count
def test_training_leaves_the_maps_as_they_are(images):
    config = ign_config.get_config("smoke")
    config.net.linear, config.net.principal, config.train.num_steps = False, True, 3
    config.net.latent, config.train.warmup, config.train.decay_from = 6, 0, 1.0
    net = settings.net_config(config, 0)
    recipe, everybody = settings.recipe(config), settings.members(config)
    components = settings.components(config, images, 0.0)
    states = stages.init_members(config, net, recipe, None, everybody, True, components)
    objective = losses.Objective(losses.l2, use_matching=True, joint=True)
    step = population.make_step(train.make_train_step(models.build(net), objective, recipe), 1)
    before = jax.tree.map(np.array, states.params)
    for i in range(3):
        states, _ = jax.jit(step)(states, {"image": images[:16]}, jax.random.key(i))
    for name, value in states.params["principal"].items():
        np.testing.assert_array_equal(value, before["principal"][name])
        np.testing.assert_array_equal(value[0], getattr(components, name))
        np.testing.assert_allclose(states.train.ema["principal"][name], value, rtol=1e-6)
    assert np.abs(states.params["encode"]["kernel"] - before["encode"]["kernel"]).max() > 0


def test_baselines_start_there_too(images):
    config = models.NetConfig(kind="patch", width=8, latent=6, hidden=16, principal=True)
    components = principal.fit(images, 6)
    state = baseline.init_state(jax.random.key(0), config, 1e-3, 4, 0.0, components)
    np.testing.assert_array_equal(state.params["principal"]["decoder"], components.decoder)


def test_a_learnt_and_a_fixed_linear_map_are_an_error():
    with pytest.raises(ValueError, match="not both"):
        models.NetConfig(kind="patch", linear=True, principal=True)
