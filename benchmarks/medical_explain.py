"""Explanations per second, here and with captum on the same network.

    python benchmarks/medical_explain.py [--size 64] [--batch 32] [--rounds 5] [--device cuda]

The network is the small classifier of configs/medxgan.py with the same weights in both. captum runs
in PyTorch; here one jitted call explains the batch. They take turns, in each a call that is not
timed (the other's threads still spin) and three that are; the median of the rounds is printed. The
largest difference of the maps stands beside it, so that it is known that both compute the same. On
a GPU both multiply by TensorFloat-32 (see timing.py), except for that difference.
"""

import argparse
import functools
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import timing
import torch
from torch import nn

from medical.explain import grad_cam, gradients, occlusion
from medical.medxgan import models

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from captum import attr

POINTS = 50
CALLS = 3  # that are timed together
WIDTHS = (16, 32, 64)


class TorchNet(nn.Module):
    """`models.Classifier` in PyTorch, from its parameters."""

    def __init__(self, params: dict):
        super().__init__()
        channels = [params["conv0"]["kernel"].shape[2], *WIDTHS]
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1) for a, b in zip(channels, channels[1:], strict=False))
        for i, conv in enumerate(self.convs):
            kernel = np.asarray(params[f"conv{i}"]["kernel"]).transpose(3, 2, 0, 1)
            conv.weight.data = torch.from_numpy(kernel.copy())
            conv.bias.data = torch.from_numpy(np.array(params[f"conv{i}"]["bias"]))
        self.last = nn.Identity()
        self.dense = nn.Linear(WIDTHS[-1], 2)
        kernel = np.asarray(params["dense"]["kernel"]).T
        self.dense.weight.data = torch.from_numpy(kernel.copy())
        self.dense.bias.data = torch.from_numpy(np.array(params["dense"]["bias"]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for conv in self.convs[:-1]:
            x = torch.max_pool2d(torch.relu(conv(x)), 2)
        x = self.last(torch.relu(self.convs[-1](x)))
        return self.dense(x.mean((2, 3)))


def wait(found: Any, device: str) -> None:
    """Until either library has computed it."""
    if isinstance(found, jax.Array):
        jax.block_until_ready(found)
    else:
        timing.wait(device)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    timing.add_device(parser)
    options = parser.parse_args()
    timing.prepare(options.device)
    net = models.Classifier(WIDTHS)
    shape = (options.batch, options.size, options.size, 1)
    images = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    variables = net.init(jax.random.key(0), jnp.asarray(images))
    theirs = TorchNet(variables["params"]).eval().to(options.device)
    here = jnp.asarray(images)
    there = torch.tensor(images.transpose(0, 3, 1, 2), device=options.device)
    window = options.size // 8

    def score(x: jax.Array) -> jax.Array:
        return net.apply(variables, x)[:, 1]

    def cam(x: jax.Array) -> jax.Array:
        found = net.apply(variables, x, method="features")
        return grad_cam.grad_cam(lambda f: net.apply(variables, f, method="head")[:, 1], found)

    ig, layer = attr.IntegratedGradients(theirs), attr.LayerGradCam(theirs, theirs.last)
    hide, slope = attr.Occlusion(theirs), attr.Saliency(theirs)
    black = torch.full_like(there, -1.0)
    methods: dict[str, tuple[Callable, Callable]] = {
        "saliency": (
            jax.jit(lambda x: gradients.saliency(score, x)),
            lambda: slope.attribute(there.clone().requires_grad_(), target=1)),
        f"integrated gradients, {POINTS} points": (
            jax.jit(lambda x: gradients.integrated_gradients(
                score, x, -jnp.ones_like(x), POINTS)),
            lambda: ig.attribute(there, black, target=1, n_steps=POINTS, method="gausslegendre",
                                 internal_batch_size=options.batch)),
        "Grad-CAM": (
            jax.jit(cam),
            lambda: layer.attribute(there, target=1, relu_attributions=True)),
        f"occlusion, {window} x {window}": (
            jax.jit(lambda x: occlusion.occlusion(
                score, x, (window, window), (window // 2, window // 2))[..., None]),
            lambda: hide.attribute(there, (1, window, window), (1, window // 2, window // 2),
                                   0.0, target=1)),
    }
    print(f"{options.batch} images of {options.size} x {options.size}; "
          f"{timing.devices(options.device)}")
    print(f"{'method':34} {'here, 1/s':>11} {'captum, 1/s':>12} {'ratio':>7} {'difference':>11}")
    differences = {}
    for name, (ours, captum) in methods.items():
        with timing.exact():
            mine = np.asarray(ours(here))
            other = captum().detach().cpu().numpy().transpose(0, 2, 3, 1)
        differences[name] = np.abs(mine.reshape(other.shape) - other).max()
        jax.block_until_ready(ours(here)), captum()  # compiles, warms up
    timing.wait(options.device)
    timing.my_turn()
    for name, (ours, captum) in methods.items():
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(options.rounds):
            for index, call in enumerate((functools.partial(ours, here), captum)):
                wait(call(), options.device)  # after it threads and caches are its own again
                start = time.perf_counter()
                for _ in range(CALLS):
                    wait(call(), options.device)
                times[index].append((time.perf_counter() - start) / CALLS)
        first, second = (options.batch / statistics.median(t) for t in times)
        print(f"{name:34} {first:11.1f} {second:12.1f} {first / second:7.2f} "
              f"{differences[name]:11.1e}")
    timing.print_memory(options.device)


if __name__ == "__main__":
    main()
