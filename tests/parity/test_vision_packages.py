"""Networks of the zoo at their published sizes against the packages whose checkpoints they read.

Random weights; small images, because the sizes of the layers are what is compared.
"""

import jax
import numpy as np
import pytest
import timm
import torch
from open_clip.modified_resnet import ModifiedResNet
from pytorch_pretrained_biggan import BigGAN, BigGANConfig

from common.nets import biggan, clip_resnet, resnet, vit

pytestmark = pytest.mark.parity


def randomise(module, seed=0):
    """Random batch statistics, gains and offsets; matrices as the package initialises them."""
    torch.manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if tensor.dtype == torch.float32 and not name.endswith(("_u", "_v", "_orig")):
            if name.endswith(("running_var", "running_vars")):
                tensor.uniform_(0.8, 1.25)
            elif tensor.ndim < 2 or "running" in name:
                tensor.normal_(1.0 if name.endswith("weight") else 0.0, 0.1)
    return module.eval()


def arrays(module):
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}


def noise(size, count=2):
    x = np.random.default_rng(0).normal(size=(count, size, size, 3)).astype(np.float32)
    return x, torch.from_numpy(x.transpose(0, 3, 1, 2).copy())


def recorded(modules):
    """Name -> last output of each torch module, channels last."""
    maps = {}

    def keep(name):
        def hook(module, inputs, output):
            maps[name] = output.detach().permute(0, 2, 3, 1).numpy()

        return hook

    for name, module in modules.items():
        module.register_forward_hook(keep(name))
    return maps


def close(actual, expected):
    """Largest error over the largest value."""
    error = np.max(np.abs(np.asarray(actual) - expected)) / max(1.0, np.max(np.abs(expected)))
    assert error <= 1e-4, error


def test_resnet50_of_timm():
    oracle = randomise(timm.create_model("resnet50", num_classes=1000))
    layers = {f"layer{i}": getattr(oracle, f"layer{i}") for i in range(1, 5)}
    maps = recorded(layers)
    x, reference = noise(64)
    with torch.no_grad():
        expected = oracle(reference).numpy()
    module = resnet.ResNet()
    logits, taps = jax.jit(module.apply)(resnet.from_tensors(module, arrays(oracle)), x)
    close(logits, expected)
    assert sum(tap.shape[-1] for tap in taps.values()) == 3840
    for name, expected_map in maps.items():
        close(taps[name], expected_map)


def test_vit_small_of_timm():
    width, heads, patch, size = 384, 6, 16, 64
    oracle = timm.create_model("vit_small_patch16_224", img_size=size, num_classes=0)
    oracle = randomise(oracle)
    hidden = []
    for block in oracle.blocks:
        block.mlp.fc2.register_forward_pre_hook(lambda _, inputs: hidden.append(inputs[0]))
    x, reference = noise(size)
    with torch.no_grad():
        expected = oracle(reference).numpy()
    module = vit.ViT(patch, width, 12, heads, size)
    output, taps = jax.jit(module.apply)(vit.from_tensors(module, arrays(oracle)), x)
    close(output, expected)
    assert sum(tap.shape[-1] for tap in taps.values()) == 12 * 4 * width
    for index, tensor in enumerate(hidden):
        close(taps[f"block{index}"], tensor[:, 1:].reshape(2, 4, 4, 4 * width).numpy())


def test_clip_resnet50_of_open_clip():
    oracle = randomise(ModifiedResNet([3, 4, 6, 3], 1024, 32, image_size=64, width=64))
    maps = recorded({f"layer{i}": getattr(oracle, f"layer{i}") for i in range(1, 5)})
    x, reference = noise(64)
    with torch.no_grad():
        expected = oracle(reference).numpy()
    module = clip_resnet.ClipResNet(size=64)
    embedding, taps = jax.jit(module.apply)(clip_resnet.from_tensors(module, arrays(oracle)), x)
    close(embedding, expected)
    assert set(taps) == set(maps)
    for name, expected_map in maps.items():
        close(taps[name], expected_map)


# spectral_norm of this old package is torch's former one.
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.spectral_norm` is deprecated:FutureWarning")
def test_biggan_deep_of_its_package():
    blocks = ((0, 16, 16), (1, 16, 8), (0, 8, 4), (1, 4, 2), (1, 2, 1))
    config = BigGANConfig(output_dim=32, z_dim=12, class_embed_dim=12, channel_width=16,
                          num_classes=7, layers=[(bool(up), a, b) for up, a, b in blocks],
                          attention_layer_position=3)
    torch.manual_seed(1)
    oracle = randomise(BigGAN(config))
    convs = {}
    for number, layer in enumerate(oracle.generator.layers):
        if hasattr(layer, "conv_0"):
            convs |= {f"layer{number}.conv{i}": getattr(layer, f"conv_{i}") for i in range(4)}
    maps = recorded({**convs, "rgb": oracle.generator.conv_to_rgb})
    z = np.random.default_rng(0).normal(size=(3, 12)).astype(np.float32)
    classes = np.eye(7, dtype=np.float32)[[0, 3, 6]]
    inputs = torch.from_numpy(z), torch.from_numpy(classes), 1.0
    with torch.no_grad():
        oracle.train()
        for _ in range(10):  # each call is one power iteration towards the singular vectors
            oracle(*inputs)
        expected = oracle.eval()(*inputs)
    module = biggan.BigGan(blocks, 16, 12, 7, 3)
    variables = biggan.from_tensors(module, arrays(oracle), 1.0)
    images, taps = jax.jit(module.apply)(variables, z, classes)
    close(images, expected.permute(0, 2, 3, 1).numpy())
    assert len(maps) == 4 * len(blocks) + 1
    for name, expected_map in maps.items():
        close(taps[name], expected_map)
