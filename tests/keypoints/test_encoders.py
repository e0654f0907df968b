"""The ResNet encoder: weights of a file, frozen statistics, places of its maps."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from configs import keypoints as keypoints_config
from keypoints import build, data, encoders, models, pretrained, train, unprojection
from keypoints.models import KeypointNet
from tests.keypoints.small import CONFIG, cube, recording

TINY = dataclasses.replace(
    CONFIG, backbone="resnet", encoder=(16, 16, 24), stages=(1, 2, 1), stem=8,
    decoder=(8, 8, 8, 8, 8), sigmas=(0.3, 0.2, 0.1, 0.1, 0.0), front_blocks=1,
    full_volume=True,
)  # fmt: skip


@pytest.fixture(scope="module")
def scene():
    own = recording(frames=24)
    rig = data.on_device(cube().cameras(own.calibration.cameras))
    model = KeypointNet(TINY)
    params = models.init(model, jax.random.key(0), (32, 32), rig)
    return own, rig, model, params


def torchvision(weights, statistics, rng):
    """A checkpoint with torchvision's names, and the trees it must become."""
    tensors, trees = {"fc.weight": np.zeros((10, 24), np.float32)}, []
    for tree in (weights, statistics):
        filled = {}
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            keys = [key.key for key in path]
            value = rng.uniform(0.5, 1.0, leaf.shape).astype(np.float32)
            filled["/".join(keys)] = value
            name = ".".join(keys[:-1]).replace("_", ".", 1) if keys[0][:5] == "layer" else keys[0]
            name = name.replace("downsample_bn", "downsample.1")
            name = name + ".0" if name.endswith("downsample") else name
            last = {"kernel": "weight", "scale": "weight", "mean": "running_mean",
                    "var": "running_var"}.get(keys[-1], keys[-1])  # fmt: skip
            whole = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value
            tensors[f"{name}.{last}"] = np.ascontiguousarray(whole)
        trees.append(filled)
    return tensors, trees


def test_weights_of_a_file_are_put_in(scene, tmp_path):
    _, _, _, params = scene
    own = params["encoder"]
    tensors, trees = torchvision(
        own["weights"], own["statistics"], np.random.default_rng(0))
    safetensors.numpy.save_file(tensors, tmp_path / "w.safetensors")
    found = pretrained.load(tmp_path / "w.safetensors", TINY)
    for name, tree in zip(("weights", "statistics"), trees, strict=True):
        for path, leaf in jax.tree_util.tree_leaves_with_path(found[name]):
            np.testing.assert_array_equal(leaf, tree["/".join(k.key for k in path)])
    assert jax.tree.structure(found) == jax.tree.structure(own)
    del tensors["bn1.bias"]
    safetensors.numpy.save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(pretrained.WeightsError, match="w.safetensors holds other weights"):
        pretrained.load(tmp_path / "w.safetensors", TINY)
    for name in ("x.safetensors", "x.pth"):
        (tmp_path / name).write_bytes(b"no weights")
        with pytest.raises(pretrained.WeightsError, match=f"{name} cannot be read"):
            pretrained.load(tmp_path / name, TINY)
    with pytest.raises(pretrained.WeightsError, match="'small' takes no weights"):
        pretrained.load(tmp_path / "w.safetensors", CONFIG)


@pytest.mark.usefixtures("standard_promotion")  # optax, bias correction of Adam
def test_a_step_moves_the_weights_and_not_the_statistics(scene):
    own, rig, model, params = scene
    pairs = data.Pairs(own, np.arange(24), 3)
    batch = jax.tree.map(lambda *rows: np.stack(rows), *(pairs[i] for i in (0, 5)))
    recipe = train.Recipe(num_steps=5, warmup=1, view_dropout=0.0)
    step = jax.jit(train.make_train_step(model, recipe, rig))
    state = train.init_state(params, recipe)
    for index in range(2):  # the first step of the warm-up has rate 0
        state, metrics = step(state, batch, jax.random.key(index))
    assert np.isfinite(float(metrics["loss"]))
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), state.params, params)
    assert max(jax.tree.leaves(moved["encoder"]["statistics"])) == 0.0
    assert min(jax.tree.leaves(moved["encoder"]["weights"]["layer3_0"]["conv1"])) > 0.0
    # the change is predicted at the image's own size
    assert TINY.change_stride == 1 and CONFIG.change_stride == 2


def test_maps_lie_where_the_voxels_look():
    """Pixel i at stride s on pixel s i: means over 4-pixel steps find a ramp's values exactly."""
    ramp = jnp.arange(32.0)[None, None, :, None] * jnp.ones((1, 32, 1, 1))
    coarse = ramp[:, ::8, ::8]  # what a map of corners holds at stride 8
    fine = encoders.double(coarse)
    np.testing.assert_allclose(fine[0, :, :7, 0], ramp[0, ::4, ::4, 0][:, :7])
    own = recording()
    rig = data.on_device(cube().cameras(own.calibration.cameras))
    pixels, _ = unprojection.locate(rig, 4, (8, 8), True)
    full, visible = unprojection.locate(rig, 4, (32, 32))
    np.testing.assert_allclose(4 * pixels, full, atol=1e-4)
    seen = unprojection.bilinear(ramp[:, ::4, ::4], pixels[0])[0, :, 0]
    inner = np.asarray(visible[0]) & (np.asarray(full[0]).max(axis=-1) < 28)
    assert inner.sum() > 10
    np.testing.assert_allclose(seen[inner], full[0, inner, 0], atol=1e-3)


def test_the_published_preset_has_the_published_sizes():
    """Shapes only: 24 million parameters of the encoder, 12 of V2V, a change at full size."""
    config = keypoints_config.get_config("published")
    sizes = build.model_config(config)
    sizes.check_images(config.data.size, config.data.size)
    assert sizes.change_stride == 1 and sizes.stride == 32
    own = recording()
    rig = data.on_device(cube().cameras(own.calibration.cameras))
    model = KeypointNet(sizes)
    images = jax.ShapeDtypeStruct((1, 3, 256, 256, 3), jnp.float32)
    shapes = jax.eval_shape(
        lambda x: model.init(jax.random.key(0), x, x, rig, jnp.ones((1, 3))), images)["params"]

    def count(tree):
        return sum(np.prod(leaf.shape, dtype=int) for leaf in jax.tree.leaves(tree))

    assert count(shapes["encoder"]["weights"]) == 23_508_032  # ResNet-50 without classifier
    assert 10e6 < count(shapes["v2v"]) < 13e6  # 11.94 million in the publication
    assert len(shapes["skeleton"]) == 105
    recipe = build.recipe(config)
    assert recipe.rotation == recipe.silhouette == recipe.coverage == recipe.overlap == 0


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="unknown backbone 'vit'"):
        dataclasses.replace(CONFIG, backbone="vit")
    with pytest.raises(ValueError, match="2 stages and 3 encoder strides"):
        dataclasses.replace(TINY, stages=(1, 1))
    with pytest.raises(ValueError, match="do not fit"):
        dataclasses.replace(TINY, decoder=(8,) * 6, sigmas=(0.1,) * 6)
