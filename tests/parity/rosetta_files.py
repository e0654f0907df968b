"""Checkpoint files of random weights under their official names, by the packages that define them.

Small configurations, or the published ones (1 GB of files).
"""

import functools

import safetensors.torch
import timm
import torch
from open_clip.modified_resnet import ModifiedResNet
from pytorch_pretrained_biggan import BigGAN, BigGANConfig

from common.nets import biggan, clip_resnet, resnet, vit
from rosetta.zoo import checkpoints
from tests.parity.test_vision_packages import randomise

SIZE = 32  # pixels of the small networks and of the small generator
BLOCKS = ((0, 16, 16), (1, 16, 8), (1, 8, 4), (1, 4, 2), (0, 2, 1))
FILES = {
    "resnet50": "resnet50-11ad3fa6.pth",
    "dino_resnet50": "dino_resnet50_pretrain.pth",
    "mae_vitb16": "mae_pretrain_vit_base.pth",
    "dino_vitb16": "dino_vitbase16_pretrain.pth",
    "clip_resnet50": "clip_rn50.safetensors",
}


def shrink(monkeypatch):
    """Makes the five networks and BigGAN of 256 pixels small ones."""
    sizes = dict(stages=(1, 1, 1, 1), stem=64, channels=(32, 64, 96, 128))
    tower = clip_resnet.ClipResNet((1, 1, 1, 1), 8, 16, SIZE)
    transformer = vit.ViT(8, 16, 2, 2, SIZE)
    modules = {
        "resnet50": resnet.ResNet(**sizes, classes=5),
        "dino_resnet50": resnet.ResNet(**sizes, classes=0),
        "mae_vitb16": transformer,
        "dino_vitb16": transformer,
        "clip_resnet50": tower,
    }
    for name, module in modules.items():
        old = checkpoints.NETWORKS[name]
        taps = old.taps[: 2 if module is transformer else 4]
        new = checkpoints.Network(module, old.from_tensors, taps, old.statistics, SIZE)
        monkeypatch.setitem(checkpoints.NETWORKS, name, new)
    small = functools.partial(biggan.BigGan, channels=8, latent=6, classes=300, attention=2)
    monkeypatch.setattr(biggan, "BigGan", small)
    monkeypatch.setitem(biggan.VARIANTS, 256, BLOCKS)


def write(folder, small=True):
    """Writes the generator's file and those of the five networks; returns their paths by name."""
    torch.manual_seed(0)
    if small:
        bottleneck = timm.models.resnet.Bottleneck
        body = dict(layers=(1, 1, 1, 1), channels=(8, 16, 24, 32))
        body = timm.models.resnet.ResNet(bottleneck, num_classes=5, **body)
        transformer = timm.models.vision_transformer.VisionTransformer(
            SIZE, 8, num_classes=0, embed_dim=16, depth=2, num_heads=2
        )
        tower = ModifiedResNet([1, 1, 1, 1], 16, 4, image_size=SIZE, width=8)
        config = BigGANConfig(
            output_dim=SIZE, z_dim=6, class_embed_dim=6, channel_width=8, num_classes=300,
            layers=[(bool(up), a, b) for up, a, b in BLOCKS], attention_layer_position=2,
        )  # fmt: skip
    else:
        body = timm.create_model("resnet50")
        transformer = timm.create_model("vit_base_patch16_224", num_classes=0)
        tower = ModifiedResNet([3, 4, 6, 3], 1024, 32, image_size=224, width=64)
        layers = [(bool(up), a, b) for up, a, b in biggan.VARIANTS[256]]
        config = BigGANConfig(output_dim=256, layers=layers, attention_layer_position=8)
    states = {"biggan": spectral(randomise(BigGAN(config))).state_dict()}
    for seed, name in enumerate(FILES):
        oracle = {"mae": transformer, "dino_v": transformer, "clip": tower}
        found = next((v for k, v in oracle.items() if name.startswith(k)), body)
        state = randomise(found, seed).state_dict()
        states[name] = {key: value.clone() for key, value in state.items()}
    states["dino_resnet50"] = {
        key: value for key, value in states["dino_resnet50"].items() if not key.startswith("fc.")
    }
    paths = {"biggan": folder / "biggan-deep-256-pytorch_model.bin"}
    torch.save(states["biggan"], paths["biggan"])
    for name, file in FILES.items():
        paths[name] = folder / file
        if name == "clip_resnet50":
            tensors = {f"visual.{key}": value for key, value in states[name].items()}
            safetensors.torch.save_file(tensors, paths[name])
        else:
            torch.save({"model": states[name]} if name == "mae_vitb16" else states[name],
                       paths[name])  # fmt: skip
    return paths


def spectral(module):
    """Sets the singular vectors that spectral normalisation divides by, as training does."""
    for part in module.modules():
        if not hasattr(part, "weight_orig"):
            continue
        matrix, u = part.weight_orig.detach().flatten(1), part.weight_u
        for _ in range(3):
            v = torch.nn.functional.normalize(matrix.T @ u, dim=0)
            u = torch.nn.functional.normalize(matrix @ v, dim=0)
        part.weight_u.copy_(u)
        part.weight_v.copy_(v)
    return module
