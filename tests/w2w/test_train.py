"""Many adapters at once equal one after another; the loss is DreamBooth's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.w2w import small
from w2w import losses, train

# optax.adam: 1 - decay**count
pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(scope="module")
def setting():
    tree = small.params()
    frames = np.random.default_rng(0).normal(size=(3, 4, *small.MODEL.latent_shape))
    return tree, small.shared(tree), jnp.asarray(frames, jnp.float32)


def run(count, setting, recipe, steps=3, offset=0):
    _, shared, frames = setting
    step = jax.jit(train.make_population_step(small.MODEL, small.LORA, recipe))
    states = train.init_population(jax.random.key(1), count, shared, small.LORA, recipe)
    history = []
    for _ in range(steps):
        states, values = step(states, frames[offset : offset + count], jax.random.key(2), shared)
        history.append(values)
    return states, jnp.stack(history)


def test_population_equals_separate_runs(setting):
    together, losses_together = run(3, setting, small.recipe())
    for i in range(3):
        alone, losses_alone = run(1, setting, small.recipe(), offset=i)
        np.testing.assert_allclose(losses_together[:, i], losses_alone[:, 0], rtol=1e-5)
        for a, b in zip(
            jax.tree.leaves(together.params), jax.tree.leaves(alone.params), strict=True
        ):
            np.testing.assert_allclose(a[i], b[0], atol=2e-4)  # 2 % of one step of Adam


def test_adapters_of_a_population_start_in_one_gauge_and_part(setting):
    recipe = small.recipe()
    start = train.init_population(jax.random.key(1), 3, setting[1], small.LORA, recipe)
    name = next(iter(start.params))
    assert (start.params[name]["a"][0] == start.params[name]["a"][2]).all()
    assert (start.params[name]["b"] == 0).all()
    end, _ = run(3, setting, recipe)
    assert float(jnp.abs(end.params[name]["b"][0] - end.params[name]["b"][1]).max()) > 1e-4


def test_training_lowers_the_loss_on_a_fixed_draw(setting):
    _, shared, frames = setting
    recipe = small.recipe(num_steps=40, learning_rate=5e-2, class_batch=0)
    states, _ = run(1, setting, recipe, steps=40)
    start = train.init_population(jax.random.key(1), 1, shared, small.LORA, recipe)

    def score(adapter):
        keys = jax.random.split(jax.random.key(9), 32)
        return jax.vmap(
            lambda k: train.person_loss(
                adapter, frames[0], k, shared, small.MODEL, small.LORA, recipe
            )
        )(keys).mean()

    before, after = (score(jax.tree.map(lambda x: x[0], s.params)) for s in (start, states))
    assert float(after) < 0.9 * float(before)


def test_base_weights_are_not_batched(setting):
    _, shared, frames = setting
    recipe = small.recipe()
    states = train.init_population(jax.random.key(1), 3, shared, small.LORA, recipe)
    step = train.make_population_step(small.MODEL, small.LORA, recipe)
    text = str(jax.make_jaxpr(step)(states, frames, jax.random.key(2), shared))
    assert "f32[3,3,3,8,16]" not in text, "a convolution kernel has a population axis"


def test_dreambooth_is_the_weighted_sum_of_its_halves():
    def predict(noisy, times, text):
        return 0.5 * noisy

    rng = np.random.default_rng(0)
    person = jnp.asarray(rng.normal(size=(2, 4, 4, 1)), jnp.float32)
    others = jnp.asarray(rng.normal(size=(3, 4, 4, 1)), jnp.float32)
    text = jnp.zeros((5, 2, 2))
    key = jax.random.key(0)
    both = losses.denoising(
        predict, jnp.concatenate([person, others]), text, key, small.SCHEDULE
    )
    found = losses.dreambooth(
        predict, person, text[:2], others, text[2:], key, small.SCHEDULE, 0.25
    )
    np.testing.assert_allclose(found, both[:2].mean() + 0.25 * both[2:].mean(), rtol=1e-6)


def test_people_share_their_noise(setting):
    # Two people with the same photographs get the same adapter; the noise is not theirs.
    _, shared, frames = setting
    recipe = small.recipe()
    step = jax.jit(train.make_population_step(small.MODEL, small.LORA, recipe))
    states = train.init_population(jax.random.key(1), 2, shared, small.LORA, recipe)
    same = jnp.stack([frames[0], frames[0]])
    for _ in range(3):
        states, values = step(states, same, jax.random.key(2), shared)
    np.testing.assert_allclose(values[0], values[1], rtol=1e-6)
    for leaf in jax.tree.leaves(states.params):
        np.testing.assert_allclose(leaf[0], leaf[1], atol=1e-4)  # of steps of 1e-2


def test_the_moving_average_is_the_adapter(setting):
    recipe = small.recipe(ema_decay=0.9)
    states, _ = run(2, setting, recipe)
    name = next(iter(states.params))
    kept, last = states.eval_params[name]["b"], states.params[name]["b"]
    assert 0 < float(jnp.abs(kept).max()) < float(jnp.abs(last).max())
