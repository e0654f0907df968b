"""Inversion into a space of Stable Diffusion adapters, on a network whose best adapter is known.

The photograph of a planted model has loss zero there and nowhere else.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.checkpoint import Checkpointer
from common.loop import NonFiniteLoss
from tests.w2w import known_pictures as known
from w2w import components, lora, subspace
from w2w.diffusion import inversion
from w2w.diffusion.inversion import Photographs, Problem, Recipe, Shared

pytestmark = pytest.mark.usefixtures("standard_promotion")  # optax.adam: 1 - decay**count
K = 3


@functools.cache
def setting(prediction="epsilon"):
    """(problem, shared arrays, planted coefficients [3, K])."""
    apply_fn, params, features = known.network(prediction)
    rng = np.random.default_rng(0)
    layout = lora.Layout.from_params(params, known.LORA)
    basis = np.linalg.qr(rng.normal(size=(layout.size, K)))[0].T
    space = subspace.Subspace(
        mean=jnp.asarray(0.5 * rng.normal(size=layout.size), jnp.float32),
        std=jnp.asarray(0.1 * rng.normal(size=layout.size), jnp.float32),
        components=jnp.asarray(basis, jnp.float32),
        variances=jnp.asarray([9.0, 4.0, 1.0]),
        n=9,
    )

    problem = Problem(apply_fn, known.process(prediction), layout, known.LORA, Recipe(300, 4, 0.1))
    planted = jnp.asarray(rng.normal(size=(3, K)) * [3.0, 2.0, 1.0], jnp.float32)
    return problem, Shared(space, params, features), planted


@functools.partial(jax.jit, static_argnums=1)
def pictures(shared, problem, betas):
    """Latents [people, h, w, c] that the models at ``betas`` know."""

    def one(beta):
        adapter = lora.unflatten(subspace.unproject(shared.space, beta), problem.layout)
        return known.picture(shared.params, shared.condition, adapter)

    return jax.vmap(one)(betas)


def photographs(latents, mask=None):
    mean = latents[:, None]
    count = jnp.ones(len(latents), jnp.int32)
    return Photographs(mean, jnp.zeros_like(mean), count, mask)


@functools.cache
def evaluation(problem):
    """Losses of coefficients [3, K] on fixed draws."""
    return jax.jit(inversion.make_evaluation(problem, 8))


def changed(problem, **changes):
    return dataclasses.replace(problem, recipe=dataclasses.replace(problem.recipe, **changes))


SEEDS = jnp.asarray([11, 12, 13], jnp.uint32)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_planted_coefficients_are_recovered(prediction):
    problem, shared, planted = setting(prediction)
    data = photographs(pictures(shared, problem, planted))

    def at(beta):
        return evaluation(problem)(beta, data, SEEDS, shared, jax.random.key(5))

    mean_model = at(jnp.zeros_like(planted))
    np.testing.assert_allclose(at(planted), 0, atol=1e-8 * float(mean_model.min()))
    found = inversion.invert(data, SEEDS, shared, problem, jax.random.key(1))
    assert np.all(at(found) < 1e-3 * mean_model)
    np.testing.assert_allclose(found, planted, atol=0.05)


def test_more_components_fit_no_worse():
    problem, shared, planted = setting()
    data = photographs(pictures(shared, problem, planted))
    losses = []
    for k in (1, 2, 3):
        smaller = shared._replace(space=subspace.truncate(shared.space, k))
        found = inversion.invert(data, SEEDS, smaller, problem, jax.random.key(1))
        assert found.shape == (3, k)
        found = jnp.pad(found, [(0, 0), (0, K - k)])
        losses.append(evaluation(problem)(found, data, SEEDS, shared, jax.random.key(5)))
    assert np.all(losses[1] < losses[0]) and np.all(losses[2] < 1e-2 * losses[1])


def test_people_at_once_equal_people_one_by_one():
    """Also with different numbers of photographs; padding is never looked at."""
    problem, shared, planted = setting()
    problem = changed(problem, steps=5)
    latents = pictures(shared, problem, planted)
    mean = jnp.stack([latents, latents[::-1]], axis=1)
    mean = mean.at[1, 1].set(jnp.nan)
    mask = jnp.ones((3, 2, 4, 4, 1)).at[:, :, :2].set(0.5)
    data = Photographs(mean, 0.1 * jnp.ones_like(mean), jnp.asarray([2, 1, 2], jnp.int32), mask)
    together = inversion.invert(data, SEEDS, shared, problem, jax.random.key(1))
    assert np.isfinite(together).all()
    for i in range(3):
        one = jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], data)
        alone = inversion.invert(one, SEEDS[i : i + 1], shared, problem, jax.random.key(1))
        np.testing.assert_allclose(alone[0], together[i], atol=1e-5)
    assert np.abs(together[0] - together[2]).max() > 0.01


def test_a_mask_hides_the_rest_exactly():
    problem, shared, planted = setting()
    data = photographs(pictures(shared, problem, planted))
    mask = jnp.zeros((1, 4, 4, 1)).at[:, 1:3, 1:].set(1.0)
    one = jax.tree.map(lambda leaf: leaf[0], data)._replace(mask=mask)
    spoiled = one._replace(mean=jnp.where(mask == 0, 1e3, one.mean))
    value = jax.jit(jax.value_and_grad(
        lambda beta, data: inversion.loss(beta, data, jax.random.key(3), shared, problem)
    ))
    for found, expected in zip(value(jnp.ones(K), spoiled), value(jnp.ones(K), one), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert value(jnp.ones(K), one._replace(mask=None))[0] > value(jnp.ones(K), one)[0] > 0


def test_only_coefficients_have_a_gradient():
    problem, shared, planted = setting()
    one = jax.tree.map(lambda x: x[0], photographs(pictures(shared, problem, planted)))

    def loss(beta, shared):
        return inversion.loss(beta, one, jax.random.key(3), shared, problem)

    gradient, others = jax.jit(jax.grad(loss, argnums=(0, 1)))(jnp.ones(K), shared)
    assert np.abs(gradient).min() > 0
    for leaf in jax.tree.leaves((others.space, others.params)):
        np.testing.assert_array_equal(leaf, 0)


def test_units_of_deviations():
    """The same point, and the gradient in its units; a learning rate then fits all components."""
    problem, shared, planted = setting()
    one = jax.tree.map(lambda x: x[0], photographs(pictures(shared, problem, planted)))
    scaled, deviation = changed(problem, units="deviations"), np.array([3.0, 2.0, 1.0], np.float32)

    def value(values, problem):
        return inversion.loss(values, one, jax.random.key(3), shared, problem)

    both = jax.jit(jax.value_and_grad(value), static_argnums=1)
    raw, found = both(deviation * planted[1], problem), both(planted[1], scaled)
    np.testing.assert_allclose(found[0], raw[0], rtol=1e-5)
    np.testing.assert_allclose(found[1], deviation * raw[1], rtol=1e-4)


def test_a_stopped_inversion_continues_to_the_bit(tmp_path):
    problem, shared, planted = setting()
    problem = changed(problem, steps=7)
    data = photographs(pictures(shared, problem, planted))
    args = data, SEEDS, shared, problem, jax.random.key(1)
    expected = inversion.invert(*args)
    checkpointer = Checkpointer(tmp_path, keep=1)
    common = dict(checkpointer=checkpointer, save_every=2, log_every=1)
    with pytest.raises(KeyboardInterrupt):
        inversion.invert(*args, writer=known.Stops(5), **common)
    assert checkpointer.latest_step == 4
    second = known.Stops(None)
    found = inversion.invert(*args, writer=second, **common)
    checkpointer.close()
    assert second.first == 4
    np.testing.assert_array_equal(found, expected)


def test_a_loss_that_is_not_finite_stops():
    problem, shared, planted = setting()
    data = photographs(pictures(shared, problem, planted).at[1].set(jnp.inf))
    with pytest.raises(NonFiniteLoss, match=r"step 0 \(entry 1 of 3"):
        inversion.invert(data, SEEDS, shared, changed(problem, steps=3), jax.random.key(1))


@pytest.mark.parametrize("k", [3, 2 * components.ROWS, 2 * components.ROWS + 9])
def test_products_with_half_precision_components(k):
    """Equal those with the same values in float32, and so do their gradients."""
    rng = np.random.default_rng(0)
    half = jnp.asarray(rng.normal(size=(k, 40)), jnp.bfloat16)
    beta = jnp.asarray(rng.normal(size=(2, k)), jnp.float32)
    target = jnp.asarray(rng.normal(size=(2, 40)), jnp.float32)

    def value(beta, components_):
        vector = components.combine(beta, components_)
        back = components.correlate(jnp.sin(vector) - target, components_)
        return jnp.sum(jnp.sin(back))

    for beta_ in (beta, beta[0]):
        if beta_.ndim == 1:
            target = target[0]
        found = jax.jit(jax.value_and_grad(value))(beta_, half)
        expected = jax.jit(jax.value_and_grad(value))(beta_, half.astype(jnp.float32))
        np.testing.assert_allclose(found[0], expected[0], rtol=1e-3, atol=1e-3)
        scale = float(jnp.abs(expected[1]).max())
        np.testing.assert_allclose(found[1], expected[1], atol=1e-4 * scale)
    mapped = jax.vmap(components.combine, in_axes=(0, None))(beta, half)
    np.testing.assert_allclose(mapped, components.combine(beta, half), rtol=1e-5, atol=1e-4)


def test_ten_thousand_components_have_no_float32_copy():
    """At the published size that would be 4 GB; on a CPU there is one of half precision, 2 GB."""
    shapes = [((10_000,), jnp.float32), ((10_000, 99_648), jnp.bfloat16), ((99_648,), jnp.float32)]

    def value(beta, components_, weights):
        return jnp.sum(jnp.sin(components.combine(beta, components_)) * weights)

    arguments = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
    program = jax.jit(jax.value_and_grad(value)).lower(*arguments).compile()
    assert program.memory_analysis().temp_size_in_bytes < 2.5e9


def test_a_narrow_space_unprojects_its_rounded_components():
    _, shared, planted = setting()
    narrow = subspace.narrow(shared.space, jnp.bfloat16)
    rounded = narrow.replace(components=narrow.components.astype(jnp.float32))
    assert narrow.components.dtype == jnp.bfloat16 and narrow.components.nbytes == 2 * K * 38
    np.testing.assert_allclose(
        subspace.unproject(narrow, planted), subspace.unproject(rounded, planted), atol=1e-6
    )
    assert np.abs(subspace.unproject(narrow, planted)
                  - subspace.unproject(shared.space, planted)).max() > 1e-5
    vectors = subspace.unproject(narrow, planted)
    np.testing.assert_allclose(
        subspace.project(narrow, vectors), subspace.project(rounded, vectors), rtol=1e-4, atol=1e-4
    )


def test_recipes_that_mean_nothing():
    for changes, message in ((dict(units="sigma"), "'sigma'"), (dict(steps=0), "steps = 0")):
        with pytest.raises(ValueError, match=message):
            Recipe(**changes)
