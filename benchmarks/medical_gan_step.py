"""Seconds a training step of medXGAN takes, here and in PyTorch, on the published networks.

    python benchmarks/medical_gan_step.py [--share 0.25] [--batch 16] [--steps 5] [--rounds 3]
        [--device cuda]

Both have the networks of the brain experiment (64 pixels, `share` of the published widths), the
published losses, Adam, and the same first weights of generator, discriminator and classifier. A
step updates the discriminator, then the generator, as the released code does. The programs take
turns; the median of the rounds is printed, without compilation and a first step. Dropout and codes
are drawn by each on its own, so that losses agree only in size; that both networks are the same is
checked first, by the images of one code and the discriminator's judgement of them. On a GPU both
multiply by TensorFloat-32 (see timing.py), except in that check.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import timing
import torch
from torch import nn

from medical.medxgan import losses, models, train

LATENT = (1000, 100)


def swap(kernel: np.ndarray, flip: bool = False) -> torch.Tensor:
    """A kernel HWIO as PyTorch's OIHW, or of a transposed convolution IOHW, which is turned."""
    if flip:
        return torch.from_numpy(kernel[::-1, ::-1].transpose(2, 3, 0, 1).copy())
    return torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy())


class Generator(nn.Module):
    def __init__(self, params: dict):
        super().__init__()
        layers: list[nn.Module] = []
        names = sorted(name for name in params if name.startswith("up"))
        for name in (*names, "image"):
            kernel = np.asarray(params[name]["kernel"])
            layer = nn.ConvTranspose2d(*kernel.shape[2:], kernel.shape[0], 2, bias=False)
            layer.weight.data = swap(kernel, flip=True)
            layers.append(layer)
            if name != "image":
                norm = nn.BatchNorm2d(kernel.shape[3])
                norm.weight.data = torch.from_numpy(
                    np.array(params[name.replace("up", "norm")]["scale"]))
                layers += [norm, nn.ReLU()]
        start = np.asarray(params["start"]["kernel"])
        self.start = nn.Linear(*start.shape)
        self.start.weight.data = torch.from_numpy(start.T.copy())
        self.start.bias.data = torch.from_numpy(np.array(params["start"]["bias"]))
        self.layers = nn.Sequential(*layers, nn.Tanh())

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.layers(self.start(z)[..., None, None])


class Discriminator(nn.Module):
    def __init__(self, params: dict):
        super().__init__()
        layers: list[nn.Module] = []
        for i in range(6):
            kernel = np.asarray(params[f"conv{i}"]["kernel"])
            stride, padding = (2, 1) if i % 2 == 0 else (1, 0)
            conv = nn.Conv2d(*kernel.shape[2:], 3, stride, padding, bias=False)
            conv.weight.data = swap(kernel)
            layers.append(conv)
            if i:
                norm = nn.BatchNorm2d(kernel.shape[3])
                norm.weight.data = torch.from_numpy(np.array(params[f"norm{i}"]["scale"]))
                layers.append(norm)
            layers += [nn.LeakyReLU(0.2), nn.Dropout(0.5)]
        self.layers = nn.Sequential(*layers)
        kernel = np.asarray(params["dense"]["kernel"])
        side = round((len(kernel) / layers[-3].num_features) ** 0.5)
        # Flattened by channels there, by rows here.
        kernel = kernel.reshape(side, side, -1, 1).transpose(3, 2, 0, 1).reshape(1, -1)
        self.dense = nn.Linear(kernel.shape[1], 1)
        self.dense.weight.data = torch.from_numpy(kernel.copy())
        self.dense.bias.data = torch.from_numpy(np.array(params["dense"]["bias"]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dense(self.layers(x).flatten(1))[:, 0]


class Classifier(nn.Module):
    """`models.Classifier` with its weights, frozen."""

    def __init__(self, params: dict):
        super().__init__()
        self.convs = nn.ModuleList()
        for name in sorted(name for name in params if name.startswith("conv")):
            kernel = np.asarray(params[name]["kernel"])
            conv = nn.Conv2d(*kernel.shape[2:], 3, padding=1)
            conv.weight.data = swap(kernel)
            conv.bias.data = torch.from_numpy(np.array(params[name]["bias"]))
            self.convs.append(conv)
        kernel = np.asarray(params["dense"]["kernel"])
        self.dense = nn.Linear(*kernel.shape)
        self.dense.weight.data = torch.from_numpy(kernel.T.copy())
        self.dense.bias.data = torch.from_numpy(np.array(params["dense"]["bias"]))
        self.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for conv in self.convs[:-1]:
            x = torch.max_pool2d(torch.relu(conv(x)), 2)
        return self.dense(torch.relu(self.convs[-1](x)).mean((2, 3)))


def torch_step(nets: tuple, images: torch.Tensor, labels: torch.Tensor) -> None:
    """Discriminator, then generator, with the published losses (double softmax)."""
    generator, judge, classifier, optimisers = nets
    bce = nn.functional.binary_cross_entropy_with_logits
    z1 = torch.randn(len(images), LATENT[0], device=images.device)
    z2 = torch.randn(len(images), LATENT[1], device=images.device) * labels[:, None]
    fakes = generator(torch.cat([z1, z2], 1))
    real, fake = judge(images), judge(fakes.detach())
    loss = bce(real, torch.ones_like(real)) + bce(fake, torch.zeros_like(fake))
    optimisers[1].zero_grad()
    loss.backward()
    optimisers[1].step()
    believed = judge(fakes)
    chosen = nn.functional.cross_entropy(classifier(fakes).softmax(1), labels)
    loss = bce(believed, torch.ones_like(believed)) + 2 * chosen
    optimisers[0].zero_grad()
    loss.backward()
    optimisers[0].step()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--share", type=float, default=0.25)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    timing.add_device(parser)
    options = parser.parse_args()
    timing.prepare(options.device)

    def widths(*full: int) -> tuple[int, ...]:
        return tuple(max(round(options.share * width), 1) for width in full)

    nets = train.Nets(
        models.PaperGenerator(widths(384, 256, 192)),
        models.PaperDiscriminator(widths(16, 32, 64, 128, 256, 512)), models.Classifier(), None,
        LATENT)
    random = np.random.default_rng(0)
    images = random.uniform(-1, 1, (options.batch, 64, 64, 3)).astype(np.float32)
    labels = np.arange(options.batch, dtype=np.int32) % 2
    frozen = nets.classifier.init(jax.random.key(0), jnp.asarray(images))
    state = train.init(nets, train.Recipe(), frozen, jnp.asarray(images), jax.random.key(1))
    made, judged = state.generator.params["generator"], state.discriminator.params
    there = tuple(net.to(options.device) for net in (
        Generator(made), Discriminator(judged), Classifier(frozen["params"])))
    adam = tuple(torch.optim.Adam(net.parameters(), 2e-4, (0.5, 0.999)) for net in there[:2])
    with timing.exact():
        difference(nets, state, there, random, options.device)

    step = jax.jit(train.make_train_step(nets, losses.Objective(class_form="double_softmax")))
    batch = {"image": jnp.asarray(images), "label": jnp.asarray(labels)}
    other = torch.tensor(images.transpose(0, 3, 1, 2), device=options.device)
    marks = torch.tensor(labels, dtype=torch.int64, device=options.device)
    start = time.perf_counter()
    state, _ = jax.block_until_ready(step(state, batch, jax.random.key(2)))
    compiled = time.perf_counter() - start
    torch_step((*there, adam), other, marks)
    timing.wait(options.device)
    timing.my_turn()
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(options.rounds):
        start = time.perf_counter()
        for index in range(options.steps):
            state, _ = step(state, batch, jax.random.key(turn * options.steps + index))
        jax.block_until_ready(state)
        middle = time.perf_counter()
        for _ in range(options.steps):
            torch_step((*there, adam), other, marks)
        timing.wait(options.device)
        times[0].append((middle - start) / options.steps)
        times[1].append((time.perf_counter() - middle) / options.steps)
    here, peer = (statistics.median(each) for each in times)
    count = sum(leaf.size for leaf in jax.tree.leaves((made, judged))) / 1e6
    print(f"published networks at {options.share:g} of their widths ({count:.2f} million "
          f"parameters), batch of {options.batch}; {timing.devices(options.device)}")
    print(f"here {1e3 * here:.2f} ms a step (compiled in {compiled:.0f} s), PyTorch "
          f"{1e3 * peer:.2f} ms; PyTorch takes {peer / here:.2f} times as long")
    timing.print_memory(options.device)


def difference(nets: train.Nets, state: train.GanState, there: tuple, random: np.random.Generator,
               device: str) -> None:
    """Prints how far the two programs' networks are apart on the same input, as they are used."""
    z = random.normal(size=(2, sum(LATENT))).astype(np.float32)
    drawn = nets.generator.apply(state.generator_variables(), z[:, : LATENT[0]], z[:, LATENT[0] :])
    judged = nets.discriminator.apply(
        {"params": state.discriminator.params, **state.stats["discriminator"]}, drawn)
    for net in there[:2]:
        net.eval()
    with torch.no_grad():
        other = there[0](torch.tensor(z, device=device))
        opinion = there[1](other).cpu().numpy()
    for net in there[:2]:
        net.train()
    images = np.abs(np.asarray(drawn) - other.cpu().numpy().transpose(0, 2, 3, 1)).max()
    print(f"largest difference of the same images: {images:.1e}, of the judgement: "
          f"{np.abs(np.asarray(judged) - opinion).max():.1e}")


if __name__ == "__main__":
    main()
