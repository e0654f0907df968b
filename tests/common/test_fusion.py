"""The limit to fusion: the same numbers, and elementwise work that is not repeated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.nets.fusion import gradient_once, once


def test_numbers_kinds_and_gradients_are_the_same():
    some = jnp.array([0.0, -0.0, jnp.nan, jnp.inf, 3.5])
    for x in (some, jnp.arange(4), jnp.array([True, False]), jnp.ones((2, 3), jnp.bfloat16)):
        found = jax.jit(once)(x)
        assert found.dtype == x.dtype
        np.testing.assert_array_equal(found, x)
    assert np.signbit(once(jnp.array(-0.0)))
    x = jnp.linspace(0, 1, 6).reshape(2, 3)
    slope = jax.grad(lambda x: jnp.sum(jnp.sin(once(x**2))))(x)
    np.testing.assert_allclose(slope, 2 * x * jnp.cos(x**2), rtol=1e-6)
    np.testing.assert_array_equal(jax.vmap(once)(x), x)
    _, rows = jax.lax.scan(lambda carry, row: (carry, once(row)), 0, x)
    np.testing.assert_array_equal(rows, x)


def sines(border: bool) -> int:
    """How often a compiled program computes a sine that two transpositions read."""

    def both(x):
        y = jnp.sin(x)
        y = once(y) if border else y
        return y.transpose(1, 0, 2) * 2, y.transpose(2, 0, 1) * 3

    text = jax.jit(both).lower(jnp.ones((8, 16, 32))).compile().as_text()
    return sum(" sine(" in line for line in text.splitlines())


def test_what_two_operations_read_is_computed_once():
    if jax.default_backend() != "cpu":
        pytest.skip("other compilers are left to themselves")
    assert sines(border=True) == 1
    assert sines(border=False) == 2, "the compiler no longer repeats work: `once` can go"


def test_other_devices_are_left_alone(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    x = jnp.ones(3)
    assert once(x) is x


def test_the_gradient_alone_is_computed_once():
    x = jnp.linspace(-1, 1, 24).reshape(2, 3, 4)
    np.testing.assert_array_equal(gradient_once(x), x)
    slope = jax.grad(lambda x: jnp.sum(jnp.sin(gradient_once(x**2))))(x)
    np.testing.assert_allclose(slope, 2 * x * jnp.cos(x**2), rtol=1e-6)
    if jax.default_backend() == "cpu":  # what has no border is inlined
        bare, bordered = (jax.jit(f).lower(x).as_text().count("inlineable") for f in (
            gradient_once, jax.grad(lambda x: jnp.sum(jnp.sin(gradient_once(x))))))
        assert bare == 0 and bordered > 0
