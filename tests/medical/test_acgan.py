"""Auxiliary-classifier GANs: penalty, truncated codes, and what remains without a generator."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from medical.acgan import losses, models, train

# Small networks: they take longer to compile than to run.
RNG = np.random.default_rng(0)
REAL = jnp.asarray(RNG.normal(size=(3, 4, 4, 1)), jnp.float32)
FAKE = jnp.asarray(RNG.normal(size=(3, 4, 4, 1)), jnp.float32)
SHARE = jnp.asarray([0.1, 0.5, 0.9])


def test_penalty_of_a_linear_critic():
    weights = jnp.full((1, 4, 4, 1), 3 / 4)  # of norm 3
    found = losses.gradient_penalty(
        lambda x: jnp.sum(weights * x, axis=(1, 2, 3)), REAL, FAKE, SHARE)
    np.testing.assert_allclose(found, 4.0, rtol=1e-6)
    flat = losses.gradient_penalty(lambda x: 0 * jnp.sum(x, axis=(1, 2, 3)), REAL, FAKE, SHARE)
    np.testing.assert_array_equal(flat, 1.0)


def net(seed: int):
    rng = np.random.default_rng(seed)
    first, second = rng.normal(size=(16, 8)) / 4, rng.normal(size=(8,))
    first, second = jnp.asarray(first, jnp.float32), jnp.asarray(second, jnp.float32)
    return lambda x: jnp.tanh(x.reshape(len(x), -1) @ first) @ second


def test_penalty_by_finite_differences():
    critic = net(1)
    found = losses.gradient_penalty(critic, REAL, FAKE, SHARE)
    point = np.asarray(SHARE).reshape(3, 1, 1, 1) * REAL + (1 - SHARE).reshape(3, 1, 1, 1) * FAKE
    for i in range(3):
        steps = 1e-2 * np.eye(16, dtype=np.float32).reshape(16, 4, 4, 1)
        up, down = critic(point[i][None] + steps), critic(point[i][None] - steps)
        norm = np.linalg.norm((up - down) / 2e-2)
        assert float(found[i]) == pytest.approx((norm - 1) ** 2, abs=2e-3)


def test_each_image_has_its_own_penalty():
    changed = REAL.at[1].add(5.0)
    first = losses.gradient_penalty(net(2), REAL, FAKE, SHARE)
    second = losses.gradient_penalty(net(2), changed, FAKE, SHARE)
    np.testing.assert_array_equal(np.asarray(first == second), [True, False, True])


def test_the_penalty_of_a_flat_critic_has_a_gradient():
    slope = jax.grad(lambda a: jnp.mean(losses.gradient_penalty(
        lambda x: a * jnp.sum(x, axis=(1, 2, 3)), REAL, FAKE, SHARE)))(0.0)
    assert np.isfinite(slope)


def test_truncated_codes():
    z = np.asarray(losses.truncated_normal(jax.random.key(0), (20_000,)))
    assert np.abs(z).max() <= 1 and z.var() == pytest.approx(0.2911, abs=0.005)
    assert stats.kstest(z, stats.truncnorm(-1, 1).cdf).pvalue > 0.01


@pytest.fixture(scope="module")
def batch():
    images = jnp.asarray(RNG.uniform(-1, 1, (4, 28, 28, 1)), jnp.float32)
    return {"image": images, "label": jnp.asarray([0, 3, 3, 9])}


def networks(norm: str = "batch"):
    return models.Generator((8, 8, 8)), models.Discriminator((4, 4, 8), norm=norm)


def test_published_shapes():
    image = jax.ShapeDtypeStruct((2, 28, 28, 1), jnp.float32)
    shapes = jax.eval_shape(models.Discriminator().init, jax.random.key(0), image)
    assert shapes["params"]["class"]["kernel"].shape == (4608, 10)
    z, labels = jax.ShapeDtypeStruct((2, 100), jnp.float32), jax.ShapeDtypeStruct((2,), jnp.int32)
    made = models.Generator()
    variables = jax.eval_shape(made.init, jax.random.key(0), z, labels)
    assert jax.eval_shape(made.apply, variables, z, labels).shape == (2, 28, 28, 1)


@pytest.mark.usefixtures("standard_promotion")  # optax, bias correction of Adam
def test_without_source_and_fakes_the_head_is_a_plain_classifier(batch):
    generator, discriminator = networks()
    recipe = train.Recipe(source=0.0, fake_class=0.0, latent=5)
    state = train.init(generator, discriminator, recipe, batch["image"], jax.random.key(0))
    new, metrics = jax.jit(train.make_train_step(generator, discriminator, recipe))(
        state, batch, jax.random.key(1))

    @jax.jit
    def plain(params, held):
        def loss(params):
            (_, logits), _ = discriminator.apply(
                {"params": params, **held}, batch["image"], train=True, mutable=list(held))
            return jnp.mean(
                optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]))

        return jax.value_and_grad(loss)(params)

    value, grads = plain(state.discriminator.params, state.stats["discriminator"])
    assert float(value) == float(metrics["loss"])
    expected = state.discriminator.apply_gradients(grads)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-7),
                 expected.params, new.discriminator.params)
    assert not np.any(grads["source"]["kernel"])
    jax.tree.map(np.testing.assert_array_equal, state.generator.params, new.generator.params)


@pytest.mark.usefixtures("standard_promotion")  # optax, bias correction of Adam
@pytest.mark.parametrize("wasserstein", [False, True])
def test_a_step_trains_both(batch, wasserstein):
    generator, discriminator = networks("none" if wasserstein else "batch")
    recipe = train.Recipe(wasserstein=wasserstein, truncation=1.0, latent=5)
    state = train.init(generator, discriminator, recipe, batch["image"], jax.random.key(0))
    new, metrics = jax.jit(train.make_train_step(generator, discriminator, recipe))(
        state, batch, jax.random.key(1))
    assert all(np.isfinite(v) for v in metrics.values())
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), state.params, new.params)
    assert np.mean(jax.tree.leaves(moved)) > 0.9


@pytest.mark.usefixtures("standard_promotion")  # optax, bias correction of Adam
def test_weights_are_of_the_discriminator_alone(batch):
    generator, discriminator = networks("none")

    def losses_of(source, fake_class):
        recipe = train.Recipe(source=source, fake_class=fake_class, latent=5, learning_rate=0.0)
        state = train.init(generator, discriminator, recipe, batch["image"], jax.random.key(0))
        _, metrics = jax.jit(train.make_train_step(generator, discriminator, recipe))(
            state, batch, jax.random.key(1))
        return np.array([metrics["loss"], metrics["generator"]])

    bare, published = losses_of(0.1, 0.0), losses_of(1.0, 1.0)
    assert bare[1] == published[1]
    source, fakes = losses_of(1.0, 0.0), losses_of(0.1, 1.0)
    assert source[0] > bare[0] and fakes[0] > bare[0]
    assert source[0] + fakes[0] == pytest.approx(bare[0] + published[0], rel=1e-6)


@pytest.mark.parametrize(("made", "judge", "size", "channels", "flat"), [
    (models.Generator(size=32, channels=3), models.AlexDiscriminator(), 32, 3, 4096),
    (models.Generator((1024, 512, 256, 128, 64), 2, 128, 3), models.Discriminator(classes=2), 128,
     3, 131_072)])
def test_published_shapes_of_larger_images(made, judge, size, channels, flat):
    z, labels = jax.ShapeDtypeStruct((2, 100), jnp.float32), jax.ShapeDtypeStruct((2,), jnp.int32)
    variables = jax.eval_shape(made.init, jax.random.key(0), z, labels)
    image = jax.eval_shape(made.apply, variables, z, labels)
    assert image.shape == (2, size, size, channels)
    shapes = jax.eval_shape(judge.init, jax.random.key(0), image)
    assert shapes["params"]["class"]["kernel"].shape == (flat, made.classes)
    if size == 32:
        assert shapes["params"]["class_dense0"]["kernel"].shape == (256 * 2 * 2, 4096)


def test_layers_that_do_not_lead_to_a_size():
    with pytest.raises(ValueError, match="3 layers lead from 4 to 32 pixels .* not to 64"):
        models.kernels_of(64, 3)


@pytest.mark.usefixtures("standard_promotion")  # optax, bias correction of Adam
def test_a_trunk_with_dropout_trains_in_colour():
    images = jnp.asarray(RNG.uniform(-1, 1, (4, 32, 32, 3)), jnp.float32)
    batch = {"image": images, "label": jnp.asarray([0, 1, 1, 0])}
    generator = models.Generator((8, 8, 8), 2, 32, 3)
    discriminator = models.AlexDiscriminator((4, 4, 8, 8, 8), 8, 2)
    recipe = train.Recipe(latent=5)
    state = train.init(generator, discriminator, recipe, images, jax.random.key(0))
    step = jax.jit(train.make_train_step(generator, discriminator, recipe))
    new, metrics = step(state, batch, jax.random.key(1))
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), state.params, new.params)
    assert np.mean(jax.tree.leaves(moved)) > 0.9
    _, other = step(state, batch, jax.random.key(2))
    assert float(other["loss"]) != float(metrics["loss"])  # other units are dropped
