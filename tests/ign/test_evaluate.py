"""Measures and corruptions against closed forms; the probe's verdicts; storage of a model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from common.metrics import distribution
from common.nets import inception
from ign import classifier, corruptions, evaluate, measure, models, noise, probe, project

NET = models.NetConfig(width=8, latent=8)


@pytest.fixture(scope="module")
def model():
    variables = models.init(models.build(NET), jax.random.key(0), NET.shape)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(50, *NET.shape)).astype(np.float32) + 0.5
    return project.Model(variables, noise.fit_spectrum(images, "hermitian"), NET)


def test_projection_trajectory_and_drift(model):
    z = model.noise(jax.random.key(1), 3)
    path = jax.jit(lambda m, z: project.trajectory(m, z, 2))(model, z)
    f = jax.jit(lambda m, z: m(z))
    np.testing.assert_allclose(path[2], f(model, f(model, z)), atol=1e-5)
    twice = jax.jit(project.project, static_argnames="k")(model, z, k=2)
    np.testing.assert_allclose(twice, path[2], atol=1e-5)
    np.testing.assert_array_equal(project.project(model, z, 0), z)
    drift = project.drift(model, z)
    np.testing.assert_allclose(drift, np.abs(path[1] - path[0]).mean(axis=(1, 2, 3)), rtol=1e-4)
    assert project.drift_map(model, z).shape == (3, 28, 28)
    assert project.generate(model, jax.random.key(1), 3).shape == (3, *NET.shape)
    with pytest.raises(ValueError, match="k is -1"):
        project.project(model, z, -1)


def test_interpolation_and_arithmetic_keep_the_noise_distribution(model):
    a, b, c = (model.noise(jax.random.key(i), 300) for i in (1, 2, 3))
    path = project.interpolate_noise(model, a, b, 5)
    np.testing.assert_allclose(path[0], a, atol=1e-5)
    np.testing.assert_allclose(path[-1], b, atol=1e-5)
    sums = project.combine_noise(model, jnp.stack([a, b, c]), jnp.array([1.0, -1.0, 1.0]))
    for middle in (path[2], sums):
        assert float(middle.mean()) == pytest.approx(float(a.mean()), abs=0.02)
        assert float(middle.std()) == pytest.approx(float(a.std()), rel=0.02)
    one = project.combine_noise(model, a[None], jnp.array([2.0]))
    np.testing.assert_allclose(one, a, atol=1e-5)
    with pytest.raises(ValueError, match="at least 2 steps"):
        project.interpolate_noise(model, a, b, 1)


@pytest.mark.parametrize("form", ["normal", *noise.FORMS])
def test_a_model_is_stored_with_its_noise(model, form, tmp_path):
    spectrum = None if form == "normal" else model.spectrum.replace(form=form)
    stored = model.replace(spectrum=spectrum)
    again = project.load(project.save(tmp_path / "model.safetensors", stored, {"steps": 3}))
    assert again.config == NET
    key = jax.random.key(4)
    np.testing.assert_array_equal(
        project.generate(again, key, 2), project.generate(stored, key, 2)
    )


def test_in_blocks_covers_every_row_once():
    rows = np.arange(10.0)
    np.testing.assert_array_equal(
        project.in_blocks(lambda x, y: x + y, rows, rows, block=4), 2 * rows
    )


def test_auroc_against_scikit_learn():
    rng = np.random.default_rng(0)
    positive, negative = rng.integers(2, 9, 50), rng.integers(0, 7, 70)  # with ties
    truth = np.r_[np.ones(50), np.zeros(70)]
    expected = roc_auc_score(truth, np.r_[positive, negative])
    assert evaluate.auroc(positive, negative) == pytest.approx(expected)
    with pytest.raises(ValueError, match="0 positive"):
        evaluate.auroc(positive[:0], negative)


def test_duplicates():
    rng = np.random.default_rng(0)
    real, fresh = rng.normal(size=(2, 500, 16))
    assert evaluate.duplicate_rate(fresh, real) < 0.12
    few = fresh[rng.integers(0, 20, 500)]
    assert evaluate.duplicate_rate(few, real) > 0.99
    half = np.where(np.arange(500)[:, None] < 250, fresh, few)
    assert evaluate.duplicate_rate(half, real) == pytest.approx(0.5, abs=0.1)
    brute = np.linalg.norm(real[:, None] - real[None], axis=-1) + np.diag(np.full(500, np.inf))
    np.testing.assert_allclose(evaluate.nearest_distances(real), brute.min(axis=1), rtol=1e-6)
    with pytest.raises(ValueError, match="not comparable"):
        evaluate.duplicate_rate(fresh[:10], real)


def test_classes_of_planted_distributions():
    labels = np.arange(1000) % 10
    even = evaluate.classes(np.eye(10)[labels], labels)
    assert (even["coverage"], even["classes"]) == (10, 10)
    assert even["entropy"] == pytest.approx(np.log(10))
    assert even["variation"] == pytest.approx(0) and even["confidence"] == 1
    two = evaluate.classes(0.7 * np.eye(10)[labels % 2] + 0.03, labels)
    assert two["coverage"] == 2 and two["entropy"] == pytest.approx(np.log(2))
    assert two["variation"] == pytest.approx(0.8) and two["confidence"] == pytest.approx(0.73)


def test_idempotence_of_a_model(model):
    z = np.asarray(model.noise(jax.random.key(1), 20))
    found = evaluate.idempotence(model, z, k=3)
    y = np.asarray(model(z))
    yy = np.asarray(model(y))
    ratio = np.linalg.norm((yy - y).reshape(20, -1), axis=1) / np.linalg.norm(
        (y - z).reshape(20, -1), axis=1)
    assert found["median"] == pytest.approx(float(np.median(ratio)), rel=1e-3)
    assert found["p95"] == pytest.approx(float(np.quantile(ratio, 0.95)), rel=1e-3)
    assert len(found["curve"]) == 3 and found["curve"][0] == pytest.approx(found["median"])


def test_corruptions_do_what_they_say():
    key = jax.random.key(0)
    x = jax.random.uniform(key, (6, 28, 28, 3), minval=-1, maxval=1)
    for name, corrupt in corruptions.standard(3).items():
        y = corrupt(x, key)
        assert y.shape == x.shape and float(jnp.abs(y).max()) <= 1.0001, name
        assert float(jnp.abs(y - x).mean()) > 0.05, name
    noisy = corruptions.gaussian_noise(0.15)(jnp.zeros((20, 28, 28, 1)), key)
    assert float(noisy.std()) == pytest.approx(0.15, rel=0.03)
    hidden = np.asarray(corruptions.occlusion(0.5)(jnp.ones((8, 28, 28, 1)), key))[..., 0] == 0
    assert (hidden.sum(axis=(1, 2)) == 14 * 14).all()
    assert len({tuple(np.argwhere(h)[0]) for h in hidden}) > 1
    constant = jnp.full((1, 28, 28, 1), 0.3)
    for corrupt in (corruptions.blur(), corruptions.low_resolution()):
        np.testing.assert_allclose(corrupt(constant, key), constant, atol=1e-5)
    np.testing.assert_allclose(corruptions.sketch()(constant, key), 0, atol=1e-5)
    point = jnp.zeros((1, 28, 28, 1)).at[0, 14, 14, 0].set(1.0)
    blurred = np.asarray(corruptions.blur(1.5)(point, key))[0, :, :, 0]
    place = np.arange(28) - 14
    assert float((blurred.sum(axis=0) * place**2).sum()) == pytest.approx(1.5**2, rel=0.05)
    shuffled = corruptions.shuffled_pixels(x, key)
    np.testing.assert_array_equal(np.sort(shuffled, axis=None), np.sort(x, axis=None))
    assert set(corruptions.standard(3)) - set(corruptions.standard(1)) == {"grey", "sketch"}
    with pytest.raises(ValueError, match="no blocks of 3"):
        corruptions.low_resolution(3)(x, key)


def judge(images):
    """Class by mean brightness (10 steps); features are coarse pixels."""
    rows = images.reshape(len(images), -1)
    label = np.clip(((rows.mean(axis=1) + 1) * 5).astype(int), 0, 9)
    return classifier.Judged(np.eye(10)[label], rows[:, ::56])


def test_restoration_and_detection():
    rng = np.random.default_rng(0)
    level = np.linspace(-0.9, 0.9, 40, dtype=np.float32)[:, None, None, None]
    images = np.broadcast_to(level, (40, 28, 28, 1)).copy()
    labels = judge(images).labels

    def flat(x, _):
        return jnp.broadcast_to(x.mean(axis=(1, 2), keepdims=True), x.shape)

    table = evaluate.restoration({"flat": flat}, images, labels, judge)
    assert set(table) == {"clean", *corruptions.standard(1)}
    noise_row = table["noise 0.3"]
    assert noise_row["flat"]["psnr"] > noise_row["corrupted"]["psnr"] + 10
    assert table["clean"]["corrupted"]["psnr"] == 60
    assert table["clean"]["flat"]["accuracy"] == 1
    sigma = noise_row["corrupted"]["l1"] * np.sqrt(np.pi / 2)
    assert sigma == pytest.approx(0.3, rel=0.15)  # some is clipped

    def drift(x):
        return np.abs(x - np.asarray(flat(x, None))).mean(axis=(1, 2, 3))

    others = {"noise": rng.normal(size=images.shape).astype(np.float32)}
    found = evaluate.detection(drift, images, others)
    assert found["noise"]["auroc"] == 1 and found["real"]["drift"] < 1e-6


def test_mode_gap_is_zero_without_and_not_with_batch_norm(model):
    x = np.random.default_rng(0).uniform(-1, 1, (8, *NET.shape)).astype(np.float32)
    same = evaluate.mode_gap(model, x, x)
    assert same["training"]["reconstruction"] == pytest.approx(
        same["evaluation"]["reconstruction"], rel=1e-5)
    config = models.NetConfig(width=8, latent=8, norm="batch")
    variables = models.init(models.build(config), jax.random.key(0), config.shape)
    found = evaluate.mode_gap(project.Model(variables, None, config), x, x)
    assert abs(found["training"]["drift"] - found["evaluation"]["drift"]) > 1e-3


def test_probe_names_the_collapse(model):
    rng = np.random.default_rng(0)
    real = rng.uniform(-1, 1, (60, *NET.shape)).astype(np.float32)
    z = np.asarray(model.noise(jax.random.key(0), 60))
    watch = probe.Probe(z, None, real, np.arange(60) % 10, judge)
    numbers = watch.measure(model)  # an untrained network: one grey for all noise
    assert probe.verdict(numbers) == "constant output"
    assert numbers["coverage"] < 10 and numbers["drift"] >= 0
    healthy = {"spread": 0.9, "duplicates": 0.1, "coverage": 10, "classes": 10}
    assert probe.verdict(healthy) == ""
    assert probe.verdict({**healthy, "duplicates": 0.6}) == "duplicates"
    assert probe.verdict({**healthy, "coverage": 6}) == "dropped classes"
    assert probe.verdict({"spread": 0.9, "duplicates": 0.1}) == ""
    with pytest.raises(ValueError, match="beside real images"):
        probe.Probe(z[:5], None, real, None, judge)


@pytest.mark.usefixtures("standard_promotion")  # optax's cosine schedule
def test_classifier_learns_and_judges_every_image():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 64).astype(np.int32)
    images = rng.integers(0, 60, (64, 12, 12, 1)).astype(np.uint8)
    images[label == 1, :, 6:] += 150
    state = classifier.init_state(jax.random.key(0), (12, 12, 1), 2, 30)
    step = jax.jit(classifier.make_train_step(2, shift=1))
    for i in range(30):
        state, _ = step(state, {"image": images, "label": label}, jax.random.key(i))
    judged = classifier.judge(state.params, images, block=48)
    assert (judged.labels == label).mean() > 0.95
    assert judged.features.shape == (64, classifier.FEATURES)
    np.testing.assert_allclose(judged.probabilities.sum(axis=1), 1, rtol=1e-5)
    whole = classifier.judge(state.params, images[60:], block=64)
    np.testing.assert_allclose(judged.probabilities[60:], whole.probabilities, atol=1e-5)


def test_fid_is_measured_where_its_weights_are(monkeypatch):
    """The network is checked in tests/parity; here are its inputs, its blocks and its distance."""
    rng = np.random.default_rng(0)
    test, drawn = (np.tanh(rng.normal(m, 1, (40, 3, 3, 1))).astype(np.float32) for m in (0, 0.5))
    assert measure.fid("", test)(drawn) == {}
    monkeypatch.setattr(inception, "load_params", lambda path: {"read": path})
    seen = []

    def pixels(params, images):
        assert params == {"read": "weights.pth"}
        seen.append(images)
        return images.reshape(len(images), -1)

    monkeypatch.setattr(inception, "features", pixels)
    found = measure.fid("weights.pth", test)
    flat = [((x + 1) / 2).reshape(40, -1) for x in (test, drawn)]
    assert found(drawn)["fid"] == pytest.approx(distribution.frechet_from_features(*flat))
    assert found(test)["fid"] == pytest.approx(0, abs=1e-6)
    assert all(0 <= float(x.min()) and float(x.max()) <= 1 for x in seen)
