"""The face model on disk, its tokenizer, and the layers that replace plain ones."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from tests.w2w import small
from w2w import autoencode, models
from w2w.diffusion import layers, unet
from w2w.diffusion.autoencoder import kl_divergence
from w2w.diffusion.text import WordTokenizer


def test_round_trip_is_float16_exact(tmp_path):
    tree = small.params()
    path = tmp_path / "model.safetensors"
    models.save(path, small.MODEL, tree, {"steps": 7})
    model, loaded, card = models.load(path)
    assert model == small.MODEL and hash(model) == hash(small.MODEL) and card == {"steps": 7}
    first, second = flatten_dict(tree), flatten_dict(loaded)
    assert first.keys() == second.keys()
    for name, leaf in first.items():
        np.testing.assert_array_equal(np.asarray(leaf, np.float16), np.float16(second[name]))
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_load_names_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match="no base model"):
        models.load(tmp_path / "absent.safetensors")
    path = tmp_path / "model.safetensors"
    wider = dataclasses.replace(small.MODEL, words=(*small.WORDS, "more"))
    models.save(path, wider, small.params(), {})
    wrong = dataclasses.replace(
        small.MODEL, text=dataclasses.replace(small.MODEL.text, vocabulary=99)
    )
    models.save(path, wrong, small.params(), {})
    with pytest.raises(ValueError, match="token_embedding"):
        models.load(path)


def test_tokenizer():
    tokenizer = WordTokenizer(("a", "b"), 5)
    np.testing.assert_array_equal(tokenizer(["a b", ""]), [[1, 3, 4, 2, 0], [1, 2, 0, 0, 0]])
    with pytest.raises(ValueError, match="unknown words c"):
        tokenizer("a c")
    with pytest.raises(ValueError, match="at most 3 fit"):
        tokenizer("a a a a")


@pytest.mark.usefixtures("rank_promotion")  # flax's GroupNorm, the oracle
def test_group_norm_equals_flax():
    x = 3 + 2 * jax.random.normal(jax.random.key(0), (2, 5, 4, 12))
    variables = layers.GroupNorm(3).init(jax.random.key(1), x)
    noise = jax.random.normal(jax.random.key(2), (12,))
    variables = jax.tree.map(lambda leaf: leaf + noise, variables)
    oracle = nn.GroupNorm(3, epsilon=1e-5, use_fast_variance=False)
    for function in (lambda m: m.apply(variables, x), lambda m: jax.grad(
        lambda y: jnp.sum(m.apply(variables, y) ** 3))(x)):
        np.testing.assert_allclose(
            function(layers.GroupNorm(3)), function(oracle), rtol=2e-4, atol=2e-4
        )


@pytest.mark.parametrize("shape", [(4, 4), (3, 5)])
def test_upsample_equals_repeat_and_convolution(shape):
    x = jax.random.normal(jax.random.key(0), (2, *shape, 6))
    variables = layers.Upsample().init(jax.random.key(1), x)
    plain = nn.Conv(6, (3, 3))
    doubled = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
    expected = plain.apply({"params": variables["params"]["conv"]}, doubled)
    np.testing.assert_allclose(layers.Upsample().apply(variables, x), expected, atol=1e-5)


def test_patches_are_folded_without_loss():
    x = jax.random.normal(jax.random.key(0), (2, 8, 12, 3))
    folded = unet.fold_patches(x, 4)
    assert folded.shape == (2, 2, 3, 48)
    np.testing.assert_array_equal(unet.unfold_patches(folded, 4), x)
    np.testing.assert_array_equal(folded[0, 1, 2].reshape(4, 4, 3), x[0, 4:8, 8:12])
    with pytest.raises(ValueError, match="does not divide"):
        unet.fold_patches(x, 5)


def test_latents_are_standardised_and_decoded_in_the_same_units():
    tree = small.params()
    images = np.random.default_rng(0).integers(0, 256, (40, 16, 16)).astype(np.uint8)
    fitted = autoencode.standardised(small.MODEL, tree, images)
    latents = autoencode.encode_all(small.MODEL, fitted, images, batch_size=16)
    assert latents.shape == (40, *small.MODEL.latent_shape)
    np.testing.assert_allclose(latents.mean((0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(latents.std((0, 1, 2)), 1, atol=1e-4)
    plain = autoencode.encode_all(small.MODEL, tree, images)
    np.testing.assert_allclose(
        small.MODEL.to_images(fitted, jnp.asarray(latents)),
        small.MODEL.to_images(tree, jnp.asarray(plain)),
        atol=1e-4,
    )


def test_kl_divergence_of_the_standard_normal_is_zero():
    zeros = jnp.zeros((2, 4, 4, 3))
    np.testing.assert_array_equal(kl_divergence(zeros, zeros), 0)
    # Closed form for mean m and variance v: (m^2 + v - 1 - log v) / 2 for each entry.
    found = kl_divergence(zeros + 2.0, zeros + np.log(3.0).astype(np.float32))
    np.testing.assert_allclose(found, 48 * (4 + 3 - 1 - np.log(3)) / 2, rtol=1e-5)
