"""Training steps of an idempotent network per second, here and in plain PyTorch.

    python benchmarks/ign_step.py [--size 28] [--width 32] [--batch 128] [--steps 10] [--rounds 3]

The same network (batch normalisation in both, as published, and group normalisation), objective
(L1, weights 20/20/2.5, clamp 1.5) and optimiser (Adam). PyTorch is written as the method reads:
four evaluations, a frozen copy for the idempotence term; here four-pass and three-evaluation
gradients are both timed. They take turns, and the median of the rounds is printed. Compilation is
excluded; memory is the temporary storage that XLA reports for the step.
"""

import argparse
import copy
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn

from ign import losses, models, train


def torch_net(size: int, channels: int, width: int, latent: int, norm: str) -> nn.Module:
    """The DCGAN autoencoder, channels first."""

    def normalise(maps: int) -> nn.Module:
        return nn.BatchNorm2d(maps) if norm == "batch" else nn.GroupNorm(maps // 8, maps)

    kernels = models.SIZES[size]
    layers: list[nn.Module] = []
    maps = channels
    for index, kernel in enumerate(kernels):
        out = width * 2**index
        layers.append(nn.Conv2d(maps, out, kernel, 2, 1))
        layers += [normalise(out)] if index else []
        layers.append(nn.LeakyReLU(0.2))
        maps = out
    layers.append(nn.Conv2d(maps, latent, 4))
    layers += [nn.ConvTranspose2d(latent, maps, 4), normalise(maps), nn.ReLU()]
    for index in reversed(range(len(kernels))):
        out = width * 2 ** (index - 1) if index else channels
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
    for name, value in (("size", 28), ("channels", 1), ("width", 32), ("latent", 256)):
        parser.add_argument(f"--{name}", type=int, default=value)
    for name, value in (("batch", 128), ("steps", 10), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shape = (options.batch, options.size, options.size, options.channels)
    images = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    print(f"batch {shape}, width {options.width}; jax on {jax.devices()[0].device_kind}, torch on"
          f" {device}, {torch.get_num_threads()} threads")

    for norm in ("batch", "group"):
        runs = {}
        net = torch_net(options.size, options.channels, options.width, options.latent, norm)
        net = net.to(device)
        frozen = copy.deepcopy(net).requires_grad_(False)
        adam = torch.optim.Adam(net.parameters(), 1e-4, (0.5, 0.999))
        x = torch.tensor(images.transpose(0, 3, 1, 2), device=device)

        def run_torch(net=net, frozen=frozen, adam=adam, x=x):
            for _ in range(options.steps):
                loss = torch_step(net, frozen, adam, x)
            return float(loss)

        runs["PyTorch, four evaluations"] = run_torch
        memory = {}
        for shared in (False, True):
            config = models.NetConfig(
                options.size, options.channels, options.width, options.latent, norm
            )
            module = models.Autoencoder(config)
            recipe = train.Recipe(1000, shared=shared)
            step = train.make_train_step(
                module, losses.Objective(losses.l1), recipe, config.independent
            )
            variables = models.init(module, jax.random.key(0), config.shape)
            state = train.init_state(variables, recipe, losses.Weights())
            batch = {"image": jnp.asarray(images)}
            jitted = jax.jit(step, donate_argnums=0)
            name = "here, three evaluations" if shared else "here, four evaluations"
            compiled = jitted.lower(state, batch, jax.random.key(0)).compile()
            memory[name] = compiled.memory_analysis().temp_size_in_bytes / 2**20
            held = [state]

            def run_here(compiled=compiled, held=held, batch=batch):
                for index in range(options.steps):
                    held[0], metrics = compiled(held[0], batch, jax.random.key(index))
                return float(metrics["loss"])

            runs[name] = run_here
        times: dict[str, list[float]] = {name: [] for name in runs}
        for round_ in range(options.rounds + 1):
            for name, function in runs.items():
                start = time.perf_counter()
                function()
                if round_:  # the first warms up
                    times[name].append((time.perf_counter() - start) / options.steps)
        print(f"{norm} normalisation")
        for name, values in times.items():
            extra = f", {memory[name]:.0f} MiB of temporaries" if name in memory else ""
            seconds = statistics.median(values)
            print(f"  {name}: {seconds:.4f} s a step, {1 / seconds:.2f} steps a second{extra}")


if __name__ == "__main__":
    main()
