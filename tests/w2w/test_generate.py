"""Drawing with many adapters: equal to merged weights, delayed injection, shared noise."""

import jax
import numpy as np
import pytest

from tests.w2w import small
from w2w import base, generate, lora

DRAWING = generate.Drawing(steps=3, guidance=2.0, shift=1.0)


@pytest.fixture(scope="module")
def setting():
    tree = small.params()
    return tree, small.layout(tree), small.adapters(tree, 3)


def draw(setting, vectors, **more):
    tree, layout, _ = setting
    return generate.draw(
        vectors,
        ["sks person", "sks man"],
        jax.random.key(5),
        tree,
        small.MODEL,
        small.LORA,
        layout,
        DRAWING,
        **more,
    )


def test_adapters_at_once_equal_merged_weights(setting):
    tree, layout, vectors = setting
    found = draw(setting, vectors)
    assert found.shape == (3, 2, 16, 16, 1)
    for i in range(3):
        merged = lora.apply(tree["unet"], lora.unflatten(vectors[i], layout), small.LORA)
        expected = base.draw(
            small.MODEL,
            {**tree, "unet": merged},
            ["sks person", "sks man"],
            jax.random.key(5),
            {"steps": 3, "guidance": 2.0, "shift": 1.0},
        )
        np.testing.assert_allclose(found[i], expected, atol=1e-4)
    assert np.abs(found[0] - found[1]).max() > 1e-3


def test_grouping_does_not_change_images(setting):
    whole, parts = draw(setting, setting[2]), draw(setting, setting[2], group=2)
    np.testing.assert_allclose(whole, parts, atol=1e-4)


def test_delayed_injection(setting):
    vectors = setting[2]
    plain, edited = vectors[:1], vectors[1:2]
    always = draw(setting, edited, before=plain, injection=1.0)
    np.testing.assert_array_equal(always, draw(setting, edited))
    never = draw(setting, edited, before=plain, injection=0.0)
    np.testing.assert_allclose(never, draw(setting, plain), atol=1e-4)
    between = draw(setting, edited, before=plain, injection=0.7)
    assert np.abs(between - always).max() > 1e-4
    assert np.abs(between - never).max() > 1e-4
