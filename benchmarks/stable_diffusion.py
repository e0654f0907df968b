"""What the benchmarks of Stable Diffusion share: one UNet in torch and in JAX, and their timing."""

import argparse
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import torch

from common import xla_flags
from w2w import lora
from w2w.diffusion import component_config, pretrained
from w2w.diffusion.unet import UNet, count_parameters

# PyPI's torchvision does not load beside a CPU build of torch; diffusers imports it all the same.
if torch.version.cuda is None:
    _TORCHVISION = torch.library.Library("torchvision", "DEF")
    for _name in ("nms", "qnms"):
        _TORCHVISION.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
import diffusers  # noqa: E402

LORA = lora.LoraConfig(rank=1, alpha=27.0)
# An eighth of Stable Diffusion 1.5's widths and a quarter of its sides; its full size.
SIZES: dict[str, dict[str, Any]] = {
    "small": dict(widths=(40, 80, 160, 160), side=16, text=96, groups=8, components=1000),
    "sd15": dict(widths=(320, 640, 1280, 1280), side=64, text=768, groups=32, components=10_000),
}


def options_of(description: str) -> argparse.ArgumentParser:
    """Options that all of these benchmarks have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--people", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--steps", type=int, default=10, help="of each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu", help="of torch; JAX takes its default device")
    return parser


def prepare() -> None:
    """Both libraries as they are fastest on a CPU."""
    xla_flags.prepare()
    torch.set_num_threads(os.cpu_count() or 1)


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


def scheduler() -> Any:
    """Stable Diffusion's noise process in diffusers."""
    return diffusers.DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012
    )


def channels_first(array: Any, device: str) -> torch.Tensor:
    """``[batch, h, w, c]`` as torch's ``[batch, c, h, w]``."""
    return torch.as_tensor(array, device=device).permute(0, 3, 1, 2).contiguous()


def header(size: str, params: Any, device: str, more: str) -> None:
    """Prints what is compared, and where."""
    side, count = SIZES[size]["side"], count_parameters(params)
    print(f"{size}: UNet of {count:,} parameters, latents {side} x {side}, {more}")
    print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}, torch {torch.__version__} on "
          f"{device}, {os.cpu_count()} cores, {platform.machine()}")


def table_head() -> None:
    """Prints the head of the table whose lines :func:`compete` prints."""
    print("| people | JAX: s a step | people-steps a second | torch: s a step | "
          "people-steps a second | ratio |\n|---|---|---|---|---|---|")


def compete(
    people: int,
    ours: Callable[[], None],
    wait: Callable[[], Any],
    theirs: Callable[[], None],
    options: argparse.Namespace,
) -> None:
    """Times both in turns and prints the median seconds a step of the rounds.

    Args:
      people: trained by one call of either.
      ours: starts a step of JAX.
      wait: for the steps of JAX.
      theirs: a step of torch.
      options: see :func:`options_of`.
    """

    def wait_torch() -> None:
        if options.device != "cpu":
            torch.cuda.synchronize()

    for function in (ours, theirs):  # compiles, warms up
        function()
    rounds = [
        (_timed(ours, options.steps, wait), _timed(theirs, options.steps, wait_torch))
        for _ in range(options.rounds)
    ]
    a, b = (statistics.median(column) for column in zip(*rounds, strict=True))
    print(f"| {people} | {a:.3f} | {people / a:.2f} | {b:.3f} | {people / b:.2f} | {b / a:.2f} |",
          flush=True)


def _timed(function: Callable[[], None], steps: int, wait: Callable[[], Any]) -> float:
    wait()
    start = time.perf_counter()
    for _ in range(steps):
        function()
    wait()
    return (time.perf_counter() - start) / steps


def footer() -> None:
    """Prints the peak memory of the process."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory of the process: {peak:.1f} GiB")
