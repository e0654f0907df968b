"""Training steps of keypoint discovery per second, here and in plain PyTorch.

    python benchmarks/keypoints_step.py [--steps 3] [--rounds 3] [--voxels 24] [--pairs 4]
        [--variant gpu] [--device cuda]

The same network, optimiser and published losses at the sizes of `configs/keypoints.py`, or of one
of its variants. PyTorch is
written as the method reads: one `grid_sample` for each view, `conv3d`, `ConvTranspose3d`, group
norms. The two take turns on the same images, and the median of the rounds is printed. Compilation
is excluded. On a GPU both multiply by TensorFloat-32 (see timing.py).
"""

import argparse
import itertools
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import timing
import torch
from torch import nn
from torch.nn import functional

from configs import keypoints as keypoints_config
from keypoints import build, data, models, train, volume
from keypoints.models import KeypointNet, ModelConfig


def norm(channels: int) -> nn.Module:
    return nn.GroupNorm(channels // 8 if channels % 8 == 0 else 1, channels)


class Block(nn.Module):
    """Residual block in two or three dimensions."""

    def __init__(self, conv: type, inputs: int, outputs: int) -> None:
        super().__init__()
        self.one = nn.Sequential(conv(inputs, outputs, 3, 1, 1, bias=False), norm(outputs))
        self.two = nn.Sequential(conv(outputs, outputs, 3, 1, 1, bias=False), norm(outputs))
        self.short = nn.Identity()
        if inputs != outputs:
            self.short = nn.Sequential(conv(inputs, outputs, 1, bias=False), norm(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.short(x) + self.two(torch.relu(self.one(x))))


class TorchV2V(nn.Module):
    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        v = c.volume
        self.front = nn.Sequential(
            nn.Conv3d(c.features, v[0], c.front_kernel, 1, c.front_kernel // 2, bias=False),
            norm(v[0]), nn.ReLU())
        self.down = nn.ModuleList(
            Block(nn.Conv3d, v[max(0, i - 1)], v[i]) for i in range(len(v)))
        self.up = nn.ModuleList(
            nn.Sequential(nn.ConvTranspose3d(v[i + 1], v[i], 2, 2, bias=False), norm(v[i]),
                          nn.ReLU()) for i in range(len(v) - 1))
        self.merge = nn.ModuleList(norm(n) for n in v[:-1])
        self.last = nn.Conv3d(v[0], c.keypoints, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.level(self.front(x), 0))

    def level(self, x: torch.Tensor, i: int) -> torch.Tensor:
        x = self.down[i](x)
        if i + 1 == len(self.down):
            return x
        below = self.level(functional.max_pool3d(x, 2), i + 1)
        return torch.relu(self.merge[i](x + self.up[i](below)))


class TorchNet(nn.Module):
    """The network of `keypoints.models`, channels first."""

    def __init__(self, c: ModelConfig, rig: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.c, self.rig = c, rig
        inputs = (3, *c.encoder[:-1])
        self.halve = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 4, 2, 1, bias=False), norm(b), nn.ReLU())
            for a, b in zip(inputs, c.encoder, strict=True))
        self.blocks = nn.ModuleList(
            nn.Sequential(*(Block(nn.Conv2d, b, b) for _ in range(c.blocks if i else 0)))
            for i, b in enumerate(c.encoder))
        p = c.pyramid
        self.lateral = nn.ModuleList(
            nn.Sequential(nn.Conv2d(b, p, 1, bias=False), norm(p), nn.ReLU())
            for b in c.encoder[1:])
        self.topdown = nn.ModuleList(nn.Conv2d(p, p, 1, bias=False) for _ in c.encoder[2:])
        self.head = nn.Sequential(
            nn.Conv2d(p, p, 3, 1, 1, bias=False), norm(p), nn.ReLU(), nn.Conv2d(p, c.features, 1))
        self.v2v = TorchV2V(c)
        # With a map of either frame, unless the width of its lines is 0.
        widths = [
            a + 2 * (sigma > 0)
            for a, sigma in zip((c.encoder[-1], *c.decoder[:-1]), c.sigmas, strict=True)]
        self.decoder = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, 1, 1, bias=False), norm(b), nn.ReLU())
            for a, b in zip(widths, c.decoder, strict=True))
        last = c.decoder[-1]
        self.final = nn.Sequential(
            nn.Conv2d(last, last, 3, 1, 1, bias=False), norm(last), nn.ReLU(),
            nn.Conv2d(last, 1, 1))
        self.ends = torch.tensor(list(itertools.combinations(range(c.keypoints), 2)))
        self.skeleton = nn.Parameter(torch.randn(len(self.ends)))
        axis = (torch.arange(c.voxels) + 0.5) * 2 / c.voxels - 1
        self.grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)

    def project(self, points: torch.Tensor) -> torch.Tensor:
        """`[n, 3]` -> coordinates in [-1, 1] of every view, `[views, n, 2]`."""
        r = self.rig
        local = torch.einsum("vij,nj->vni", r["rotation"], points) + r["translation"][:, None]
        flat = local[..., :2] / local[..., 2:].clamp_min(1e-6)
        k = r["distortion"][:, None]
        r2 = (flat**2).sum(-1, keepdim=True)
        radial = 1 + r2 * (k[..., :1] + r2 * (k[..., 1:2] + r2 * k[..., 4:5]))
        pixels = torch.einsum("vij,vnj->vni", r["matrix"][:, :2, :2], flat * radial)
        return (2 * (pixels + r["matrix"][:, None, :2, 2]) + 1) / r["size"][:, None] - 1

    def forward(self, both: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Both frames of pairs `[2 * pairs, views, 3, h, w]` -> (keypoints, change)."""
        c, (frames, views) = self.c, both.shape[:2]
        x, features = 2 * both.flatten(0, 1) - 1, []
        for halve, blocks in zip(self.halve, self.blocks, strict=True):
            x = blocks(halve(x))
            features.append(x)
        top = self.lateral[-1](features[-1])
        for i in reversed(range(len(self.lateral) - 1)):
            wide = functional.interpolate(top, scale_factor=2, mode="bilinear")
            top = self.lateral[i](features[i + 1]) + self.topdown[i](wide)
        maps = self.head(top).unflatten(0, (frames, views))
        places = self.project(self.grid)
        sampled = []
        for view in range(views):
            grid = places[view].expand(frames, 1, -1, 2)
            sampled.append(functional.grid_sample(maps[:, view], grid, align_corners=False))
        values = torch.stack(sampled, 1)
        inside = (places.abs() <= 1).all(-1)[None, :, None, None]
        weights = values.masked_fill(~inside, -torch.inf).softmax(1).nan_to_num()
        lifted = (weights * values).sum(1).unflatten(-1, (c.voxels,) * 3).squeeze(2)
        logits = self.v2v(lifted).flatten(2)
        points = logits.softmax(-1) @ self.grid
        appearance = features[-1].unflatten(0, (frames, views))[: frames // 2].flatten(0, 1)
        place = self.project(points.reshape(-1, 3)).unflatten(1, (frames, c.keypoints))
        place = place.transpose(0, 1).reshape(2, -1, c.keypoints, 2).clamp(-4, 4)
        x = appearance
        for level, sigma in enumerate(c.sigmas):
            if level:
                x = functional.interpolate(x, scale_factor=2, mode="bilinear")
            if sigma:
                drawn = torch.stack([self.draw(half, x.shape[-2:], sigma) for half in place], 1)
                x = torch.cat([x, drawn], 1)
            x = self.decoder[level](x)
        change = self.final(x)[:, 0].unflatten(0, (frames // 2, views))
        return points, change

    def draw(self, points: torch.Tensor, shape: torch.Size, sigma: float) -> torch.Tensor:
        axis = [(2 * (torch.arange(n) + 0.5) - n) / max(shape) for n in shape]
        pixels = torch.stack(torch.meshgrid(axis[1], axis[0], indexing="xy"), -1).reshape(-1, 2)
        start = points[:, self.ends[:, 0], None]
        along = points[:, self.ends[:, 1], None] - start
        offset = pixels - start
        share = (offset * along).sum(-1) / (along**2).sum(-1).clamp_min(1e-12)
        square = ((offset - share.clamp(0, 1)[..., None] * along) ** 2).sum(-1)
        weight = functional.softplus(self.skeleton)[:, None]
        return (weight * torch.exp(-square / (2 * sigma**2))).amax(1).unflatten(1, shape)


def blur(x: torch.Tensor, sigma: float) -> torch.Tensor:
    radius = int(np.ceil(3.3 * sigma))
    kernel = torch.exp(-(torch.arange(-radius, radius + 1) ** 2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(x.shape[1], 1, 1, -1)
    x = functional.pad(x, (radius,) * 4, mode="replicate")
    x = functional.conv2d(x, kernel, groups=x.shape[1])
    return functional.conv2d(x, kernel.transpose(2, 3), groups=x.shape[1])


def torch_target(first: torch.Tensor, second: torch.Tensor, recipe: train.Recipe, stride: int):
    x, y = first.flatten(0, 1) - 0.5, second.flatten(0, 1) - 0.5
    mx, my, xx, yy, xy = blur(torch.cat([x, y, x * x, y * y, x * y], 1), recipe.window).chunk(5, 1)
    structure = (2 * (xy - mx * my) + 9e-4) / (xx - mx**2 + yy - my**2 + 9e-4)
    change = blur((1 - structure).mean(1, keepdim=True), recipe.smooth)
    return functional.avg_pool2d(change, stride)[:, 0].unflatten(0, first.shape[:2])


def torch_step(net, optimiser, first, second, running, recipe):
    target = torch_target(first, second, recipe, net.c.change_stride)
    points, change = net(torch.cat([first, second]))
    i, j = net.ends.T
    length = (points[:, i] - points[:, j]).norm(dim=-1)
    active = (net.skeleton > 0).float()
    scale = (active * running**2).sum() / active.sum().clamp_min(1)
    consistency = (active * ((length - running) ** 2).mean(0)).sum() / active.sum().clamp_min(1)
    loss = ((change - target) ** 2).sum() / (target**2).sum()
    loss = loss + torch.exp(-(length**2) / (2 * recipe.separation_sigma**2)).mean()
    loss = loss + recipe.length * consistency / (scale + 1e-4)
    optimiser.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(net.parameters(), recipe.clip)
    optimiser.step()
    running.mul_(0.95).add_(0.05 * length.detach().mean(0))
    return loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("steps", 3), ("rounds", 3), ("voxels", 24), ("pairs", 4), ("size", 64)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--variant", default="", help="sets voxels, pairs, size and all widths")
    timing.add_device(parser)
    options = parser.parse_args()
    timing.prepare(options.device)
    config = ModelConfig(voxels=options.voxels, sigmas=(0.3, 0.2, 0.1, 0.06))
    if options.variant:
        chosen = keypoints_config.get_config(options.variant)
        config, options.size = build.model_config(chosen), chosen.data.size
        options.voxels, options.pairs = config.voxels, chosen.train.batch_size
    rig = data.ring(4, options.size, (0.0, 0.0, 60.0), 750.0)
    cube = volume.from_frustums(rig.cameras)
    cameras = cube.cameras(rig.cameras)
    recipe = train.Recipe(num_steps=1000, view_dropout=0.0, length_start=0, length_ramp=1)
    shape = (options.pairs, 4, options.size, options.size, 3)
    images = np.random.default_rng(0).integers(0, 256, (2, *shape)).astype(np.uint8)

    model = KeypointNet(config)
    on_device = data.on_device(cameras)
    params = models.init(model, jax.random.key(0), (options.size, options.size), on_device)
    state = train.init_state(params, recipe)
    batch = {"first": jnp.asarray(images[0]), "second": jnp.asarray(images[1])}
    step = jax.jit(train.make_train_step(model, recipe, on_device), donate_argnums=0)
    compiled = step.lower(state, batch, jax.random.key(0)).compile()
    held = [state]

    torch.set_default_device(options.device)
    fields = ("matrix", "distortion", "rotation", "translation", "size")
    tensors = {
        n: torch.tensor(np.asarray(getattr(cameras, n)), dtype=torch.float32) for n in fields}
    net = TorchNet(config, tensors)
    adam = torch.optim.Adam(net.parameters(), recipe.learning_rate, (0.9, 0.99))
    first, second = (
        torch.tensor(x).permute(0, 1, 4, 2, 3).float() / 255 for x in images)
    running = torch.ones(len(net.ends))

    def run_here() -> float:
        for index in range(options.steps):
            held[0], metrics = compiled(held[0], batch, jax.random.key(index))
        return float(metrics["loss"])

    def run_torch() -> float:
        for _ in range(options.steps):
            loss = torch_step(net, adam, first, second, running, recipe)
        return loss.item()

    sizes = [sum(x.size for x in jax.tree.leaves(params)), sum(p.numel() for p in net.parameters())]
    memory = compiled.memory_analysis().temp_size_in_bytes / 2**20
    print(f"{shape}, {options.voxels}^3 voxels; parameters here {sizes[0]}, PyTorch {sizes[1]}")
    print(f"{timing.devices(options.device)}; {memory:.0f} MiB of temporaries here")
    runs = {"here": run_here, "PyTorch": run_torch}
    times: dict[str, list[float]] = {name: [] for name in runs}
    timing.my_turn()
    for round_ in range(options.rounds + 1):
        for name, function in runs.items():
            start = time.perf_counter()
            function()
            if round_:  # the first warms up
                times[name].append((time.perf_counter() - start) / options.steps)
    for name, values in times.items():
        print(f"  {name}: {statistics.median(values):.4f} s a step (median of {len(values)})")
    timing.print_memory(options.device)


if __name__ == "__main__":
    main()
