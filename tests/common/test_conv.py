"""Convolution with gradients that stay fast inside loops: equal to `lax` in every form."""

import itertools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.nets import conv

NUMBERS = ("NHWC", "HWIO", "NHWC")
FORMS = [
    form for form in itertools.product(
        [(1, 1), (2, 2), (2, 1)],
        ["SAME", "VALID", ((1, 1), (2, 0)), ((3, 2), (0, 1)), ((-1, 0), (0, -2))],
        [(1, 1), (2, 2)], [(1, 1), (2, 1)], [(3, 3), (4, 1)])
    if not (isinstance(form[1], str) and form[2] != (1, 1))
]


def arrays(*shapes):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


@pytest.mark.parametrize("channels", [2, 5])  # few are products of matrices
@pytest.mark.parametrize("kernel", [(3, 3), (4, 1)])
def test_values_and_gradients_are_those_of_lax(kernel, channels):
    x, w = arrays((2, 9, 8, channels), (*kernel, channels, 3))
    forms = [form[:4] for form in FORMS if form[4] == kernel]
    assert len(forms) == 48

    def all_forms(function):
        def run(x, w):
            found = []
            for form in forms:
                y, back = jax.vjp(lambda a, b, form=form: function(a, b, *form, NUMBERS), x, w)
                found.append((y, *back(jnp.sin(y) + 1)))
            return found

        return jax.jit(run)(x, w)

    expected, found = all_forms(jax.lax.conv_general_dilated), all_forms(conv.conv_general_dilated)
    for form, one, other in zip(forms, expected, found, strict=True):
        for a, b in zip(one, other, strict=True):
            assert a.shape == b.shape, form
            np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-4, err_msg=str(form))


@pytest.mark.parametrize("channels", [2, 5])
def test_a_gradient_penalty_has_the_same_gradient(channels):
    x, w = arrays((2, 8, 8, channels), (3, 3, channels, 3))

    def penalty(function):
        def slope_norm(w):
            def score(x):
                y = function(x, w, (2, 2), "SAME", dimension_numbers=NUMBERS)
                return jnp.sum(jnp.tanh(y) ** 2)

            return jnp.sum(jax.grad(score)(x) ** 2)

        return jax.jit(jax.value_and_grad(slope_norm))(w)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-4),
                 penalty(jax.lax.conv_general_dilated), penalty(conv.conv_general_dilated))


def test_the_module_is_that_of_flax_in_loops_and_batches_of_kernels():
    x, _ = arrays((3, 8, 8, 2), (1,))
    plain, ours = nn.Conv(4, (3, 3), 2), conv.Conv(4, (3, 3), 2)
    keys = jax.random.split(jax.random.key(0), 2)
    variables = jax.vmap(plain.init, (0, None))(keys, x)
    assert jax.tree.structure(variables) == jax.tree.structure(jax.vmap(
        ours.init, (0, None))(keys, x))

    def trained(module, mapped):
        def one(v):
            def step(v, _):
                grads = jax.grad(lambda v: jnp.mean(module.apply(v, x) ** 2))(v)
                return jax.tree.map(lambda a, b: a - 0.1 * b, v, grads), None

            return jax.lax.scan(step, v, None, length=3)[0]

        return jax.jit(lambda v: jax.lax.map(one, v) if mapped else jax.vmap(one)(v))(variables)

    expected = trained(plain, True)
    for mapped in (True, False):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5),
                     expected, trained(ours, mapped))


@pytest.mark.parametrize(("size", "channels", "count"), [(3, 2, 1), (3, 5, 3), (7, 3, 3)])
def test_gradients_come_in_the_form_that_fast_kernels_take(size, channels, count):
    """Small patches of few channels are products of matrices, but for the kernel's gradient."""
    x, w = arrays((2, 8, 8, channels), (size, size, channels, 4))
    text = jax.jit(jax.grad(lambda x, w: jnp.sum(
        conv.conv_general_dilated(x, w, (2, 2), "SAME", dimension_numbers=NUMBERS) ** 2),
        (0, 1))).lower(x, w).as_text()
    found = [line.split("dim_numbers = ")[1].split(",  window")[0].split(", window")[0]
             for line in text.splitlines() if "stablehlo.convolution" in line]
    assert len(found) == count and set(found) == {"[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]"}


def test_no_window_is_larger_than_its_image():
    """The fast kernels refuse those; here output, a window of the kernel's gradient, is larger."""
    x, w = arrays((2, 3, 3, 8), (3, 3, 8, 8))
    text = jax.jit(jax.grad(lambda x, w: jnp.sum(
        conv.conv_general_dilated(x, w, (1, 1), ((2, 2), (2, 2)), dimension_numbers=NUMBERS) ** 2),
        (0, 1))).lower(x, w).compile().as_text()
    windows = re.findall(r" convolution\(.*window=\{(size=5x5[^}]*)\}", text)
    assert len(windows) == 1 and "pad" not in windows[0]


def test_other_forms_are_left_to_lax():
    x, w = arrays((2, 6, 6, 4), (3, 3, 1, 4))
    grouped = conv.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=NUMBERS, feature_group_count=4)
    expected = jax.lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=NUMBERS, feature_group_count=4)
    np.testing.assert_array_equal(grouped, expected)
    x, w = arrays((2, 4, 6, 6), (5, 4, 3, 3))
    first = conv.conv_general_dilated(x, w, (1, 1), "VALID",
                                      dimension_numbers=("NCHW", "OIHW", "NCHW"))
    np.testing.assert_array_equal(first, jax.lax.conv(x, w, (1, 1), "VALID"))
    x, w = arrays((2, 9, 3), (3, 3, 5))
    np.testing.assert_array_equal(
        conv.Conv(5, (3,)).apply({"params": {"kernel": w, "bias": jnp.zeros(5)}}, x),
        nn.Conv(5, (3,)).apply({"params": {"kernel": w, "bias": jnp.zeros(5)}}, x))
    x, w = arrays((2, 8, 8, 2), (3, 3, 2, 3))
    with pytest.raises(ValueError, match="padding 'SAME' with a dilated image"):
        conv.conv_general_dilated(x, w, (1, 1), "SAME", (2, 2), dimension_numbers=NUMBERS)
