"""Steps per second of inversion into a Stable Diffusion space, in JAX and in torch.

    python benchmarks/w2w_inversion.py [--size small|sd15] [--people 1 4] [--device cuda]

One step is the paper's: coefficients to LoRA factors (``V beta``), the denoising loss of one noisy
image for each person with the factors at the queries and values of the UNet, its gradient with
respect to the coefficients, Adam. In torch the frozen UNet is diffusers', the factors are added to
the layers' outputs (``y + scale (x a) b``), and people follow one another, as in the original. In
JAX all people are one batch. Both have the same random weights, space and latents; before timing,
loss and gradient are compared. The two take turns, and the median of the rounds is printed.
Compilation is excluded. Small has an eighth of Stable Diffusion 1.5's widths in its UNet, a quarter
of its sides and 1,000 components; sd15 is the full size with 10,000 (over 24 GB on a CPU, where
torch and JAX share the memory; 21 GiB with --components 1000, and a minute a step).
"""

import argparse
import functools
import os
import platform
import resource
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from common import xla_flags
from w2w import lora
from w2w.diffusion import component_config, inversion, objectives, pretrained
from w2w.diffusion.noise import NoiseProcess
from w2w.diffusion.pipeline import Condition
from w2w.diffusion.unet import UNet, count_parameters
from w2w.subspace import Subspace

# PyPI's torchvision does not load beside a CPU build of torch; diffusers imports it all the same.
if torch.version.cuda is None:
    _TORCHVISION = torch.library.Library("torchvision", "DEF")
    for _name in ("nms", "qnms"):
        _TORCHVISION.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
import diffusers  # noqa: E402

LORA = lora.LoraConfig(rank=1, alpha=27.0)
SIZES: dict[str, dict[str, Any]] = {
    "small": dict(widths=(40, 80, 160, 160), side=16, text=96, groups=8, components=1000),
    "sd15": dict(widths=(320, 640, 1280, 1280), side=64, text=768, groups=32, components=10_000),
}


def networks(size: dict[str, Any], device: str) -> tuple[torch.nn.Module, UNet, Any]:
    """The same UNet twice: diffusers' (frozen), and ours with its parameters."""
    torch.manual_seed(0)
    oracle = diffusers.UNet2DConditionModel(
        sample_size=size["side"],
        block_out_channels=size["widths"],
        cross_attention_dim=size["text"],
        norm_num_groups=size["groups"],
    )
    config = component_config.unet_config(oracle.config)
    state = {name: tensor.detach().numpy() for name, tensor in oracle.state_dict().items()}
    params = jax.tree.map(jnp.asarray, pretrained.unet_params(state, config))
    return oracle.eval().requires_grad_(False).to(device), UNet(config), params


def random_space(layout: lora.Layout, k: int, rng: np.random.Generator) -> Subspace:
    """Nearly orthonormal rows; deviations as large as those of trained adapters."""
    components = rng.standard_normal((k, layout.size), np.float32)
    components /= np.sqrt(layout.size, dtype=np.float32)
    mean = 0.02 * rng.standard_normal(layout.size, np.float32)
    std = 0.01 * np.exp(0.5 * rng.standard_normal(layout.size, np.float32))
    return Subspace(*map(jnp.asarray, (mean, std, components)), jnp.ones(k), n=k + 1)


class TorchInversion:
    """The paper's step in torch, for one person at a time."""

    def __init__(self, unet: Any, space: Subspace, layout: lora.Layout, text: Any, device: str):
        tensor = functools.partial(torch.as_tensor, device=device)
        self.unet, self.layout, self.device = unet, layout, device
        self.mean, self.std = (tensor(np.array(x)) for x in (space.mean, space.std))
        self.components = tensor(np.array(space.components))
        self.text = tensor(text)
        self.scheduler = diffusers.DDPMScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012
        )
        self.factors: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        for name, _, _ in layout.modules:
            hook = functools.partial(self.adapt, name)
            unet.get_submodule(name).register_forward_hook(hook)

    def adapt(self, name: str, module: Any, args: tuple, output: torch.Tensor) -> torch.Tensor:
        a, b = self.factors[name]
        return output + LORA.scale * (args[0] @ a[:, None]) * b

    def loss(
        self, beta: torch.Tensor, latents: torch.Tensor, noise: torch.Tensor, t: torch.Tensor
    ) -> torch.Tensor:
        flat, offset = (beta @ self.components) * self.std + self.mean, 0
        for name, fan_in, fan_out in self.layout.modules:
            middle, end = offset + fan_in, offset + fan_in + fan_out
            self.factors[name], offset = (flat[offset:middle], flat[middle:end]), end
        noisy = self.scheduler.add_noise(latents, noise, t)
        text = self.text.expand(len(latents), -1, -1)
        return ((self.unet(noisy, t, text).sample - noise) ** 2).mean()

    def people(self, latents: np.ndarray) -> list[tuple[torch.Tensor, Any, torch.Tensor]]:
        """(coefficients, optimiser, latents) of each person."""
        made = []
        for own in latents:
            beta = torch.zeros(len(self.components), device=self.device, requires_grad=True)
            first = torch.as_tensor(own, device=self.device).permute(0, 3, 1, 2).contiguous()
            made.append((beta, torch.optim.Adam([beta], 0.1, weight_decay=1e-10), first))
        return made

    def step(self, people: list[tuple[torch.Tensor, Any, torch.Tensor]]) -> None:
        for beta, optimiser, latents in people:
            optimiser.zero_grad()
            t = torch.randint(0, 1000, latents.shape[:1], device=self.device)
            self.loss(beta, latents, torch.randn_like(latents), t).backward()
            optimiser.step()


def compare(
    ours: inversion.Problem,
    theirs: TorchInversion,
    shared: inversion.Shared,
    latents: np.ndarray,
) -> str:
    """Relative differences of one loss and its gradient."""
    rng = np.random.default_rng(3)
    beta = rng.standard_normal(shared.space.k, np.float32)
    noise, t = rng.standard_normal(latents.shape, np.float32), np.array([501])

    def loss(beta, shared):
        return objectives.inversion(
            beta, shared.space, ours.layout, LORA, ours.apply_fn, shared.params, latents,
            shared.condition, noise, t, ours.process,
        )

    value, gradient = jax.jit(jax.value_and_grad(loss))(jnp.asarray(beta), shared)
    leaf = torch.as_tensor(beta, device=theirs.device).requires_grad_()
    args = (torch.as_tensor(x, device=theirs.device).permute(0, 3, 1, 2) for x in (latents, noise))
    expected = theirs.loss(leaf, *args, torch.as_tensor(t, device=theirs.device))
    expected.backward()
    wanted = leaf.grad.cpu().numpy()
    error = np.abs(np.asarray(gradient) - wanted).max() / np.abs(wanted).max()
    return f"loss {abs(float(value) - expected.item()) / expected.item():.1e}, gradient {error:.1e}"


def timed(function: Any, steps: int, wait: Any) -> float:
    wait()
    start = time.perf_counter()
    for _ in range(steps):
        function()
    wait()
    return (time.perf_counter() - start) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--people", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--steps", type=int, default=10, help="of each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu", help="of torch; JAX takes its default device")
    parser.add_argument("--components", type=int, default=0)
    options = parser.parse_args()
    xla_flags.prepare()
    torch.set_num_threads(os.cpu_count() or 1)
    size = SIZES[options.size]
    rng = np.random.default_rng(0)
    oracle, unet, params = networks(size, options.device)
    layout = lora.Layout.from_params(params, LORA)
    space = random_space(layout, options.components or size["components"], rng)
    text = rng.standard_normal((1, 77, size["text"]), np.float32)
    shared = inversion.Shared(space, params, Condition(jnp.asarray(text)))
    recipe = inversion.Recipe(batch=1)
    problem = inversion.Problem(
        inversion.predictor(unet), NoiseProcess(), layout, LORA, recipe
    )
    theirs = TorchInversion(oracle, space, layout, text, options.device)
    shape = (1, size["side"], size["side"], 4)
    device = jax.devices()[0]
    print(f"{options.size}: UNet of {count_parameters(params):,} parameters, latents "
          f"{size['side']} x {size['side']}, {space.k} components of {layout.size:,} values")
    print(f"jax {jax.__version__} on {device.device_kind}, torch {torch.__version__} on "
          f"{options.device}, {os.cpu_count()} cores, {platform.machine()}")
    first = rng.standard_normal(shape, np.float32)
    print(f"differences: {compare(problem, theirs, shared, first)}")

    def wait_torch() -> None:
        if options.device != "cpu":
            torch.cuda.synchronize()

    step = jax.jit(inversion.make_step(problem), donate_argnums=0)
    print("| people | JAX: s a step | people-steps a second | torch: s a step | "
          "people-steps a second | ratio |\n|---|---|---|---|---|---|")
    for count in options.people:
        latents = rng.standard_normal((count, *shape), np.float32)
        photographs = inversion.Photographs(
            jnp.asarray(latents), jnp.zeros(latents.shape), jnp.ones(count, jnp.int32), None
        )
        keys = jax.random.split(jax.random.key(1), count)
        state = [inversion.init(count, space.k, recipe)]

        def ours(state=state, data=(photographs, keys, shared)) -> None:
            state[0], _ = step(state[0], data, jax.random.key(0))

        def wait_jax(state=state) -> None:
            jax.block_until_ready(state[0])

        people = theirs.people(latents)
        oneself = functools.partial(theirs.step, people)
        for function in (ours, oneself):  # compiles, warms up
            function()
        rounds = [
            (timed(ours, options.steps, wait_jax), timed(oneself, options.steps, wait_torch))
            for _ in range(options.rounds)
        ]
        a, b = (statistics.median(column) for column in zip(*rounds, strict=True))
        print(f"| {count} | {a:.3f} | {count / a:.2f} | {b:.3f} | {count / b:.2f} | {b / a:.2f} |",
              flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory of the process: {peak:.1f} GiB")


if __name__ == "__main__":
    main()
