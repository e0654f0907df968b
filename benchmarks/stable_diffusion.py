"""What the benchmarks of Stable Diffusion share: one UNet in torch and in JAX, and their timing.

With ``--dtype bfloat16`` the frozen weights and the activations of both are bfloat16, as diffusers'
scripts train with ``--mixed_precision bf16`` (``torch.autocast``); what is trained is float32.
"""

import argparse
import contextlib
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import timing
import torch

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
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--compare", action=argparse.BooleanOptionalAction, default=True)
    timing.add_device(parser)
    return parser


def _oracle(size: dict[str, Any], device: str) -> torch.nn.Module:
    torch.manual_seed(0)
    with torch.device(device):
        return diffusers.UNet2DConditionModel(
            sample_size=size["side"],
            block_out_channels=size["widths"],
            cross_attention_dim=size["text"],
            norm_num_groups=size["groups"],
        )


def architecture(size: dict[str, Any], dtype: str) -> tuple[UNet, Any]:
    """Our UNet and the shapes of its parameters."""
    config = component_config.unet_config(_oracle(size, "meta").config)
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), pretrained.unet_shapes(config)
    )
    return UNet(config, None if dtype == "float32" else jnp.dtype(dtype)), shapes


def weights(
    size: dict[str, Any], options: argparse.Namespace, unet: UNet
) -> tuple[torch.nn.Module, Any]:
    """The same random weights twice: in diffusers' UNet (frozen), and as parameters of ours."""
    oracle = _oracle(size, options.device).to(getattr(torch, options.dtype))
    state = {name: tensor.float().cpu().numpy() for name, tensor in oracle.state_dict().items()}
    params = pretrained.unet_params(state, unet.config, jnp.dtype(options.dtype))
    return oracle.eval().requires_grad_(False), jax.tree.map(jnp.asarray, params)


def predict(
    unet: torch.nn.Module, noisy: torch.Tensor, t: torch.Tensor, text: torch.Tensor
) -> torch.Tensor:
    """The prediction of torch's UNet in float32, computed in the type of its weights."""
    dtype = unet.dtype
    mixed = torch.autocast(noisy.device.type, dtype) if dtype != torch.float32 else None
    with mixed or contextlib.nullcontext():
        return unet(noisy.to(dtype), t, text.to(dtype)).sample.float()


def compile_all(lowered: Mapping[Any, Any]) -> dict[Any, Any]:
    """Compiles all of ``{name: lowered program}`` side by side."""
    with ThreadPoolExecutor() as pool:
        programs = pool.map(lambda program: program.compile(), lowered.values())
        return dict(zip(lowered, programs, strict=True))


def scheduler() -> Any:
    """Stable Diffusion's noise process in diffusers."""
    return diffusers.DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012
    )


def channels_first(array: Any, device: str) -> torch.Tensor:
    """``[batch, h, w, c]`` as torch's ``[batch, c, h, w]``."""
    return torch.as_tensor(array, device=device).permute(0, 3, 1, 2).contiguous()


def header(options: argparse.Namespace, params: Any, more: str) -> None:
    """Prints what is compared, and where."""
    side, count = SIZES[options.size]["side"], count_parameters(params)
    print(f"{options.size}, {options.dtype}: UNet of {count:,} parameters, latents {side} x {side},"
          f" {more}\n{timing.devices(options.device)}", flush=True)


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
        timing.wait(options.device)

    for function in (ours, theirs):  # warms up
        function()
    rounds = [
        (_timed(ours, options.steps, wait), _timed(theirs, options.steps, wait_torch))
        for _ in range(options.rounds)
    ]
    a, b = (statistics.median(column) for column in zip(*rounds, strict=True))
    print(f"| {people} | {a:.4f} | {people / a:.2f} | {b:.4f} | {people / b:.2f} | {b / a:.2f} |",
          flush=True)


def _timed(function: Callable[[], None], steps: int, wait: Callable[[], Any]) -> float:
    wait()
    start = time.perf_counter()
    for _ in range(steps):
        function()
    wait()
    return (time.perf_counter() - start) / steps


def footer(options: argparse.Namespace) -> None:
    """Prints the peak memory of the process, and that of the GPU."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory of the process: {peak:.1f} GiB")
    timing.print_memory(options.device)
