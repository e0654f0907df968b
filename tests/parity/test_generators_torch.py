"""BigGAN-deep, StyleGAN2 and CLIP's ResNet of random weights against forward passes in torch."""

import jax
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from common import porting
from common.nets import biggan, clip_resnet, stylegan2

pytestmark = pytest.mark.parity


class Tensors(dict):
    """Random tensors that come into being when a forward pass asks for them by name."""

    def __init__(self):
        super().__init__()
        self.random = np.random.default_rng(0)

    def get_normal(self, name, *shape, scale=1.0, mean=0.0):
        if name not in self:
            values = mean + scale * self.random.normal(size=shape)
            self[name] = torch.from_numpy(values.astype(np.float32))
        return self[name]

    def get_positive(self, name, *shape):
        if name not in self:
            self[name] = torch.from_numpy(self.random.uniform(0.5, 1.5, shape).astype(np.float32))
        return self[name]

    def spectral(self, name, *shape):
        """A weight over its largest singular value; leaves the vectors that estimate it."""
        weight = self.get_normal(f"{name}_orig", *shape)
        u, s, v = torch.linalg.svd(weight.flatten(1).double())
        self[f"{name}_u"], self[f"{name}_v"] = u[:, 0].float(), v[0].float()
        return weight / s[0].float()

    def arrays(self):
        return {name: tensor.numpy() for name, tensor in self.items()}


def close(actual, expected):
    expected = expected.permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-4)


BLOCKS = ((0, 16, 16), (1, 16, 8), (1, 8, 4), (0, 4, 4), (1, 4, 2), (1, 2, 1))
CHANNELS, LATENT, CLASSES, TRUNCATION = 8, 6, 5, 0.41


def torch_biggan(w, z, classes):
    """Follows pytorch-pretrained-BigGAN: spectral normalisation, statistics of a truncation."""
    maps = {}

    def statistics(name, channels):
        means = w.get_normal(f"{name}.running_means", 51, channels, scale=0.3)
        variances = w.get_positive(f"{name}.running_vars", 51, channels)
        return [(a[20] + a[21]) / 2 for a in (means, variances)]  # truncation 0.41

    def norm(x, name):
        width, channels = condition.shape[1], x.shape[1]
        mean, variance = statistics(name, channels)
        gain = 1 + condition @ w.spectral(f"{name}.scale.weight", channels, width).T
        offset = condition @ w.spectral(f"{name}.offset.weight", channels, width).T
        y = F.batch_norm(x, mean, variance, eps=1e-4)
        return y * gain[:, :, None, None] + offset[:, :, None, None]

    def conv(x, name, out, kernel, bias=True):
        weight = w.spectral(f"{name}.weight", out, x.shape[1], kernel, kernel)
        offset = w.get_normal(f"{name}.bias", out) if bias else None
        maps[name] = F.conv2d(x, weight, offset, padding=kernel // 2)
        return maps[name]

    def double(x):
        return F.interpolate(x, scale_factor=2)

    embedded = classes @ w.get_normal("embeddings.weight", LATENT, CLASSES).T
    condition = torch.cat([z, embedded], 1)
    width = 16 * CHANNELS
    x = F.linear(condition, w.spectral("generator.gen_z.weight", 16 * width, 2 * LATENT),
                 w.get_normal("generator.gen_z.bias", 16 * width))
    x = x.view(-1, 4, 4, width).permute(0, 3, 1, 2)
    number = 0
    for index, (up, _, out) in enumerate(BLOCKS):
        if index == 3:
            name, c = f"generator.layers.{number}", x.shape[1]
            theta = conv(x, f"{name}.snconv1x1_theta", c // 8, 1, False).flatten(2)
            phi = F.max_pool2d(conv(x, f"{name}.snconv1x1_phi", c // 8, 1, False), 2).flatten(2)
            g = F.max_pool2d(conv(x, f"{name}.snconv1x1_g", c // 2, 1, False), 2).flatten(2)
            weights = torch.softmax(theta.transpose(1, 2) @ phi, -1)
            o = (g @ weights.transpose(1, 2)).view(len(x), c // 2, *x.shape[2:])
            o = conv(o, f"{name}.snconv1x1_o_conv", c, 1, False)
            x, number = x + w.get_normal(f"{name}.gamma", 1) * o, number + 1
        name, hidden, y = f"generator.layers.{number}", x.shape[1] // 4, x
        for part, (c, k) in enumerate(((hidden, 1), (hidden, 3), (hidden, 3), (out * CHANNELS, 1))):
            y = norm(y, f"{name}.bn_{part}").relu()
            y = double(y) if up and part == 1 else y
            y = conv(y, f"{name}.conv_{part}", c, k)
        x = x[:, :x.shape[1] // 2] if x.shape[1] != y.shape[1] else x
        x, number = y + (double(x) if up else x), number + 1
    x = F.batch_norm(x, *statistics("generator.bn", CHANNELS),
                     w.get_positive("generator.bn.weight", CHANNELS),
                     w.get_normal("generator.bn.bias", CHANNELS), eps=1e-4).relu()
    return conv(x, "generator.conv_to_rgb", CHANNELS, 3)[:, :3].tanh(), maps


def test_biggan_deep():
    random = np.random.default_rng(1)
    z = random.normal(size=(2, LATENT)).astype(np.float32)
    classes = np.eye(CLASSES, dtype=np.float32)[[1, 3]]
    w = Tensors()
    expected, maps = torch_biggan(w, torch.from_numpy(z), torch.from_numpy(classes))
    module = biggan.BigGan(BLOCKS, CHANNELS, LATENT, CLASSES, 3)
    variables = biggan.from_tensors(module, w.arrays(), TRUNCATION)
    images, taps = jax.jit(module.apply)(variables, z, classes)
    close(images, expected)
    names = biggan.tap_names(module)
    assert len(names) == len(maps) == len(taps) == 4 * 6 + 4 + 1
    for name, tensor in zip(names, maps.values(), strict=True):
        close(taps[name], tensor)
    broken = w.arrays()
    del broken["generator.layers.1.conv_0.weight_u"]
    with pytest.raises(porting.PortingError, match="conv_0.weight_orig without"):
        biggan.from_tensors(module, broken)
    with pytest.raises(ValueError, match="truncation 1.2"):
        biggan.from_tensors(module, w.arrays(), 1.2)


def torch_stylegan2(w, z, psi, mean, size=16, most=8, base=64, layers=2):
    """Weights modulated for each image, as in the paper; filters by a plain convolution."""
    maps = {}
    fir = torch.outer(*(torch.tensor([1.0, 3, 3, 1]),) * 2) / 16

    def linear(x, name, out, rate=1.0):
        weight = w.get_normal(f"{name}.weight", out, x.shape[1], scale=1 / rate)
        bias = w.get_normal(f"{name}.bias", out, mean=1.0 if "modulation" in name else 0.0)
        return F.linear(x, weight * rate / x.shape[1] ** 0.5, bias * rate)

    def smooth(x, pad):
        kernel = fir.expand(x.shape[1], 1, 4, 4)
        return F.conv2d(F.pad(x, (*pad, *pad)), kernel, groups=x.shape[1])

    def modulated(x, style, name, out, kernel, demodulate, up=False):
        batch, channels = x.shape[:2]
        weight = w.get_normal(f"{name}.weight", 1, out, channels, kernel, kernel)
        s = linear(style, f"{name}.modulation", channels)
        weight = weight / (channels * kernel**2) ** 0.5 * s[:, None, :, None, None]
        if demodulate:
            weight = weight * (weight.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
        results = []
        for image, own in zip(x, weight, strict=True):
            if up:
                y = F.conv_transpose2d(image[None], own.transpose(0, 1), stride=2)
                results.append(smooth(y, (1, 1)))
            else:
                results.append(F.conv2d(image[None], own, padding=kernel // 2))
        return torch.cat(results)

    def styled(x, name, out, number, up=False):
        y = modulated(x, style, f"{name}.conv", out, 3, True, up)
        noise = w.get_normal(f"noises.noise_{number}", 1, 1, *y.shape[2:])
        y = y + w.get_normal(f"{name}.noise.weight", 1) * noise
        bias = w.get_normal(f"{name}.activate.bias", out).view(1, -1, 1, 1)
        return F.leaky_relu(y + bias, 0.2) * 2**0.5

    def colour(x, name):
        return modulated(x, style, f"{name}.conv", 3, 1, False)

    style = z * (z.square().mean(1, keepdim=True) + 1e-8).rsqrt()
    for index in range(layers):
        style = F.leaky_relu(linear(style, f"style.{index + 1}", z.shape[1], 0.01), 0.2) * 2**0.5
    style = mean + psi * (style - mean)
    x = w.get_normal("input.input", 1, min(most, base // 4), 4, 4).expand(len(z), -1, -1, -1)
    x = styled(x, "conv1", min(most, base // 4), 0)
    image = colour(x, "to_rgb1") + w.get_normal("to_rgb1.bias", 1, 3, 1, 1)
    for index in range(size.bit_length() - 3):
        for number in (2 * index, 2 * index + 1):
            out = min(most, base // (8 << index))
            x = styled(x, f"convs.{number}", out, number + 1, number % 2 == 0)
            maps[f"convs.{number}"] = x
        name = f"to_rgbs.{index}"
        maps[name] = colour(x, name)
        spread = torch.zeros(*image.shape[:2], 2 * image.shape[2], 2 * image.shape[3])
        spread[:, :, ::2, ::2] = image
        image = smooth(spread, (2, 1)) + maps[name] + w.get_normal(f"{name}.bias", 1, 3, 1, 1)
    return image, maps


def test_stylegan2():
    random = np.random.default_rng(1)
    z, mean = (random.normal(size=shape).astype(np.float32) for shape in ((2, 12), (12,)))
    w = Tensors()
    expected, maps = torch_stylegan2(w, torch.from_numpy(z), 0.7, torch.from_numpy(mean))
    tensors = {**w.arrays(), "convs.0.conv.blur.kernel": np.ones((4, 4), np.float32)}
    module = stylegan2.StyleGan2(16, 12, 2, 8, 64)
    variables = stylegan2.from_tensors(module, tensors, mean[None])
    images, taps = jax.jit(module.apply, static_argnums=2)(variables, z, 0.7)
    close(images, expected)
    assert set(stylegan2.tap_names(module)) == set(maps) == set(taps)
    for name, tensor in maps.items():
        close(taps[name], tensor)
    # One style for each layer, all equal, is the same.
    styles = module.apply(variables, z, method="styles")
    once = module.apply(variables, styles, method="synthesise")[0]
    many = np.broadcast_to(np.asarray(styles)[:, None], (2, 6, 12))
    np.testing.assert_allclose(
        module.apply(variables, many, method="synthesise")[0], once, atol=1e-5)
    with pytest.raises(porting.PortingError, match="not filled .1.: noise4"):
        broken = {n: a for n, a in tensors.items() if n != "noises.noise_4"}
        stylegan2.from_tensors(module, broken, mean)


def torch_clip(w, x, stages, width, features):
    maps = {}

    def norm(x, name):
        c = x.shape[1]
        return F.batch_norm(
            x, w.get_normal(f"{name}.running_mean", c, scale=0.3),
            w.get_positive(f"{name}.running_var", c), w.get_positive(f"{name}.weight", c),
            w.get_normal(f"{name}.bias", c, scale=0.3))

    def conv(x, name, out, kernel, stride=1):
        scale = (x.shape[1] * kernel**2) ** -0.5
        weight = w.get_normal(f"{name}.weight", out, x.shape[1], kernel, kernel, scale=scale)
        return F.conv2d(x, weight, None, stride, kernel // 2)

    for index, out in enumerate((width // 2, width // 2, width), 1):
        stride = 2 if index == 1 else 1
        x = norm(conv(x, f"visual.conv{index}", out, 3, stride), f"visual.bn{index}").relu()
    x = F.avg_pool2d(x, 2)
    for number, blocks in enumerate(stages, 1):
        for block in range(blocks):
            name = f"visual.layer{number}.{block}"
            planes = width * 2 ** (number - 1)
            stride = 2 if number > 1 and block == 0 else 1
            y = norm(conv(x, f"{name}.conv1", planes, 1), f"{name}.bn1").relu()
            y = norm(conv(y, f"{name}.conv2", planes, 3), f"{name}.bn2").relu()
            y = norm(conv(F.avg_pool2d(y, stride), f"{name}.conv3", 4 * planes, 1), f"{name}.bn3")
            if block == 0:
                x = conv(F.avg_pool2d(x, stride), f"{name}.downsample.0", 4 * planes, 1)
                x = norm(x, f"{name}.downsample.1")
            x = (x + y).relu()
        maps[f"layer{number}"] = x
    c = x.shape[1]
    tokens = x.flatten(2).permute(2, 0, 1)
    tokens = torch.cat([tokens.mean(0, keepdim=True), tokens])
    position = w.get_normal("visual.attnpool.positional_embedding", len(tokens), c)
    tokens = tokens + position[:, None]
    weights = {}
    for part in "qkvc":
        out = features if part == "c" else c
        weights[part] = (w.get_normal(f"visual.attnpool.{part}_proj.weight", out, c, scale=0.1),
                         w.get_normal(f"visual.attnpool.{part}_proj.bias", out))
    output, _ = F.multi_head_attention_forward(
        tokens[:1], tokens, tokens, c, c // 64, None,
        torch.cat([weights[p][1] for p in "qkv"]), None, None, False, 0.0, *weights["c"],
        training=False, need_weights=False, use_separate_proj_weight=True,
        q_proj_weight=weights["q"][0], k_proj_weight=weights["k"][0],
        v_proj_weight=weights["v"][0])
    return output[0], maps


def test_clip_resnet():
    x = np.random.default_rng(1).normal(size=(2, 64, 64, 3)).astype(np.float32)
    w = Tensors()
    reference = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
    expected, maps = torch_clip(w, reference, (2, 1, 1, 1), 8, 5)
    module = clip_resnet.ClipResNet((2, 1, 1, 1), 8, 5, 64)
    text = {"transformer.resblocks.0.ln_1.weight": np.ones(3), "logit_scale": np.ones(())}
    tower = {name.removeprefix("visual."): array for name, array in w.arrays().items()}
    for tensors in ({**w.arrays(), **text}, tower):
        variables = clip_resnet.from_tensors(module, tensors)
        embedding, taps = jax.jit(module.apply)(variables, x)
        np.testing.assert_allclose(embedding, expected, atol=1e-4)
        for name, tensor in maps.items():
            close(taps[name], tensor)
    with pytest.raises(porting.PortingError, match="no rule matches .1.: logit_scale"):
        clip_resnet.from_tensors(module, {**tower, "logit_scale": np.ones(())})
