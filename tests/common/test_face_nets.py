"""Tests of the face networks on real photographs, and of their pre-processing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy.stats import rankdata

from common import datasets
from common.nets import age_gender, expression, face_images, face_recogniser

TIGHT = (47, 90, 131, 174)  # left, top, right, bottom: frames CelebA's faces like Olivetti's
WIDE = (31, 73, 146, 188)


@pytest.fixture(scope="module")
def celeba():
    """64 photographs as colour 115x115 and as grey 64x64."""
    photos = [Image.fromarray(photo) for photo in datasets.celeba_photos()[:64]]
    colour = np.stack([np.asarray(photo.crop(WIDE)) for photo in photos])
    grey = np.stack([
        np.asarray(photo.convert("L").resize((64, 64), Image.Resampling.LANCZOS, box=TIGHT))
        for photo in photos])
    return colour, grey


def roc_area(distances, same):
    """Probability that a pair of one person is closer than a pair of two people."""
    ranks = rankdata(distances)
    positives = int(same.sum())
    statistic = ranks[same].sum() - positives * (positives + 1) / 2
    return 1 - statistic / (positives * (len(same) - positives))


def test_recogniser_tells_people_apart():
    faces = datasets.olivetti()
    embeddings = face_recogniser.embed_all(face_recogniser.load_params(), faces.images)
    assert embeddings.shape == (400, 128)
    distances = np.linalg.norm(embeddings[:, None] - embeddings[None], axis=-1)
    first, second = np.triu_indices(400, 1)
    same = faces.person[first] == faces.person[second]
    assert roc_area(distances[first, second], same) >= 0.9995
    within, between = distances[first, second][same], distances[first, second][~same]
    assert within.mean() < 0.4 and between.mean() > 0.7
    assert np.mean(within < face_recogniser.SAME_PERSON_DISTANCE) > 0.99
    hits = []
    for shot in range(10):  # one photograph of each person known, the others to be named
        gallery = np.arange(40) * 10 + shot
        probes = np.setdiff1d(np.arange(400), gallery)
        named = faces.person[gallery][distances[probes][:, gallery].argmin(axis=1)]
        hits.append(np.mean(named == faces.person[probes]))
    assert np.mean(hits) >= 0.99


def test_grey_small_faces_keep_identity_and_attributes(celeba):
    colour, grey = celeba
    params = face_recogniser.load_params()
    a, b = face_recogniser.embed_all(params, colour, margin=0.0), face_recogniser.embed_all(
        params, grey)
    nearest = np.linalg.norm(a[:, None] - b[None], axis=-1).argmin(axis=1)
    np.testing.assert_array_equal(nearest, np.arange(64))

    params = age_gender.load_params()
    age, male = age_gender.predict_all(params, colour, margin=0.0)
    grey_age, grey_male = age_gender.predict_all(params, grey)
    assert np.mean((male > 0.5) == (grey_male > 0.5)) >= 0.9
    assert 0.25 < np.mean(male > 0.5) < 0.75
    assert np.corrcoef(age, grey_age)[0, 1] > 0.8 and 20 < np.median(age) < 45

    params = expression.load_params()
    probabilities = expression.predict_all(params, colour, margin=0.0)
    grey_probabilities = expression.predict_all(params, grey)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    assert np.mean(probabilities.argmax(1) == grey_probabilities.argmax(1)) >= 0.8
    # Photographs of celebrities: neutral or smiling, hardly anything else.
    assert np.mean(np.isin(probabilities.argmax(1), (0, 1))) > 0.8


def test_prepare_extends_edges_and_subtracts_the_mean():
    image = jnp.zeros((1, 10, 10, 1)).at[:, 0].set(1.0)
    prepared = face_images.prepare(image, 12, margin=0.1)
    assert prepared.shape == (1, 12, 12, 3)
    mean = np.asarray(face_images.MEAN_RGB)
    # The first row, and its repetition.
    np.testing.assert_allclose(prepared[0, :2] + mean[None, None], 1, rtol=1e-5)
    np.testing.assert_allclose(prepared[0, 2:] + mean[None, None], 0, atol=1e-6)
    colour = np.random.default_rng(0).uniform(size=(2, 8, 8, 3)).astype(np.float32)
    expected = colour - mean.reshape(1, 1, 1, 3)
    np.testing.assert_allclose(face_images.prepare(colour, 8), expected, atol=1e-6)
    with pytest.raises(ValueError, match=r"found shape \(2, 8, 8, 2\)"):
        face_images.prepare(jnp.asarray(colour[..., :2]), 8)


def test_batches_are_padded_cut_and_scaled():
    calls = []

    @jax.jit
    def function(params, x):
        calls.append(x.shape)
        return {"mean": x.mean(axis=(1, 2, 3)) * params, "image": x}

    images = np.arange(7 * 2 * 2, dtype=np.uint8).reshape(7, 2, 2)
    result = face_images.in_batches(function, 2.0, images, batch_size=3)
    assert calls == [(3, 2, 2, 1)]  # traced once
    np.testing.assert_allclose(result["mean"], 2 * images.mean(axis=(1, 2)) / 255, rtol=1e-6)
    assert result["image"].shape == (7, 2, 2, 1)
    floats = face_images.in_batches(function, 2.0, images[..., None] / 255.0, batch_size=3)
    np.testing.assert_allclose(floats["mean"], result["mean"], rtol=1e-6)
    calls.clear()
    for count in (3, 4):
        few = face_images.in_batches(function, 2.0, images[:count])
        np.testing.assert_allclose(few["mean"], result["mean"][:count], rtol=1e-6)
    assert calls == [(8, 2, 2, 1)]  # one program for both
    with pytest.raises(ValueError, match="at least one image"):
        face_images.in_batches(function, 2.0, images[:0])


def test_embedding_has_a_gradient():
    params = face_recogniser.load_params()
    x = jnp.asarray(datasets.olivetti().images[:1, ..., None], jnp.float32) / 255
    gradient = jax.grad(lambda x: jnp.sum(jnp.square(face_recogniser.embed(params, x))))(x)
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0
