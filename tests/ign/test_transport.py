"""Transport: which images and samples act on a sample, and that only equal spreads are at rest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ign import losses, matching, models, train, transport


def memory_of(images, samples, image_labels=None, sample_labels=None):
    make = matching.make_bank
    return transport.Memory(make(None, images, image_labels), make(None, samples, sample_labels))


def normal(seed, count, dims=4, scale=1.0):
    return scale * jax.random.normal(jax.random.key(seed), (count, dims))


def test_cold_targets_are_the_nearest_image_less_the_nearest_other_sample():
    images, samples, others = normal(0, 64), normal(1, 8), normal(2, 64)
    batch = normal(3, 8)
    target, memory = transport.targets(
        memory_of(images, others), batch, samples, 1e-5, jnp.int32(1)
    )
    seen = np.concatenate([images[:8], batch, images[16:]])  # the second step's places
    for y, found in zip(np.asarray(samples), np.asarray(target), strict=True):
        near = [
            cloud[np.linalg.norm(cloud - y, axis=1).argmin()]
            for cloud in (seen, np.asarray(others))
        ]
        np.testing.assert_allclose(found, y + near[0] - near[1], atol=1e-4)
    np.testing.assert_array_equal(memory.images.images, seen)
    np.testing.assert_array_equal(memory.samples.images[8:16], samples)
    np.testing.assert_array_equal(memory.samples.images[16:], others[16:])


@pytest.mark.parametrize("balance", [0, 3])
def test_samples_spread_as_images_are_and_rest_when_they_do(balance):
    """The mean outward pull on a Gaussian cloud beside a Gaussian of deviation 1."""

    def outward(scale):
        pulls = []
        for seed in range(40):
            samples = normal(4 * seed, 32, 3, scale)
            memory = memory_of(normal(4 * seed + 1, 512, 3), normal(4 * seed + 2, 512, 3, scale))
            target, _ = transport.targets(
                memory, normal(4 * seed + 3, 32, 3), samples, 3.0, jnp.int32(0), balance=balance
            )
            pulls.append(float(((target - samples) * samples).sum(1).mean()) / scale**2)
        return np.mean(pulls), np.std(pulls) / np.sqrt(len(pulls))

    (narrow, e1), (equal, e2), (wide, e3) = map(outward, (0.5, 1.0, 1.5))
    assert narrow > 5 * e1 and wide < -5 * e3
    assert abs(equal) < 4 * e2 + 0.02 * narrow


def test_balanced_images_draw_equally():
    """Samples at one place: alone they see the near image only, balanced both."""
    images = jnp.array([[1.0, 0.0], [4.0, 0.0]])
    samples = jnp.array([[0.0, 0.1], [0.0, -0.1]])
    memory = memory_of(jnp.concatenate([images, images]), jnp.zeros((4, 2)) + 9.0)

    def pull(balance):
        target, _ = transport.targets(memory, images, samples, 0.5, jnp.int32(0), balance=balance)
        away = samples - 9.0
        return np.asarray(target + 9.0 - samples)[:, 0].mean(), away

    assert pull(0)[0] == pytest.approx(1.0, abs=0.05)
    assert pull(30)[0] == pytest.approx(2.5, abs=0.05)


def test_other_labels_and_empty_places_do_not_act():
    memory = transport.empty_memory(8, (2,), conditional=True)
    images = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    labels = jnp.array([0, 1])
    samples = jnp.array([[0.1, 0.9], [0.9, 0.1]])  # each nearer to the other's image
    target, memory = transport.targets(memory, images, samples, 0.1, jnp.int32(0), labels)
    np.testing.assert_allclose(target, images, atol=1e-6)  # nothing yet to go away from
    target, _ = transport.targets(memory, images, samples, 0.1, jnp.int32(1), labels)
    np.testing.assert_allclose(target, images, atol=1e-5)  # y + image - y


@pytest.mark.usefixtures("standard_promotion")  # optax's Adam: 1 - decay**count
@pytest.mark.parametrize("joint", [False, True])
def test_the_step_draws_its_samples_to_their_targets(joint):
    net = models.Perceptron((8,))
    recipe = train.Recipe(10, 1e-2, target="transport", bank=32)
    variables = models.init(net, jax.random.key(0), (2,))
    weights = losses.Weights(0.0, 0.0, 0.0, 1.0, temperature=0.2)
    objective = losses.Objective(losses.l2, use_matching=True, joint=joint)
    state = train.init_state(variables, recipe, weights, None, *recipe.empty_banks((2,)))
    step = jax.jit(train.make_train_step(net, objective, recipe))
    x = normal(1, 8, 2)
    state, first = step(state, {"image": x}, jax.random.key(2))
    samples = state.memory.samples.images[:8]
    new, metrics = step(state, {"image": x}, jax.random.key(3))
    drawn = new.memory.samples.images[8:16]
    np.testing.assert_array_equal(new.memory.samples.images[:8], samples)
    assert (np.asarray(new.memory.samples.images[16:]) == 0).all()
    target, _ = transport.targets(state.memory, x, drawn, 0.2, jnp.int32(1))
    np.testing.assert_allclose(metrics["matching"], np.square(target - drawn).mean(), rtol=1e-4)
    assert np.isfinite(float(first["matching"]))
    with pytest.raises(ValueError, match="target is 'far'"):
        train.Recipe(10, target="far")


def test_random_noise_differs_between_images_and_stays_below():
    recipe = train.Recipe(1, input_noise=0.4, random_noise=True)
    net = models.Perceptron((4,))
    variables = models.init(net, jax.random.key(0), (20, 20, 1))
    state = train.init_state(variables, recipe, losses.Weights())
    made = train.make_batch(
        state, {"image": jnp.zeros((200, 20, 20, 1))}, jax.random.key(0), recipe
    )
    deviations = np.asarray(made.inputs).std(axis=(1, 2, 3))
    assert deviations.max() < 0.45 and deviations.min() < 0.02
    np.testing.assert_allclose(deviations.mean(), 0.2, atol=0.02)


def test_spread_brings_a_narrow_cloud_to_the_width_of_the_images():
    shape = (3, 2)
    images = 2.0 + jax.random.normal(jax.random.key(0), (2048, *shape))
    narrow = 0.5 * jax.random.normal(jax.random.key(1), (2048, *shape))
    memory = memory_of(images, narrow)
    samples = narrow[:100]
    change = transport.spread(memory, samples, jax.random.key(2), 1000)
    wanted = 2.0 + samples
    assert np.abs(change - wanted).mean() < 0.15 < np.abs(wanted).mean()
    rest = transport.spread(memory_of(narrow, narrow), samples, jax.random.key(2), 50)
    np.testing.assert_allclose(rest, 0, atol=1e-4)
    empty = memory.replace(
        samples=memory.samples.replace(squares=memory.samples.squares.at[0].set(jnp.inf))
    )
    assert (transport.spread(empty, samples, jax.random.key(2), 50) == 0).all()


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("target", train.TARGETS)
def test_the_step_adds_the_spread_to_its_targets(target):
    net = models.Perceptron((8,))
    recipe = train.Recipe(10, 1e-2, target=target, pool=2, bank=16, slices=8)
    variables = models.init(net, jax.random.key(0), (2,))
    objective = losses.Objective(losses.l2, use_matching=True)
    step = jax.jit(train.make_train_step(net, objective, recipe))
    found = {}
    for weight in (0.0, 1.0):
        weights = losses.Weights(0.0, 0.0, 0.0, 1.0, spread=weight)
        state = train.init_state(variables, recipe, weights, None, *recipe.empty_banks((2,)))
        found[weight] = []
        for i in range(3):
            state, metrics = step(state, {"image": normal(i, 8, 2)}, jax.random.key(i))
            found[weight].append(float(metrics["matching"]))
    assert found[0.0][0] == found[1.0][0]  # the memory of 16 is full with the second batch
    assert found[0.0][1] != found[1.0][1]
