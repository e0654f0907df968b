"""The small zoo: each objective learns, what mining sees of it, and the stage that trains it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rosetta import supervision, train
from rosetta.zoo import small

# optax.adam: 1 - decay**count
pytestmark = pytest.mark.usefixtures("standard_promotion")

random = np.random.default_rng(0)


@pytest.fixture(scope="module")
def batch():
    """Images whose class is the place of a bright square."""
    labels = np.arange(16, dtype=np.int32) % 4
    images = np.full((16, 32, 32, 1), -1, np.float32)
    for image, label in zip(images, labels, strict=True):
        row, column = 6 + 14 * (label // 2), 6 + 14 * (label % 2)
        image[row : row + 6, column : column + 6] = 1
    return {"image": images + 0.05 * random.normal(size=images.shape).astype(np.float32),
            "label": labels}  # fmt: skip


@pytest.mark.parametrize("name", ["class", "masked", "names", "distillation"])
def test_objectives_learn(name, batch):
    objective = supervision.objectives(3e-3)[name]
    state = jax.jit(objective.init)(jax.random.key(0))
    step = jax.jit(objective.step)
    losses = []
    for index in range(24):
        state, metrics = step(state, batch, jax.random.fold_in(jax.random.key(1), index))
        losses.append(float(metrics["loss"]))
    assert np.isfinite(losses).all()
    if name == "distillation":  # the target moves with the student: no loss to fall, no collapse
        assert metrics["entropy"] > 1.0
    else:
        assert np.mean(losses[-4:]) < 0.9 * np.mean(losses[:4])
    model = small.network(name, objective.finished(state))
    layout = model.layout(small.SIZE)
    assert len(layout) == (1024 if name == "masked" else 336)
    assert layout.sizes == ((8,) * 4 if name == "masked" else (32, 16, 16, 8, 8, 4))


def test_the_adversaries_both_move(batch):
    objective = supervision.objectives()["gan"]
    state = jax.jit(objective.init)(jax.random.key(0))
    after, metrics = jax.jit(objective.step)(state, batch, jax.random.key(1))
    for name in ("gan", "judge"):
        moved = jax.tree.map(
            lambda a, b: float(np.abs(a - b).max()),
            state.variables[name]["params"], after.variables[name]["params"],
        )  # fmt: skip
        assert min(jax.tree.leaves(moved)) > 0
    assert np.isfinite(metrics["loss"]) and np.isfinite(metrics["judge"])
    generator = small.generator(objective.finished(after))
    assert (len(generator.layout()), generator.size) == (224, 32)
    z = generator.sample(jax.random.key(0), 2)
    image, maps = generator.apply(generator.params, z)
    again, same = generator.apply_edited(generator.params, z, lambda tap, x: x)
    np.testing.assert_allclose(again, image, atol=1e-6)
    assert maps.keys() == same.keys()
    none, _ = generator.apply_edited(generator.params, z, lambda tap, x: 0 * x)
    assert np.abs(none - image).max() > 1e-3


def test_hidden_patches_are_hidden():
    """What the autoencoder predicts does not depend on patches that it does not see."""
    module = small.MaskedAutoencoder(width=16, depth=1)
    images = random.normal(size=(1, 32, 32, 1)).astype(np.float32)
    order = random.permutation(64)[None]
    variables = module.init(jax.random.key(0), images, order)
    tokens = np.array(small.patches(images))
    first = module.apply(variables, images, order)
    for place, equal in ((order[0, -1], True), (order[0, 0], False)):
        changed = tokens.copy()
        changed[0, place] += 1
        other = changed.reshape(1, 8, 8, 4, 4).transpose(0, 1, 3, 2, 4).reshape(1, 32, 32, 1)
        np.testing.assert_array_equal(np.asarray(small.patches(other)), changed)
        second = module.apply(variables, other, order)
        assert np.allclose(first, second, atol=1e-6) == equal
    # The maps are where the patches are: of a linear model they would move with them.
    assert module.apply(variables, images)["block0"].shape == (1, 8, 8, 64)


def test_views():
    image = np.full((64, 32, 32, 1), -1.0, np.float32)
    image[:, 10, 20] = 0.5
    seen = np.asarray(supervision.views(jax.random.key(0), jnp.asarray(image), 3))
    places = np.argwhere(seen[..., 0] > -1)[:, 1:]
    assert len(places) == 64
    assert set(places[:, 0]) <= set(range(7, 14))
    assert set(places[:, 1]) <= set(range(17, 24)) | set(range(31 - 23, 31 - 16))
    assert len({tuple(p) for p in places}) > 10
    assert np.unique(seen[seen > -1]).size > 30


def test_letters():
    codes = supervision.letters(("bag", "coat"))
    assert codes.shape == (2, 4) and bytes(codes[0, :3].tolist()) == b"bag" and codes[0, 3] == 0
    tower = small.LetterTower(5)
    variables = tower.init(jax.random.key(0), codes)
    found = tower.apply(variables, codes)
    assert np.abs(found[0] - found[1]).max() > 1e-3


def test_saved_networks_are_read_back(tmp_path):
    from common import storage

    variables = small.ConvNet(10).init(jax.random.key(0), np.zeros((1, 32, 32, 1), np.float32))
    storage.save_tree(tmp_path / "class.safetensors", jax.device_get(dict(variables)))
    gan = small.SmallGenerator().init(jax.random.key(0), np.zeros((1, 64), np.float32))
    storage.save_tree(tmp_path / "gan.safetensors", jax.device_get(dict(gan)))
    generator, (model,) = train.networks(tmp_path, ("class",))
    assert (generator.name, model.name, model.calibrate is None) == ("gan", "class", False)
    jax.tree.map(np.testing.assert_array_equal, model.params, dict(variables))
    with pytest.raises(ValueError, match="no network 'colour'; there are class, distillation"):
        small.network("colour", {})
    with pytest.raises(FileNotFoundError):
        train.networks(tmp_path, ("names",))


def test_clothing():
    image = np.zeros((1, 28, 28), np.uint8)
    image[0, 0, 0] = 255
    found = train.clothing(image)
    assert found.shape == (1, 32, 32, 1) and found[0, 2, 2, 0] == 1 and found[0, 0, 0, 0] == -1
