"""Training steps of an idempotent network per second, here and in plain PyTorch.

    python benchmarks/ign_step.py [--size 28] [--width 32] [--batch 128] [--steps 10] [--rounds 3]
        [--device cuda]

The same networks (DCGAN's with batch normalisation, as published, and with group normalisation, and
the patch network of configs/ign.py), objective (L1, weights 20/20/2.5, clamp 1.5) and optimiser
(Adam). PyTorch is written as the method reads:
four evaluations, a frozen copy for the idempotence term; here four-pass and three-evaluation
gradients are both timed. They take turns, and the median of the rounds is printed. Compilation is
excluded; memory is the temporary storage that XLA reports for the step. On a GPU both multiply by
TensorFloat-32 (see timing.py).
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import timing
import torch
from torch import nn

from ign import losses, models, train


def torch_net(c: models.NetConfig) -> nn.Module:
    """The network of a configuration, channels first."""

    def normalise(maps: int) -> nn.Module:
        return nn.BatchNorm2d(maps) if c.norm == "batch" else nn.GroupNorm(maps // 8, maps)

    def conv(into: int, out: int, slope: float) -> list[nn.Module]:
        return [nn.Conv2d(into, out, 3, 1, 1), normalise(out), nn.LeakyReLU(slope)]

    if c.kind == "patch":
        side, w = models.PATCHES[c.size], c.width
        cells, pixels = c.size // side, side * side * c.channels
        flat = cells * cells * w
        return nn.Sequential(
            nn.PixelUnshuffle(side), *conv(pixels, w, 0.2), *conv(w, w, 0.2), nn.Flatten(),
            nn.Linear(flat, c.hidden), nn.LeakyReLU(0.2), nn.Linear(c.hidden, c.latent),
            nn.Linear(c.latent, c.hidden), nn.LeakyReLU(0.2), nn.Linear(c.hidden, flat),
            nn.Unflatten(1, (w, cells, cells)), normalise(w), nn.ReLU(), *conv(w, w, 0.0),
            nn.Conv2d(w, pixels, 3, 1, 1), nn.PixelShuffle(side), nn.Tanh(),
        )  # fmt: skip
    kernels = models.SIZES[c.size]
    layers: list[nn.Module] = []
    maps = c.channels
    for index, kernel in enumerate(kernels):
        out = c.width * 2**index
        layers.append(nn.Conv2d(maps, out, kernel, 2, 1))
        layers += [normalise(out)] if index else []
        layers.append(nn.LeakyReLU(0.2))
        maps = out
    layers.append(nn.Conv2d(maps, c.latent, 4))
    layers += [nn.ConvTranspose2d(c.latent, maps, 4), normalise(maps), nn.ReLU()]
    for index in reversed(range(len(kernels))):
        out = c.width * 2 ** (index - 1) if index else c.channels
        layers.append(nn.ConvTranspose2d(maps, out, kernels[index], 2, 1))
        layers += [normalise(out), nn.ReLU()] if index else []
        maps = out
    return nn.Sequential(*layers, nn.Tanh())


def torch_step(net: nn.Module, frozen: nn.Module, adam: torch.optim.Optimizer, x: torch.Tensor):
    """One step as the method reads."""

    def distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a - b).abs().flatten(1).mean(dim=1)

    z = torch.randn_like(x)
    frozen.load_state_dict(net.state_dict())
    y = net(z)
    error = distance(net(x), x)
    idempotence = distance(frozen(y), y).mean()
    fixed = y.detach()
    level = 1.5 * error
    tightness = (level * torch.tanh(-distance(net(fixed), fixed) / level)).mean()
    loss = 20 * error.mean() + 20 * idempotence + 2.5 * tightness
    adam.zero_grad()
    loss.backward()
    adam.step()
    return loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("size", 28), ("channels", 1), ("width", 32), ("latent", 64)):
        parser.add_argument(f"--{name}", type=int, default=value)
    for name, value in (("batch", 128), ("steps", 10), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    timing.add_device(parser)
    options = parser.parse_args()
    timing.prepare(options.device)
    shape = (options.batch, options.size, options.size, options.channels)
    images = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    print(f"batch {shape}, width {options.width}; {timing.devices(options.device)}")
    nets = []
    for kind, norm in (("dcgan", "batch"), ("dcgan", "group"), ("patch", "group")):
        config = models.NetConfig(
            size=options.size, channels=options.channels, kind=kind, width=options.width,
            latent=options.latent, norm=norm,
        )  # fmt: skip
        run, memory = torch_run(config, images, options.device, options.steps), {}
        runs = {"PyTorch, four evaluations": run}
        for shared in (False, True):
            name = "here, three evaluations" if shared else "here, four evaluations"
            runs[name], memory[name] = jax_run(config, images, shared, options.steps)
        nets.append((config, runs, memory))
    timing.my_turn()
    for net in nets:
        compare(*net, options.steps, options.rounds)
    timing.print_memory(options.device)


def compare(
    config: models.NetConfig, runs: dict[str, Callable[[], float]], memory: dict[str, float],
    steps: int, rounds: int,
) -> None:  # fmt: skip
    """Times the steps of one network in turns and prints a line for each."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(rounds + 1):
        for name, function in runs.items():
            start = time.perf_counter()
            function()
            if round_:  # the first warms up
                times[name].append((time.perf_counter() - start) / steps)
    print(f"{config.kind}, {config.norm} normalisation")
    for name, values in times.items():
        extra = f", {memory[name]:.0f} MiB of temporaries" if name in memory else ""
        seconds = statistics.median(values)
        print(f"  {name}: {seconds:.4f} s a step, {1 / seconds:.2f} steps a second{extra}",
              flush=True)


def torch_run(
    config: models.NetConfig, images: np.ndarray, device: str, steps: int
) -> Callable[[], float]:
    """A function that does `steps` steps in PyTorch and waits for them."""
    net = torch_net(config).to(device)
    frozen = copy.deepcopy(net).requires_grad_(False)
    adam = torch.optim.Adam(net.parameters(), 1e-4, (0.5, 0.999))
    x = torch.tensor(images.transpose(0, 3, 1, 2), device=device)

    def run() -> float:
        for _ in range(steps):
            loss = torch_step(net, frozen, adam, x)
        return loss.item()

    return run


def jax_run(
    config: models.NetConfig, images: np.ndarray, shared: bool, steps: int
) -> tuple[Callable[[], float], float]:
    """The same here, with the temporary memory of a step in MiB."""
    net = models.build(config)
    recipe = train.Recipe(1000, shared=shared)
    step = train.make_train_step(net, losses.Objective(losses.l1), recipe, config.independent)
    variables = models.init(net, jax.random.key(0), config.shape)
    state = train.init_state(variables, recipe, losses.Weights())
    batch = {"image": jnp.asarray(images)}
    jitted = jax.jit(step, donate_argnums=0)
    compiled = jitted.lower(state, batch, jax.random.key(0)).compile()
    held = [state]

    def run() -> float:
        for index in range(steps):
            held[0], metrics = compiled(held[0], batch, jax.random.key(index))
        return float(metrics["loss"])

    return run, compiled.memory_analysis().temp_size_in_bytes / 2**20


if __name__ == "__main__":
    main()
