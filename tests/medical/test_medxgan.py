"""medXGAN: codes, losses, published sizes, and a step that changes what it should."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medical.medxgan import classifier, invert, losses, models, train

# Small networks: they take longer to compile than to run.
LATENT = (6, 3)
IMAGES = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (4, 16, 16, 1)), jnp.float32)
LABELS = jnp.asarray([0, 1, 1, 0])
ENCODED = losses.Objective(
    adversarial=0.2, class_weight=1.0, reconstruction=50.0, kl=1e-3, counterfactual=1.0, r1=0.5,
    r1_every=2, labels="classifier")


@pytest.fixture(scope="module")
def nets():
    return train.Nets(
        models.Generator(16, (8, 8), 1), models.Discriminator((8, 8)), models.Classifier((4, 8)),
        models.Encoder(LATENT, (8, 8)), LATENT)


@pytest.fixture(scope="module")
def frozen(nets):
    return nets.classifier.init(jax.random.key(5), IMAGES)


def count(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_the_law_of_the_codes():
    labels = jnp.asarray([0, 1] * 50_000)
    z1, z2 = train.sample_codes(jax.random.key(0), labels, (1, 1))
    assert not np.any(z2[::2])
    for sample in (z1, z2[1::2]):
        assert abs(float(sample.mean())) < 0.02 and abs(float(sample.var()) - 1) < 0.03


@pytest.mark.parametrize("widths, latent, size, parameters", [
    ((384, 256, 192), (1000, 100), 64, 11.94e6), ((384, 256, 192, 64), (100, 10), 128, None)])
def test_the_published_generators(widths, latent, size, parameters):
    net = models.PaperGenerator(widths)
    z = [jax.ShapeDtypeStruct((2, d), jnp.float32) for d in latent]
    shapes = jax.eval_shape(net.init, jax.random.key(0), *z)
    assert jax.eval_shape(net.apply, shapes, *z).shape == (2, size, size, 3)
    if parameters:
        assert count(shapes["params"]) == pytest.approx(parameters, rel=1e-3)


def test_the_small_classifier_is_convolution_relu_maximum_and_an_average():
    net = models.Classifier((3, 4, 5))
    x = jax.random.normal(jax.random.key(0), (2, 12, 12, 1))
    params = jax.tree.map(  # biases start at zero
        lambda leaf: leaf + 0.1, net.init(jax.random.key(1), x)["params"])

    def plain(x):
        for index in range(3):
            layer = params[f"conv{index}"]
            x = jax.lax.conv_general_dilated(
                x, layer["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            x = jax.nn.relu(x + layer["bias"].reshape(1, 1, 1, -1))
            if index < 2:
                x = x.reshape(2, x.shape[1] // 2, 2, x.shape[2] // 2, 2, -1).max(axis=(2, 4))
        logits = x.mean(axis=(1, 2)) @ params["dense"]["kernel"]
        return logits + params["dense"]["bias"].reshape(1, -1)

    with jax.default_matmul_precision("highest"):
        own = jax.value_and_grad(lambda x: jnp.sin(net.apply({"params": params}, x)).sum())(x)
        expected = jax.value_and_grad(lambda x: jnp.sin(plain(x)).sum())(x)
    np.testing.assert_allclose(own[0], expected[0], rtol=1e-4)
    np.testing.assert_allclose(own[1], expected[1], atol=1e-5)
    assert np.abs(expected[1]).max() > 1e-3


def test_the_published_discriminator_and_classifier():
    image = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    judge = models.PaperDiscriminator()
    shapes = jax.eval_shape(judge.init, jax.random.key(0), image)
    assert count(shapes["params"]) == pytest.approx(1.59e6, rel=3e-3)
    assert shapes["params"]["dense"]["kernel"].shape == (512 * 5 * 5, 1)
    net = models.BrainClassifier()
    shapes = jax.eval_shape(net.init, jax.random.key(0), image)
    assert shapes["params"]["dense"]["kernel"].shape == (512, 2)


def test_class_loss_is_bounded_where_it_says_so():
    logits = jnp.asarray([[800.0, -800.0], [-800.0, 800.0], [0.0, 0.0]])
    wanted = jnp.asarray([1, 1, 1])
    plain = losses.class_loss(logits, wanted, "cross_entropy")
    np.testing.assert_allclose(plain, [1600, 0, np.log(2)], rtol=1e-6)
    double = losses.class_loss(logits, wanted, "double_softmax")
    np.testing.assert_allclose(double, [1.3133, 0.3133, np.log(2)], atol=1e-4)
    bounded = losses.class_loss(logits, wanted, "bounded", temperature=2.0)
    np.testing.assert_allclose(bounded, [4, 0, 4 * (1 - 2**-0.25)], atol=1e-5)
    with pytest.raises(ValueError, match="unknown form"):
        losses.class_loss(logits, wanted, "hinge")


def test_divergence_of_a_normal_code():
    mean, log_variance = jnp.asarray([[1.0, 2.0]]), jnp.asarray([[0.0, np.log(4.0)]], jnp.float32)
    used = jnp.asarray([[1.0, 1.0]])
    expected = 0.5 + 0.5 * (4 + 4 - 1 - np.log(4))
    np.testing.assert_allclose(losses.divergence(mean, log_variance, used), expected, rtol=1e-6)
    np.testing.assert_allclose(losses.divergence(mean, log_variance, used.at[0, 1].set(0)), 0.5)


@pytest.mark.usefixtures("standard_promotion")  # optax, bias correction of Adam
def test_a_step_trains_all_but_the_classifier(nets, frozen):
    step = jax.jit(train.make_train_step(nets, ENCODED))
    state = train.init(nets, train.Recipe(1e-3, 1e-3, 0.9), frozen, IMAGES, jax.random.key(0))
    batch = {"image": IMAGES, "label": LABELS}
    new, metrics = step(state, batch, jax.random.key(1))
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), state.params, new.params)
    assert np.mean(jax.tree.leaves(moved)) > 0.9
    jax.tree.map(np.testing.assert_array_equal, state.frozen, new.frozen)
    assert all(np.isfinite(v) for v in metrics.values())
    for name in ("reconstruction", "divergence", "counterfactual", "class"):
        assert name in metrics
    for i in range(60):
        new, metrics = step(new, batch, jax.random.key(i))
    assert float(metrics["reconstruction"]) < 0.32  # 0.33 is the variance of these images


@pytest.mark.usefixtures("standard_promotion")  # optax, bias correction of Adam
def test_the_published_objective_needs_no_encoder(nets, frozen):
    published = losses.Objective(class_form="double_softmax")
    alone = train.Nets(nets.generator, nets.discriminator, nets.classifier, None, LATENT)
    state = train.init(alone, train.Recipe(), frozen, IMAGES, jax.random.key(0))
    assert set(state.generator.params) == {"generator"}
    _, metrics = jax.jit(train.make_train_step(alone, published))(
        state, {"image": IMAGES, "label": LABELS}, jax.random.key(1))
    assert "reconstruction" not in metrics
    assert 0.313 <= float(metrics["class"]) <= 1.314
    expected = metrics["adversarial"] + 2 * metrics["class"]
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-6)
    with pytest.raises(ValueError, match="no encoder"):
        train.make_train_step(alone, ENCODED)


@pytest.mark.usefixtures("standard_promotion")  # optax, bias correction of Adam
def test_batch_statistics_of_the_published_networks_move():
    # A quarter of the widths; 64 pixels is the least that the layout allows.
    nets = train.Nets(models.PaperGenerator((8, 8, 8), 1), models.PaperDiscriminator((4,) * 6),
                      models.Classifier((4, 4)), None, LATENT)
    images = jnp.zeros((2, 64, 64, 1))
    state = train.init(nets, train.Recipe(), nets.classifier.init(jax.random.key(0), images),
                       images, jax.random.key(1))
    new, metrics = jax.jit(train.make_train_step(nets, losses.Objective()))(
        state, {"image": images, "label": jnp.asarray([0, 1])}, jax.random.key(2))
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), state.stats, new.stats)
    assert all(jax.tree.leaves(moved)) and np.isfinite(float(metrics["loss"]))


@pytest.mark.usefixtures("standard_promotion")  # optax, bias correction of Adam
def test_the_classifier_learns():
    bright = np.zeros((64, 16, 16, 1), np.float32)
    bright[::2, 4:8, 4:8] = 1
    labels = (np.arange(64) + 1) % 2
    net, recipe = models.Classifier((4, 8)), classifier.Recipe(60, 1e-2)
    state = classifier.init(net, recipe, jnp.asarray(bright[:2]), jax.random.key(0))
    step = jax.jit(classifier.make_train_step(net, recipe))
    batch = {"image": jnp.asarray(bright), "label": jnp.asarray(labels)}
    for i in range(60):
        state, metrics = step(state, batch, jax.random.key(i))
    assert float(metrics["accuracy"]) == 1.0
    found = classifier.predict(net, state.variables(), bright, batch=48)
    assert found.shape == (64, 2) and (found.argmax(-1) == labels).all()


@pytest.mark.usefixtures("standard_promotion")  # optax, bias correction of Adam
def test_inversion_finds_codes_and_keeps_the_best_restart():
    matrix = jnp.asarray(np.random.default_rng(1).normal(size=(5, 16)), jnp.float32)

    def draw(z1, z2):
        return jnp.tanh(jnp.concatenate([z1, z2], -1) @ matrix).reshape(-1, 4, 4, 1)

    def score(images):
        return images[:, 0, 0, 0] * 3

    true = jnp.asarray(np.random.default_rng(2).normal(size=(3, 5)), jnp.float32)
    images = draw(true[:, :3], true[:, 3:])
    good = invert.Codes(true[:, :3] + 0.2, true[:, 3:] - 0.2, jnp.zeros(3))
    bad = invert.published_start(jax.random.key(0), 3, (3, 2))
    start = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), bad, good)
    recipe = invert.Recipe(300, 0.02, pixels=4.0, class_weight=1.0)
    found = invert.invert(draw, score, images, start, recipe)
    assert float(jnp.max(jnp.abs(draw(found.z1, found.z2) - images))) < 0.05
    only_bad = invert.invert(draw, score, images, bad, recipe)
    assert (found.loss <= only_bad.loss + 1e-6).all()
    with pytest.raises(ValueError, match="4 starts for 3"):
        invert.invert(draw, score, images, invert.published_start(jax.random.key(0), 4, (3, 2)),
                      recipe)


def test_subpixels_are_interleaved():
    x = jnp.arange(8.0).reshape(1, 1, 2, 4)
    found = models.depth_to_space(x)[0, :, :, 0]
    np.testing.assert_array_equal(found, [[0, 1, 4, 5], [2, 3, 6, 7]])
