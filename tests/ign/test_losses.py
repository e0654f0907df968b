"""Closed forms of the three terms, their routing, the clamp, and gradients in three evaluations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ign import gradients, losses, models

SIZE = 5


def half_square(x, y):
    """The distance of the closed forms: half the sum of squares, `[batch]`."""
    return 0.5 * jnp.sum(jnp.square(x - y), axis=-1)


def linear(params, x, condition=None):
    del condition
    return jnp.matmul(x, params.T, precision="highest")


@pytest.fixture
def problem():
    keys = jax.random.split(jax.random.key(0), 3)
    w = jax.random.normal(keys[0], (SIZE, SIZE)) * 0.5
    x, z = (jax.random.normal(k, (7, SIZE)) for k in keys[1:])
    return w, losses.Batch(x, x, z)


def test_gradient_of_idempotence_for_a_linear_map(problem):
    w, batch = problem
    gradient = jax.grad(lambda p: losses.idempotence(linear, p, batch, half_square).mean())(w)
    a = w - jnp.eye(SIZE)
    second_moment = batch.noise.T @ batch.noise / len(batch.noise)
    np.testing.assert_allclose(gradient, a.T @ a @ w @ second_moment, rtol=1e-4, atol=1e-5)


def test_gradient_of_tightness_for_a_linear_map(problem):
    w, batch = problem
    gradient = jax.grad(lambda p: losses.tightness(linear, p, batch, half_square).mean())(w)
    y = batch.noise @ w.T
    expected = -(w - jnp.eye(SIZE)) @ (y.T @ y) / len(y)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)


def test_routing_changes_the_gradient(problem):
    w, batch = problem

    def unrouted(p):
        y = linear(p, batch.noise)
        return half_square(linear(p, y), y).mean()

    free = jax.grad(unrouted)(w)
    first = jax.grad(lambda p: losses.idempotence(linear, p, batch, half_square).mean())(w)
    second = jax.grad(lambda p: -losses.tightness(linear, p, batch, half_square).mean())(w)
    np.testing.assert_allclose(free, first + second, rtol=1e-4, atol=1e-5)
    assert float(jnp.abs(free - first).max()) > 0.1
    assert float(jnp.abs(free - second).max()) > 0.1


def test_idempotence_and_tightness_have_one_value(problem):
    w, batch = problem
    i = losses.idempotence(linear, w, batch, losses.l1)
    np.testing.assert_allclose(i, -losses.tightness(linear, w, batch, losses.l1), atol=1e-6)
    assert float(i.min()) > 0.01


def test_held_parameters_get_no_gradient(problem):
    """Each term with its two applications given different parameters: one side's gradient is 0."""
    w, batch = problem

    def split(p, x, condition):
        # The first application sees the noise itself; p holds a set for each application.
        return linear(p["first" if x is batch.noise else "second"], x)

    both = {"first": w, "second": w + 0.1}
    gradient = jax.grad(lambda p: losses.idempotence(split, p, batch, losses.l2).mean())(both)
    assert (gradient["second"] == 0).all() and (gradient["first"] != 0).any()
    gradient = jax.grad(lambda p: losses.tightness(split, p, batch, losses.l2).mean())(both)
    assert (gradient["first"] == 0).all() and (gradient["second"] != 0).any()


def test_identity_and_constant_map(problem):
    _, batch = problem
    for term in (losses.reconstruction, losses.idempotence, losses.tightness, losses.purified):
        value = term(lambda p, x, c: x, None, batch, losses.l1)
        np.testing.assert_allclose(value, 0, atol=1e-6, err_msg=term.__name__)

    def constant(params, x, condition):
        return jnp.ones_like(x)

    assert (losses.idempotence(constant, None, batch, losses.l2) == 0).all()
    assert (losses.reconstruction(constant, None, batch, losses.l2) > 0.1).all()


def test_purified_target_is_quadratically_nearer_to_idempotent():
    projection = jnp.diag(jnp.array([1.0, 1.0, 0.0]))
    k = projection + 0.01 * jax.random.normal(jax.random.key(0), (3, 3))
    z = jnp.eye(3)
    batch = losses.Batch(z, z, z)
    target = {}

    def metric(y, towards):
        target["k"] = towards.T
        return losses.l2(y, towards)

    losses.purified(linear, k, batch, metric)
    after, before = (float(jnp.abs(m @ m - m).max()) for m in (target["k"], k))
    assert after < 20 * before**2 and before > 3e-3
    gradient = jax.grad(lambda p: losses.purified(linear, p, batch, losses.l2).mean())(k)
    expected = 2 * (k - target["k"]) / 9  # the target is held fixed
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_clamp_is_bounded_with_slope_one_at_zero():
    value = jnp.linspace(-50.0, 50.0, 101)
    error = jnp.full_like(value, 0.3)
    bounded = losses.smooth_clamp(value, error, 1.5)
    assert float(jnp.abs(bounded).max()) <= 1.5 * 0.3 + 1e-6
    slope = jax.grad(losses.smooth_clamp)
    assert float(slope(0.0, 0.3, 1.5)) == pytest.approx(1.0)
    u = -0.5 / 0.45
    assert float(slope(-0.5, 0.3, 1.5)) == pytest.approx(1 / np.cosh(u) ** 2, rel=1e-5)
    by_error = jax.grad(losses.smooth_clamp, argnums=1)(-0.5, 0.3, 1.5)
    assert float(by_error) == pytest.approx(1.5 * (np.tanh(u) - u / np.cosh(u) ** 2), rel=1e-5)
    assert -1.5 < float(by_error) <= 0


@pytest.mark.parametrize("argument", [0, 1])
def test_clamp_is_finite_without_error_and_without_bound(argument):
    slope = jax.grad(losses.smooth_clamp, argnums=argument)
    assert float(losses.smooth_clamp(-0.5, 0.0, 1.5)) == 0
    assert float(slope(-0.5, 0.0, 1.5)) == 0
    assert float(losses.smooth_clamp(-0.5, 0.3, jnp.inf)) == -0.5
    assert float(slope(-0.5, 0.3, jnp.inf)) == (1 if argument == 0 else 0)


@pytest.fixture(scope="module")
def perceptron():
    net = models.Perceptron((24, 12))
    params = models.init(net, jax.random.key(0), (6,))["params"]
    keys = jax.random.split(jax.random.key(1), 4)
    params = jax.tree.map(lambda a: a + 0.3 * jax.random.normal(keys[0], a.shape), params)
    x, z = (jax.random.normal(k, (16, 6)) for k in keys[1:3])
    matched = jax.random.normal(keys[3], (16, 6))

    def apply(params, images, condition):
        return net.apply({"params": params}, images)

    return apply, params, losses.Batch(x, x + 0.1, z, None, matched)


@pytest.mark.parametrize("independent", [True, False])
@pytest.mark.parametrize(
    ("form", "clamp", "tightness", "match"),
    [
        ("drift", 1.5, 2.5, ""),
        ("drift", 0.05, 2.5, "apart"),  # saturated
        ("drift", 1.5, 2.5, "joint"),
        ("drift", np.inf, 2.5, ""),
        ("drift", 1.5, 0.0, ""),
        ("purified", 1.5, 2.5, "apart"),
    ],
)
def test_shared_forward_equals_four_passes(perceptron, form, clamp, tightness, match, independent):
    apply, params, batch = perceptron
    objective = losses.Objective(
        losses.l2, losses.l1, idempotence=form, use_matching=bool(match), joint=match == "joint"
    )
    weights = losses.Weights(tightness=tightness, matching=3.0, clamp=clamp)

    @jax.jit
    def both(params, batch):
        return (
            gradients.four_pass(apply, params, batch, weights, objective),
            gradients.shared_forward(apply, params, batch, weights, objective, independent),
        )

    (expected, terms), (found, shared) = both(params, batch)
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    assert scale > 0.1
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(b, a, atol=1e-5 * scale)
    assert terms.keys() == shared.keys()
    for name in terms:
        np.testing.assert_allclose(shared[name], terms[name], rtol=1e-5, err_msg=name)


def test_three_evaluations_cost_less_than_four_passes(perceptron):
    apply, params, batch = perceptron

    def flops(function):
        objective = losses.Objective(losses.l2)
        jitted = jax.jit(lambda p: function(apply, p, batch, losses.Weights(), objective)[0])
        return jitted.lower(params).compile().cost_analysis()["flops"]

    ratio = flops(gradients.shared_forward) / flops(gradients.four_pass)
    assert ratio < 0.95  # 9 / 11 of the products, and the same elementwise work


def test_unknown_form_is_refused():
    with pytest.raises(ValueError, match="'cubic', expected one of"):
        losses.Objective(losses.l1, idempotence="cubic")
