"""The zoo: numbers of units and maps as published, pre-processing, weights from files, twins."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from common.nets import biggan, resnet, stylegan2, stylegan3
from common.porting import PortingError
from common.storage import save_arrays
from rosetta import stream
from rosetta.units import Layout
from rosetta.zoo import checkpoints, generators, images, shipped
from rosetta.zoo.randomised import randomised
from rosetta.zoo.tapped import Tapped

RESNET = ((56, 28, 14, 7), 3840)
COUNTS = {
    "resnet50": RESNET,
    "dino_resnet50": RESNET,
    "clip_resnet50": RESNET,
    "dino_vits16": ((14,) * 12, 18432),
    "dino_vitb16": ((14,) * 12, 36864),
    "dino_vitb8": ((28,) * 12, 36864),
    "mae_vitb16": ((14,) * 12, 36864),
}


@pytest.mark.parametrize("name", checkpoints.NETWORKS)
def test_units_of_the_published_networks(name):
    network = checkpoints.NETWORKS[name]
    x = jax.ShapeDtypeStruct((1, network.size, network.size, 3), jnp.float32)
    shapes = jax.eval_shape(network.module.init, jax.random.key(0), x)
    model = checkpoints.tapped(name, network, shapes)
    layout = model.layout(256)
    assert (layout.sizes, len(layout)) == COUNTS[name]


BIGGAN = {4: 4096, 8: 7168, 16: 4096, 32: 3584, 64: 2944, 128: 1024, 256: 384}


def test_units_of_the_generators():
    module = biggan.BigGan()
    x = [jax.ShapeDtypeStruct((1, n), jnp.float32) for n in (128, 1000)]
    shapes = jax.eval_shape(module.init, jax.random.key(0), *x)
    layout = generators.biggan_deep(module, shapes, "biggan256", 207).layout()
    assert (len(layout.taps), len(layout)) == (53, 23296)
    assert {size: len(layout.units_of(size)) for size in layout.grids} == BIGGAN
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    statistics = sum(c for t, c in zip(layout.taps, layout.channels, strict=True) if "conv" in t)
    assert count - 2 * statistics < 55.9e6 < count  # statistics are no parameters there
    for size, units in ((256, 4882), (512, 5013)):
        style = stylegan2.StyleGan2(size)
        z = jax.ShapeDtypeStruct((1, 512), jnp.float32)
        shapes = jax.eval_shape(style.init, jax.random.key(0), z)
        generator = generators.stylegan2_generator(style, shapes, "stylegan2")
        assert (len(generator.layout()), generator.size) == (units, size)
    large = stylegan3.StyleGan3(stylegan3.stylegan_xl_layers(256), latent=64, classes=1000)
    z, label = jax.ShapeDtypeStruct((1, 64), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32)
    shapes = jax.eval_shape(large.init, jax.random.key(0), z, label)
    generator = generators.stylegan3_generator(large, shapes, "stylegan_xl256", 207, 0.7)
    layout = generator.layout()
    assert (len(layout.taps), len(layout), generator.size) == (33, 26434, 256)
    assert layout.sizes[:2] == (256, 36) and layout.taps[-1] == "L31_256_3"
    with pytest.raises(ValueError, match="class 1000 of 1000"):
        generators.biggan_deep(module, {}, "biggan", 1000)
    with pytest.raises(ValueError, match="of 64 pixels; there are .128, 256, 512"):
        generators.load_biggan_deep("none", 64, 0)


def test_units_of_the_shipped_networks():
    generator = shipped.dcgan_faces()
    layout = generator.layout()
    assert (layout.sizes, len(layout), generator.size) == ((4, 8, 16, 32), 960, 64)
    assert layout.taps == ("block0", "block1", "block2", "block3")
    found = {}
    for name, size in (
        ("lite0", 224), ("lite1", 240), ("vgg16", 224), ("alexnet", 224), ("faces", 150)
    ):  # fmt: skip
        layout = shipped.load(name, size).layout(64)
        found[name] = len(layout)
        assert list(layout.sizes) == sorted(layout.sizes, reverse=True)
    assert found == {
        "lite0": 1808, "lite1": 2256, "vgg16": 4224, "alexnet": 1152, "faces": 1760
    }  # fmt: skip
    with pytest.raises(ValueError, match="no network 'vgg19'; there are lite0, lite1, vgg16"):
        shipped.load("vgg19", 224)


@pytest.mark.parametrize("source, target", [(64, 224), (256, 224), (10, 10), (7, 5)])
def test_bicubic_is_torch_s(source, target):
    x = np.random.default_rng(0).uniform(size=(2, source, source, 3)).astype(np.float32)
    moved = torch.from_numpy(x).permute(0, 3, 1, 2).double()
    expected = F.interpolate(moved, size=(target, target), mode="bicubic", align_corners=False)
    actual = images.bicubic(x, target)
    np.testing.assert_allclose(actual, expected.permute(0, 2, 3, 1), atol=2e-6)


def test_standardise():
    x = np.full((1, 2, 2, 3), 0.5, np.float32)
    expected = (0.5 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(images.standardise(x)[0, 1, 1], expected, rtol=4e-6)


@pytest.fixture(scope="module")
def small():
    """A small ResNet as a network of the zoo."""
    module = resnet.ResNet((1, 1), 4, (8, 16), 3)
    network = checkpoints.Network(module, resnet.from_tensors, ("layer1", "layer2"), size=32)
    variables = module.init(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))
    return checkpoints.tapped("small", network, variables)


def test_twins_are_calibrated(small):
    pictures = np.random.default_rng(0).uniform(size=(8, 20, 20, 3)).astype(np.float32)
    twin = randomised(small, 3, pictures)
    assert twin.name == "small~3"
    for old, new in zip(
        jax.tree.leaves(small.params["params"]), jax.tree.leaves(twin.params["params"]), strict=True
    ):
        np.testing.assert_array_equal(np.sort(np.ravel(old)), np.sort(np.ravel(new)))
        assert old.ndim < 2 or not np.array_equal(old, new)
    # The statistics are those of the images: normalised maps have mean 0 and variance 1.
    x = images.standardise(images.bicubic(pictures, 32))
    kernel = twin.params["params"]["conv1"]["kernel"]
    raw = jax.lax.conv_general_dilated(
        x, kernel, (2, 2), [(3, 3)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    stats = twin.params["batch_stats"]["bn1"]
    np.testing.assert_allclose(stats["mean"], raw.mean((0, 1, 2)), atol=1e-5)
    np.testing.assert_allclose(stats["var"], raw.var((0, 1, 2)), rtol=1e-4)
    again = randomised(small, 3, pictures)
    jax.tree.map(np.testing.assert_array_equal, twin.params, again.params)


def test_checkpoint_files(small, tmp_path):
    tensors = {}
    names = {"kernel": "weight", "scale": "weight", "bias": "bias"}
    for path, leaf in jax.tree_util.tree_flatten_with_path(small.params["params"])[0]:
        *parts, kind = [str(key.key) for key in path]
        array = np.asarray(leaf)
        array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
        tensors[".".join(_torch_name(parts)) + f".{names[kind]}"] = array
    for path, leaf in jax.tree_util.tree_flatten_with_path(small.params["batch_stats"])[0]:
        *parts, kind = [str(key.key) for key in path]
        tensors[".".join(_torch_name(parts)) + f".running_{kind}"] = np.asarray(leaf)
    network = checkpoints.Network(resnet.ResNet((1, 1), 4, (8, 16), 3), resnet.from_tensors, ())
    files = [save_arrays(tmp_path / "a.safetensors", tensors), tmp_path / "b.pth"]
    wrapped = {f"module.{name}": torch.from_numpy(a.copy()) for name, a in tensors.items()}
    torch.save({"state_dict": wrapped}, files[1])
    for path in files:
        loaded = network.from_tensors(network.module, checkpoints.read_tensors(path))
        jax.tree.map(np.testing.assert_array_equal, loaded, dict(small.params))
    with pytest.raises(PortingError, match="targets not filled"):
        checkpoints.load("resnet50", files[0])
    with pytest.raises(ValueError, match="no network 'resnet51'"):
        checkpoints.load("resnet51", files[0])
    torch.save([torch.zeros(3)], tmp_path / "c.pth")
    with pytest.raises(ValueError, match="holds no state dict but list"):
        checkpoints.read_tensors(tmp_path / "c.pth")


def _torch_name(parts):
    first, *rest = parts
    if first.startswith("layer"):
        stage, block = first.removeprefix("layer").split("_")
        rest = [{"downsample": "downsample.0", "downsample_bn": "downsample.1"}.get(r, r)
                for r in rest]
        return [f"layer{stage}", block, *rest]
    return parts


def test_latents_do_not_depend_on_the_run():
    generator = shipped.dcgan_faces()
    first, again = (stream.latents(generator, 5, 2, 4) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - stream.latents(generator, 5, 3, 4)).min() > 0


def test_own_model_needs_no_flax():
    model = Tapped("own", lambda w, x: {"grey": (x @ w)[..., :1]}, np.eye(3, dtype=np.float32),
                   ("grey",))
    assert model.layout(10) == Layout("own", ("grey",), (10,), (1,))


def test_lite1_knows_its_classes():
    from skimage import data

    from common.nets import efficientnet_lite

    image = data.coffee()[:400, 100:500] / np.float32(255)
    x = efficientnet_lite.preprocess(images.bicubic(jnp.asarray(image[None], jnp.float32), 240))
    variables = efficientnet_lite.load_variables("lite1")
    logits, _ = jax.jit(efficientnet_lite.EfficientNetLite("lite1").apply)(variables, x)
    assert int(logits.argmax()) == 967  # espresso
