"""Presets of the published experiments, and what only they use."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from ml_collections import ConfigDict

from common import config as config_lib
from common.config import ConfigError
from medical.medxgan import classifier, codes, invert, models, networks, noise, train, vgg

LATENT = (4, 2)
RNG = np.random.default_rng(0)
TINY = vgg.VggClassifier(((2, 1), (3, 2)), (6, 5, 4))


@pytest.mark.parametrize(("name", "judge", "size"), [
    ("medxgan.py:brain64", models.BrainClassifier, 64),
    ("medxgan.py:paper", models.BrainClassifier, 64),
    ("medxgan.py:covid128", vgg.VggClassifier, 128),
    ("latent_traversal.py:aaai22", vgg.VggClassifier, 128),
    ("latent_traversal.py:paper", vgg.VggClassifier, 128)])
def test_presets_are_the_published_networks(name, judge, size):
    config = config_lib.load(f"configs/{name}")
    nets = networks.make_nets(config.net)
    assert isinstance(nets.classifier, judge) and nets.encoder is None
    z = [jax.ShapeDtypeStruct((1, d), jnp.float32) for d in nets.latent]
    made = jax.eval_shape(nets.generator.init, jax.random.key(0), *z)
    image = jax.eval_shape(nets.generator.apply, made, *z)
    assert image.shape == (1, size, size, 1)
    shapes = jax.eval_shape(nets.discriminator.init, jax.random.key(0), image)
    side = {64: 5, 128: 13}[size]
    assert shapes["params"]["dense"]["kernel"].shape == (512 * side * side, 1)
    expected = {64: 2.0, 128: 1.0}[size]
    assert config.objective.class_weight == expected
    assert config.objective.class_form == "double_softmax" and not config.objective.reconstruction
    assert config.invert.num_steps == 5000 and config.seeds[0] == 0


_CODES = (jax.ShapeDtypeStruct((2, 4), jnp.float32), jax.ShapeDtypeStruct((2, 2), jnp.float32))


def _images(size, channels):
    return (jax.ShapeDtypeStruct((2, size, size, channels), jnp.float32),)


@pytest.mark.parametrize(("net", "inputs"), [
    (models.PaperGenerator((8, 6, 4)), _CODES),
    (models.PaperDiscriminator((4, 6, 8, 6, 4, 6)), _images(64, 3)),
    (models.BrainClassifier(), _images(64, 3)),
    (models.Classifier((4, 6)), _images(16, 1)),
    (models.Generator(16, (16, 8), 1), _CODES),
    (models.Discriminator((4, 6)), _images(16, 1)),
    (models.Encoder(LATENT, (4, 6)), _images(16, 1)),
], ids=lambda value: type(value).__name__ if hasattr(value, "init") else "")
def test_convolutions_are_products_of_matrices_elsewhere(net, inputs, same_on_accelerators):
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(net.init, jax.random.key(0), *inputs)
    variables = jax.tree.map(  # the values that norms divide by must be positive
        lambda leaf: rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32) / leaf.shape[-1] ** 0.5
        * rng.choice((-1, 1) if leaf.ndim > 1 else (1,), leaf.shape), shapes)
    given = [jnp.asarray(rng.normal(size=leaf.shape), jnp.float32) for leaf in inputs]

    def outputs():
        def loss(variables):
            made = net.apply(variables, *given)
            return sum(jnp.sin(leaf).sum() for leaf in jax.tree.leaves(made)), made

        with jax.default_matmul_precision("highest"):
            return jax.jit(jax.grad(loss, has_aux=True))(variables)

    same_on_accelerators(outputs)


def test_vgg16_has_the_published_size():
    shapes = jax.eval_shape(vgg.VggClassifier().init, jax.random.key(0),
                            jax.ShapeDtypeStruct((1, 128, 128, 1), jnp.float32))["params"]
    count = {name: sum(leaf.size for leaf in jax.tree.leaves(tree))
             for name, tree in shapes.items()}
    convs = sum(value for name, value in count.items() if name.startswith("conv"))
    assert convs == 14_714_688
    assert count["dense1"] == 512 * 49 * 4096 + 4096 and count["dense3"] == 4097 * 1024
    assert count["out"] == 65 * 2


def test_settings_of_published_networks():
    net = config_lib.load("configs/medxgan.py:covid128").net
    net.size = 64
    with pytest.raises(ConfigError, match="'covid128' take 128 pixels"):
        networks.make_nets(net)
    net.kind = "paper"
    with pytest.raises(ConfigError, match="'paper'; known: small, brain64, covid128"):
        networks.make_nets(net)


@pytest.mark.usefixtures("standard_promotion")  # optax, bias correction of Adam
def test_given_convolutions_stay_as_they_are(tmp_path):
    images = jnp.asarray(RNG.uniform(-1, 1, (4, 16, 16, 1)), jnp.float32)
    params = TINY.init(jax.random.key(0), images)["params"]
    tensors = {}
    for place, name, shape in ((0, "conv1_1", (2, 3, 3, 3)), (3, "conv2_1", (3, 2, 3, 3)),
                               (5, "conv2_2", (3, 3, 3, 3))):
        assert params[name]["kernel"].shape == (3, 3, shape[1], shape[0])
        tensors[f"features.{place}.weight"] = RNG.normal(size=shape).astype(np.float32)
        tensors[f"features.{place}.bias"] = RNG.normal(size=shape[0]).astype(np.float32)
    for place, (units, inputs) in zip((0, 3, 6), ((6, 147), (5, 6), (1000, 5)), strict=True):
        tensors[f"classifier.{place}.weight"] = RNG.normal(size=(units, inputs)).astype(np.float32)
        tensors[f"classifier.{place}.bias"] = RNG.normal(size=units).astype(np.float32)
    safetensors.numpy.save_file(tensors, tmp_path / "vgg.safetensors")
    given = networks.read_classifier(str(tmp_path / "vgg.safetensors"), TINY, params)
    np.testing.assert_array_equal(given["conv2_1"]["bias"], tensors["features.3.bias"])
    np.testing.assert_array_equal(given["dense3"]["kernel"], params["dense3"]["kernel"])
    recipe = classifier.Recipe(5, 1e-2, weight_decay=0.1, frozen=("conv",))
    state = classifier.init(TINY, recipe, images, jax.random.key(0), given)
    step = jax.jit(classifier.make_train_step(TINY, recipe))
    new, _ = step(state, {"image": images, "label": jnp.asarray([0, 1, 1, 0])}, jax.random.key(1))
    for name, tree in given.items():
        same = jax.tree.map(lambda a, b: bool(jnp.all(a == b)), tree, new.params[name])
        assert all(jax.tree.leaves(same)) is name.startswith("conv"), name
    with pytest.raises(ConfigError, match="only the classifier of the kind covid128"):
        networks.read_classifier("vgg.pth", models.Classifier(), params)
    with pytest.raises(FileNotFoundError, match="config.classifier.weights: no file none.pth"):
        networks.read_classifier("none.pth", TINY, params)


@pytest.fixture(scope="module")
def made():
    nets = train.Nets(models.Generator(16, (8, 8), 1), models.Discriminator((8, 8)),
                      models.Classifier((4, 8)), models.Encoder(LATENT, (8, 8)), LATENT)
    images = RNG.uniform(-1, 1, (3, 16, 16, 1)).astype(np.float32)
    frozen = nets.classifier.init(jax.random.key(0), jnp.asarray(images))
    z = [jnp.zeros((1, d)) for d in LATENT]
    trees = {"generator": nets.generator.init(jax.random.key(1), *z),
             "encoder": nets.encoder.init(jax.random.key(2), jnp.asarray(images))}
    return nets, frozen, trees, images


def settings(**changes) -> ConfigDict:
    return ConfigDict({"num_steps": 2, "learning_rate": 0.01, "restarts": 2, "pixels": 1.0,
                       "class_weight": 1.0, "prior": 0.0, "negative": "zero", **changes})


@pytest.mark.usefixtures("standard_promotion")  # optax, bias correction of Adam
def test_codes_begin_at_the_encoder(made):
    nets, frozen, trees, images = made
    header = {"encodes": True, "temperature": 1.0}
    found = codes.find_codes(settings(num_steps=0, restarts=1), nets, frozen, trees, header, images,
                             jax.random.key(0))
    mean, _ = nets.encoder.apply(trees["encoder"], jnp.asarray(images))
    np.testing.assert_allclose(jnp.concatenate([found.z1, found.z2], -1), mean, atol=1e-6)
    z1, z2 = codes.find_negative(settings(), nets, frozen, trees, header, found, jax.random.key(1))
    np.testing.assert_array_equal(z1, found.z1)
    assert not np.any(z2)
    with pytest.raises(ValueError, match="'flip'; known: zero, optimised"):
        codes.find_negative(settings(negative="flip"), nets, frozen, trees, header, found,
                            jax.random.key(1))


@pytest.mark.usefixtures("standard_promotion")  # optax, bias correction of Adam
def test_a_second_search_finds_a_negative(made):
    """A linear generator and classifier: the search lowers the score and stays close."""
    matrix = jnp.asarray(RNG.normal(size=(6, 256)) / 6, jnp.float32)

    def draw(z1, z2):
        return (jnp.concatenate([z1, z2], -1) @ matrix).reshape(-1, 16, 16, 1)

    def score(images):
        return images[:, :8].sum((1, 2, 3))

    z = jnp.asarray(RNG.normal(size=(3, 6)), jnp.float32)
    z = z * jnp.sign(score(draw(z[:, :4], z[:, 4:])))[:, None]
    positive = draw(z[:, :4], z[:, 4:])
    assert (score(positive) > 0).all()
    start = invert.Codes(z[:, :4], z[:, 4:], jnp.zeros(3))
    recipe = invert.Recipe(150, 0.05, pixels=20.0)
    same = invert.invert(draw, score, positive, start, recipe)
    np.testing.assert_allclose(draw(same.z1, same.z2), positive, atol=0.05)
    negative = invert.invert(draw, score, positive, start, recipe, jnp.zeros(3))
    changed = draw(negative.z1, negative.z2)
    assert (score(changed) < score(positive) - 0.1).all()
    assert float(jnp.mean(jnp.square(changed - positive))) < 0.2
    nets, frozen, trees, images = made
    header = {"encodes": False, "temperature": 1.0}
    found = codes.find_codes(settings(), nets, frozen, trees, header, images, jax.random.key(0))
    z1, z2 = codes.find_negative(settings(negative="optimised"), nets, frozen, trees, header, found,
                                 jax.random.key(1))
    assert z1.shape == (3, 4) and np.any(z1 != found.z1) and np.any(z2)


@pytest.mark.usefixtures("standard_promotion")  # optax, bias correction of Adam
def test_noise_is_measured_image_by_image(made):
    nets, frozen, trees, images = made
    config = ConfigDict({"explain": {"noise": (1e-6, 0.5), "noisy": 2, "points": 3},
                         "invert": settings(num_steps=0, restarts=1)})
    header = {"encodes": True, "temperature": 1.0}
    keys = jax.random.key(3), jax.random.key(0)
    found = codes.find_codes(config.invert, nets, frozen, trees, header, images, keys[1])
    table = noise.robustness(config, nets, frozen, trees, header, images, found, keys)
    assert len(table) == len(noise.MAPS) * 5 and all(len(v) == 2 for v in table.values())
    for name in noise.MAPS:
        # Hardly any noise changes nothing, much noise does.
        np.testing.assert_allclose(table[f"{name}.1e-06.area"], table[f"{name}.0.area"], atol=0.02)
        assert (table[f"{name}.1e-06.rank"] > 0.99).all()
    assert (table["ig_black.0.5.rank"] < 0.95).all()
    config.explain.noise = ()
    assert noise.robustness(config, nets, frozen, trees, header, images, found, keys) == {}


def test_the_rank_of_a_constant_map_is_nothing():
    maps = {"lig": RNG.normal(size=(2, 4, 4, 1))}
    flat = {"lig": np.concatenate([maps["lig"][:1], np.zeros((1, 4, 4, 1))])}
    table = noise.compare(maps, flat, (0.1,))
    np.testing.assert_allclose(table["lig.0.1.rank"], [1.0, 0.0])
    assert table["lig.0.1.area"][1] == 0.0
