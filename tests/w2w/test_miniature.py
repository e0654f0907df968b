"""The paper in miniature: known identities, adapters trained on them, space, edits, inversion.

An identity is a picture with three attributes, its photographs are the picture and noise. Scores
are exact: the picture that an adapter draws is sampled and compared with the true one.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.w2w import known_pictures as known
from w2w import directions, lora, subspace
from w2w.diffusion import inversion, objectives, sampling
from w2w.diffusion.inversion import Photographs, Problem, Recipe, Shared
from w2w.diffusion.schedulers import DDIM

# optax.adam: 1 - decay**count
pytestmark = pytest.mark.usefixtures("standard_promotion")
MODELS, PEOPLE, VIEWS, NOISE, ATTRIBUTES = 40, 8, 10, 0.5, 3


@functools.cache
def world():
    """(apply function, parameters, features, layout, attribute pictures [3, h, w, c])."""
    apply_fn, params, features = known.network()
    layout = lora.Layout.from_params(params, known.LORA)
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(np.prod(known.SHAPE), ATTRIBUTES)))[0].T
    return apply_fn, params, features, layout, 2 * basis.reshape(ATTRIBUTES, *known.SHAPE)


@functools.cache
def identities():
    """Attributes [n, 3], true pictures and photographs [n, views, h, w, c]; the last are new."""
    _, params, features, _, factors = world()
    base = np.asarray((features @ params["to_v"]["kernel"]).reshape(known.SHAPE))
    rng = np.random.default_rng(1)
    attributes = rng.normal(size=(MODELS + PEOPLE, ATTRIBUTES))
    pictures = base + np.einsum("nk,k...->n...", attributes, factors)
    views = rng.normal(size=(MODELS + PEOPLE, VIEWS, *known.SHAPE))
    return attributes, pictures, (pictures[:, None] + NOISE * views).astype(np.float32), base


@jax.jit
def train(photographs):
    """Flat adapters [n, D] of DreamBooth-LoRA on photographs [n, views, h, w, c], all at once."""
    apply_fn, params, features, layout, _ = world()
    start = lora.init(jax.random.key(2), params, known.LORA)
    optimiser = optax.adam(0.02)

    def one(images):
        def loss(adapter, key):
            pick, noise_key = jax.random.split(key)
            latents = images[jax.random.randint(pick, (4,), 0, len(images))]
            noise, times = objectives.draw(noise_key, latents, known.process())
            predict = lora.adapted(apply_fn, params, adapter, known.LORA)
            return objectives.dreambooth(
                predict, latents, jnp.repeat(features, 4, axis=0), noise, times, known.process()
            )

        def step(carry, key):
            adapter, state = carry
            updates, state = optimiser.update(jax.grad(loss)(adapter, key), state)
            return (optax.apply_updates(adapter, updates), state), None

        keys = jax.random.split(jax.random.key(3), 300)  # one noise for all, as in the original
        (adapter, _), _ = jax.lax.scan(step, (start, optimiser.init(start)), keys)
        return lora.flatten(adapter, layout)

    return jax.vmap(one)(photographs)


@jax.jit
def drawn(vectors):
    """Pictures [n, h, w, c] that DDIM samples with adapters [n, D]."""
    apply_fn, params, features, layout, _ = world()

    def one(vector):
        predict = lora.adapted(apply_fn, params, lora.unflatten(vector, layout), known.LORA)
        latents = jax.random.normal(jax.random.key(4), (1, *known.SHAPE))

        def denoise(x, t):
            return predict(x, jnp.full((1,), t, jnp.int32), features)

        return sampling.sample(denoise, latents, DDIM(known.process()), 10)[0]

    return jax.vmap(one)(vectors)


def measured(vectors):
    """Attributes [n, 3] of the drawn pictures, by projection."""
    factors = world()[-1].reshape(ATTRIBUTES, -1)
    differences = (np.asarray(drawn(vectors)) - identities()[-1]).reshape(len(vectors), -1)
    return differences @ factors.T / np.sum(factors**2, axis=1)


def likeness(vectors):
    """Cosine of drawn and true pictures of the new people, from the base picture."""
    _, pictures, _, base = identities()
    both = np.asarray(drawn(vectors)), pictures[MODELS:]
    a, b = ((x - base).reshape(PEOPLE, -1) for x in both)
    return np.sum(a * b, axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@functools.cache
def models():
    return np.asarray(train(identities()[2][:MODELS]))


def inverted(count):
    """Adapters of the new people from one photograph, by a space of ``count`` models."""
    apply_fn, params, features, layout, _ = world()
    space = subspace.fit(models()[:count], min(count - 1, ATTRIBUTES))
    recipe = Recipe(steps=300, batch=4, learning_rate=0.1)
    problem = Problem(apply_fn, known.process(), layout, known.LORA, recipe)
    one = jnp.asarray(identities()[2][MODELS:, :1])
    data = Photographs(one, jnp.zeros_like(one), jnp.ones(PEOPLE, jnp.int32), None)
    shared = Shared(space, params, features)
    seeds = jnp.arange(PEOPLE, dtype=jnp.uint32)
    found = inversion.invert(data, seeds, shared, problem, jax.random.key(5))
    return subspace.unproject(space, found)


def test_trained_adapters_draw_their_identity():
    errors = np.abs(measured(models()) - identities()[0][:MODELS])
    assert errors.mean() < 0.15 and errors.max() < 0.6


def test_one_photograph_is_enough_for_the_space_and_not_for_an_adapter():
    """The table of the paper: inversion of one photograph, LoRA on one, LoRA on ten."""
    single = likeness(train(identities()[2][MODELS:, :1]))
    several = likeness(train(identities()[2][MODELS:]))
    space = likeness(inverted(MODELS))
    assert space.mean() > single.mean() + 0.1 and np.all(space > single)
    assert space.mean() > several.mean() - 0.05


def test_more_models_identify_better():
    scores = [likeness(inverted(count)).mean() for count in (3, 8, MODELS)]
    assert scores[0] + 0.1 < scores[1] < scores[2] - 0.05 and scores[2] > 0.8


def test_samples_are_new_identities_of_the_same_kind():
    space = subspace.fit(models(), ATTRIBUTES)
    found = measured(subspace.unproject(space, subspace.sample(jax.random.key(6), space, 500)))
    expected = identities()[0][:MODELS]
    np.testing.assert_allclose(found.std(axis=0), expected.std(axis=0), rtol=0.2)
    np.testing.assert_allclose(found.mean(axis=0), expected.mean(axis=0), atol=0.2)


def test_an_edit_changes_its_attribute_and_keeps_the_others():
    space = subspace.fit(models(), ATTRIBUTES)
    coefficients = np.asarray(subspace.project(space, jnp.asarray(models())))
    labels = identities()[0][:MODELS]
    for attribute in range(ATTRIBUTES):
        raw = directions.least_squares(coefficients, labels[:, attribute], intercept=True)
        direction = directions.calibrate(raw, coefficients)
        edits = [directions.edit(coefficients[:10], direction, s) for s in (-1.0, 0.0, 1.0)]
        low, middle, high = (measured(subspace.unproject(space, edit)) for edit in edits)
        assert np.all(low[:, attribute] < middle[:, attribute])
        assert np.all(middle[:, attribute] < high[:, attribute])
        effect = np.abs((high - low).mean(axis=0))
        assert np.delete(effect, attribute).max() < 0.4 * effect[attribute]
