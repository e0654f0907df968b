"""Members of DeepCOVID-XR: what they see, and files of both families with nothing left over."""

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from common.nets import keras_weights, resnet_trunk
from common.porting import PortingError
from medical.fusion import backbones, ensemble, members

RNG = np.random.default_rng(0)
MEMBER = members.Member("resnet50", 32, cropped=False)


def small(style: str, momentum: float) -> resnet_trunk.ResNetTrunk:
    return resnet_trunk.ResNetTrunk((1, 2), 4, style, momentum)


@pytest.fixture
def tiny(monkeypatch):
    """A ResNet of three blocks in the place of the published one."""
    known = backbones.BACKBONES["resnet50"]._replace(make=small)
    monkeypatch.setitem(backbones.BACKBONES, "resnet50", known)


def test_the_paper_has_24_members():
    assert len(set(members.PUBLISHED)) == 24
    assert {m.backbone for m in members.PUBLISHED} == set(backbones.BACKBONES)


def keras_tensors() -> dict[str, np.ndarray]:
    """A tiny network's tensors with Keras' names, and a last layer of one unit."""
    shapes = {"conv1_conv": (7, 7, 3, 4)}
    for stage, blocks, width, before in ((2, 1, 4, 4), (3, 2, 8, 16)):
        for block in range(1, blocks + 1):
            at = f"conv{stage}_block{block}"
            if block == 1:
                shapes[f"{at}_0_conv"] = (1, 1, before, 4 * width)
            first = before if block == 1 else 4 * width
            shapes |= {f"{at}_1_conv": (1, 1, first, width), f"{at}_2_conv": (3, 3, width, width),
                       f"{at}_3_conv": (1, 1, width, 4 * width)}
    tensors = {}
    for name, shape in shapes.items():
        norm, width = name.replace("_conv", "_bn").replace("conv1_bn", "conv1_bn"), shape[-1]
        tensors[f"{name}/kernel"] = RNG.normal(size=shape) / np.prod(shape[:3]) ** 0.5
        tensors[f"{name}/bias"] = RNG.normal(size=width)
        tensors |= {f"{norm}/gamma": RNG.uniform(0.5, 1.5, width),
                    f"{norm}/beta": RNG.normal(size=width),
                    f"{norm}/moving_mean": RNG.normal(size=width),
                    f"{norm}/moving_variance": RNG.uniform(0.5, 1.5, width)}
    tensors |= {"dense_3/kernel": RNG.normal(size=(32, 1)), "dense_3/bias": RNG.normal(size=1)}
    return {name: value.astype(np.float32) for name, value in tensors.items()}


def write_h5(path, tensors: dict[str, np.ndarray], inside: bool) -> None:
    """The layout of Keras 2: groups of layers, with the names of their tensors."""
    with h5py.File(path, "w") as file:
        root = file.create_group("model_weights") if inside else file
        layers: dict[str, list[str]] = {"input_1": []}
        for name in tensors:
            layers.setdefault(name.split("/")[0], []).append(name)
        root.attrs["layer_names"] = [layer.encode() for layer in layers]
        for layer, names in layers.items():
            group = root.create_group(layer)
            group.attrs["weight_names"] = [f"{name}:0".encode() for name in names]
            for name in names:
                group.create_dataset(f"{name}:0", data=tensors[name])


@pytest.mark.usefixtures("tiny")
def test_a_member_is_read_from_keras(tmp_path):
    tensors = keras_tensors()
    write_h5(tmp_path / "a.h5", tensors, True)
    write_h5(tmp_path / "b.h5", tensors, False)
    net, variables = members.load(str(tmp_path / "a.h5"), MEMBER)
    assert net.trunk.style == "keras"
    _, again = members.load(str(tmp_path / "b.h5"), MEMBER)
    jax.tree.map(np.testing.assert_array_equal, variables, again)
    np.testing.assert_array_equal(variables["params"]["out"]["bias"], tensors["dense_3/bias"])
    # A bias in front of a normalisation is in its mean.
    mean = variables["batch_stats"]["trunk"]["layer2_1_3"]["bn"]["mean"]
    expected = (tensors["conv3_block2_3_bn/moving_mean"] - tensors["conv3_block2_3_conv/bias"])
    np.testing.assert_array_equal(mean, expected)
    images = jnp.asarray(RNG.uniform(-1, 1, (2, 32, 32, 1)), jnp.float32)
    predict = members.predictor(net, variables)
    p = predict(images)
    assert p.shape == (2, 2)
    np.testing.assert_allclose(p.sum(-1), 1, rtol=1e-6)
    moved = ensemble.averaged(predict, jax.random.key(0), images, 3)
    assert moved.shape == (2, 2) and np.any(moved != p)
    del tensors["conv3_block2_3_bn/beta"]
    write_h5(tmp_path / "c.h5", tensors, True)
    with pytest.raises(PortingError, match="targets not filled.*layer2_1_3/bn/bias"):
        members.load(str(tmp_path / "c.h5"), MEMBER)
    write_h5(tmp_path / "d.h5", {**keras_tensors(), "extra/kernel": np.zeros(2)}, True)
    with pytest.raises(PortingError, match="no rule matches.*extra/kernel"):
        members.load(str(tmp_path / "d.h5"), MEMBER)


@pytest.mark.usefixtures("tiny")
def test_weights_of_the_other_family_are_refused(tmp_path):
    safetensors.numpy.save_file({"fc.weight": np.zeros((1, 32), np.float32)},
                                tmp_path / "a.safetensors")
    module = backbones.make("resnet50", 32, "keras")
    tensors = backbones.read_tensors(str(tmp_path / "a.safetensors"))
    with pytest.raises(ValueError, match="names of torch for a resnet50 of style 'keras'"):
        backbones.port("resnet50", module, tensors)


def test_damaged_keras_files_are_named(tmp_path):
    (tmp_path / "text.h5").write_text("no weights")
    with pytest.raises(keras_weights.KerasFileError, match="text.h5: damaged file"):
        keras_weights.read(tmp_path / "text.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file.create_dataset("layers/conv/vars/0", data=np.zeros(2))
    with pytest.raises(keras_weights.KerasFileError, match="no attribute layer_names"):
        keras_weights.read(tmp_path / "other.h5")
    with pytest.raises(FileNotFoundError):
        keras_weights.read(tmp_path / "none.h5")


def test_names_and_sizes_of_trunks():
    with pytest.raises(ValueError, match="backbone 'vgg'; known: densenet121, resnet50"):
        backbones.make("vgg", 224)
    with pytest.raises(ValueError, match="64 pixels; Inception-v3 needs 75"):
        backbones.make("inception_v3", 64)
    with pytest.raises(ValueError, match="style 'jax'; known: keras, torch"):
        backbones.make("xception", 224, "jax")


def test_what_a_member_sees():
    image = np.full((60, 40), 0.2, np.float32)
    image[:, 20] = 0.9  # the spine
    image[20:40, 8:16] = image[20:40, 25:33] = 0.0
    lungs = image == 0
    whole = members.prepare([image, image], MEMBER)
    assert whole.shape == (2, 32, 32, 1) and whole.min() >= -1 and whole.max() <= 1
    crop = members.prepare([image], members.Member("resnet50", 32, True), [lungs])
    # The lungs fill more of the square.
    assert (crop < -0.9).mean() > 2 * (whole[:1] < -0.9).mean()
    with pytest.raises(ValueError, match="a mask of the lungs of each of 1 radiographs"):
        members.prepare([image], members.Member("resnet50", 32, True))
    with pytest.raises(ValueError, match=r"radiograph 0 has shape \(60, 40, 1\)"):
        members.prepare([image[..., None]], MEMBER)


@pytest.mark.parametrize(("name", "maps", "parameters"), [
    # Keras' counts without classifier. It has no scales in the Inceptions' normalisations, biases
    # in ResNet's convolutions, and 7 constants in front of EfficientNet.
    ("densenet121", 1024, 7_037_504), ("resnet50", 2048, 23_587_712 - 26_560),
    ("inception_v3", 2048, 21_802_784 + 17_216), ("inception_resnet_v2", 1536, 54_336_736 + 30_272),
    ("xception", 2048, 20_861_480), ("efficientnet_b2", 1408, 7_768_569 - 7)])
def test_published_sizes(name, maps, parameters):
    net = backbones.make(name, 224)
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    shapes = jax.eval_shape(net.init, jax.random.key(0), image)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == parameters
    assert jax.eval_shape(net.apply, shapes, image).shape[3] == maps


def test_timms_tensorflow_networks_are_keras_networks():
    """Their names do not tell the style, so the user's counts."""
    assert not backbones.BACKBONES["efficientnet_b2"].told
    module = backbones.make("efficientnet_b2", 64, "keras")
    with pytest.raises(PortingError):  # and not FamilyError: the tensors are looked at
        backbones.port("efficientnet_b2", module, {"conv_stem.weight": np.zeros((32, 3, 3, 3))})
    module = backbones.make("efficientnet_b2", 64, "torch")
    with pytest.raises(backbones.FamilyError, match="names of keras"):
        backbones.port("efficientnet_b2", module, {"stem_conv/kernel": np.zeros((3, 3, 3, 32))})
