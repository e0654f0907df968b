"""DreamBooth-LoRA for many people at once, on a network whose picture of an adapter is known."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.checkpoint import Checkpointer
from common.loop import NonFiniteLoss
from tests.w2w import known_pictures as known
from w2w import lora, population
from w2w.diffusion import dreambooth
from w2w.diffusion.dreambooth import Problem, Recipe, Shared
from w2w.diffusion.latents import Photographs

pytestmark = pytest.mark.usefixtures("standard_promotion")  # optax.adamw: 1 - decay**count
PEOPLE, KEY = 3, jax.random.key(1)


@functools.cache
def setting(prediction="epsilon"):
    """(problem, shared arrays, latents [PEOPLE, h, w, c]), of which adapters of rank 1 know any."""
    apply_fn, params, features = known.network(prediction)
    # Alike, so that what is learnt for one prompt changes the other.
    class_features = features + jax.random.normal(jax.random.key(2), features.shape)
    shown = (class_features @ params["to_v"]["kernel"]).reshape(1, *known.SHAPE)
    shown = jnp.concatenate([shown, jnp.full_like(shown, jnp.nan)])  # padding
    images = Photographs(shown, jnp.zeros_like(shown), jnp.asarray(1), None)
    recipe = Recipe(400, 2, learning_rate=0.01)
    problem = Problem(apply_fn, known.process(prediction), known.LORA, recipe)
    base = (features @ params["to_v"]["kernel"]).reshape(1, *known.SHAPE)
    planted = base + jax.random.normal(jax.random.key(4), (PEOPLE, *known.SHAPE))
    return problem, Shared(params, features, class_features, images), planted


def photographs(latents, deviation=0.0):
    """One view of each person."""
    mean = latents[:, None]
    views = jnp.ones(len(latents), jnp.int32)
    return Photographs(mean, jnp.full_like(mean, deviation), views, None)


def changed(problem, **changes):
    return dataclasses.replace(problem, recipe=dataclasses.replace(problem.recipe, **changes))


def person(data, i):
    return jax.tree.map(lambda leaf: leaf[i], data)


@functools.cache
def evaluation(problem):
    return jax.jit(dreambooth.make_evaluation(problem, 8))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_planted_pictures_are_learnt(prediction):
    problem, shared, pictures = setting(prediction)
    data = photographs(pictures)

    def error(vectors):
        return evaluation(problem)(vectors, data, shared.params, shared.condition, KEY)

    found = dreambooth.train(data, shared, problem, KEY)
    layout = lora.Layout.from_params(shared.params, known.LORA)
    assert found.shape == (PEOPLE, layout.size) and found.dtype == jnp.float32
    base = error(jnp.zeros_like(found))
    assert np.all(base > 0.1) and np.all(error(found) < 1e-2 * base)
    adapters = population.unflatten_population(found, layout)
    known_now = jax.vmap(lambda one: known.picture(shared.params, shared.condition, one))(adapters)
    distance = jnp.abs(known_now - pictures).max()
    assert distance < 0.1 * jnp.abs(pictures - pictures[::-1]).max()


def test_prior_preservation_keeps_the_class():
    """Without it, or with weight 0, an adapter changes what the class prompt gives, too."""
    problem, shared, pictures = setting()
    of_class = photographs(jnp.repeat(shared.class_images.mean[:1], PEOPLE, axis=0))
    alone, class_condition = Shared(shared.params, shared.condition), shared.class_condition

    def error(shared, **changes):
        vectors = dreambooth.train(photographs(pictures), shared, changed(problem, **changes), KEY)
        given = of_class, shared.params, class_condition, KEY
        return float(evaluation(problem)(vectors, *given).mean())

    kept = error(shared, prior_weight=1.0)
    assert kept < 0.2 * error(shared, prior_weight=0.0)
    assert kept < 0.2 * error(alone, class_batch=0)


def test_people_at_once_equal_people_one_by_one():
    """Also with different numbers of photographs; padding is never looked at."""
    problem, shared, pictures = setting()
    problem = changed(problem, steps=5)
    mean = jnp.stack([pictures, pictures[::-1]], axis=1).at[1, 1].set(jnp.nan)
    views = jnp.asarray([2, 1, 2], jnp.int32)
    data = Photographs(mean, jnp.full_like(mean, 0.1), views, None)
    together = dreambooth.train(data, shared, problem, KEY)
    assert np.isfinite(together).all()
    for i in range(PEOPLE):
        one = person(data, slice(i, i + 1))
        alone = dreambooth.train(one, shared, problem, KEY)
        np.testing.assert_allclose(alone[0], together[i], atol=1e-5)
    assert np.abs(together[0] - together[2]).max() > 1e-3


def test_all_people_start_alike_and_share_their_random_numbers():
    problem, shared, pictures = setting()
    states = dreambooth.init(KEY, PEOPLE, shared.params, problem)
    for factors in states.params.values():
        assert np.ptp(factors["a"], axis=0).max() == 0 and np.abs(factors["a"]).min() > 0
        assert not factors["b"].any()
    data = photographs(pictures, deviation=0.5)
    draws = [dreambooth.draw(KEY, person(data, i), shared, problem) for i in range(PEOPLE)]
    other = dreambooth.draw(jax.random.key(9), person(data, 0), shared, problem)
    assert draws[0].clean.shape == (2 + 1, *known.SHAPE)
    for i, drawn in enumerate(draws):
        for name in ("noise", "timesteps", "condition"):
            np.testing.assert_array_equal(getattr(drawn, name), getattr(draws[0], name))
        np.testing.assert_array_equal(drawn.clean[2], shared.class_images.mean[0])
        sampled = drawn.clean[:2] - pictures[i][None]
        np.testing.assert_allclose(sampled, draws[0].clean[:2] - pictures[:1], atol=1e-5)
        assert 0.3 < np.std(sampled) < 0.7
    assert np.abs(other.clean[:2] - draws[0].clean[:2]).min() > 0  # sampled anew in each step
    assert np.abs(other.noise - draws[0].noise).min() > 0
    np.testing.assert_array_equal(draws[0].condition[:2], np.repeat(shared.condition, 2, axis=0))
    np.testing.assert_array_equal(draws[0].condition[2:], shared.class_condition)


def test_the_loss_falls_on_a_fixed_draw():
    """And only the adapter has a gradient."""
    problem, shared, pictures = setting()
    states = dreambooth.init(KEY, PEOPLE, shared.params, problem)
    state = person(states, 0)
    drawn = dreambooth.draw(KEY, person(photographs(pictures), 0), shared, problem)

    @jax.jit
    def step(state):
        value, (gradient, others) = jax.value_and_grad(dreambooth.loss, argnums=(0, 2))(
            state.params, drawn, shared.params, problem
        )
        return state.apply_gradients(gradient), value, others

    values = []
    for _ in range(60):
        state, value, others = step(state)
        values.append(float(value))
    assert values[-1] < 0.5 * values[0] and np.all(np.diff(values[10:]) < 0)
    for leaf in jax.tree.leaves(others):
        np.testing.assert_array_equal(leaf, 0)


def test_a_stopped_training_continues_to_the_bit(tmp_path):
    problem, shared, pictures = setting()
    args = photographs(pictures, 0.1), shared, changed(problem, steps=7), KEY
    expected = dreambooth.train(*args)
    checkpointer = Checkpointer(tmp_path, keep=1)
    common = dict(checkpointer=checkpointer, save_every=2, log_every=1)
    with pytest.raises(KeyboardInterrupt):
        dreambooth.train(*args, writer=known.Stops(5), **common)
    assert checkpointer.latest_step == 4
    second = known.Stops(None)
    found = dreambooth.train(*args, writer=second, **common)
    checkpointer.close()
    assert second.first == 4
    np.testing.assert_array_equal(found, expected)


def test_what_cannot_be_trained():
    problem, shared, pictures = setting()
    data = photographs(pictures.at[1].set(jnp.inf))
    with pytest.raises(NonFiniteLoss, match=r"step 0 \(entry 1 of 3"):
        dreambooth.train(data, shared, changed(problem, steps=3), KEY)
    data = photographs(pictures)
    with pytest.raises(ValueError, match="class_batch = 1 without class images"):
        dreambooth.train(data, Shared(shared.params, shared.condition), problem, KEY)
    with pytest.raises(ValueError, match="no masks"):
        dreambooth.train(data._replace(mask=data.mean), shared, problem, KEY)
    for name, value in dict(steps=0, batch=0, class_batch=-1, prior_weight=-1.0, clip=0.0).items():
        with pytest.raises(ValueError, match=f"{name} = {value}"):
            Recipe(**{name: value})
