"""Monte Carlo cross-validation as one program, against a loop over trials in PyTorch.

    python benchmarks/meshgcn_cv.py [--trials 5] [--epochs 3] [--at_once 1]

Both train the network of configs/meshgcn.py (without dropout) with AdamW on the same synthetic
scans and splits, evaluate the validation scans after every epoch and all scans at the end. The
PyTorch loop uses hand-written sparse CSR products with a symmetric backward pass. This project's
time is given with and without compilation; wall and CPU seconds of the process.
"""

import argparse
import time
import warnings

import jax.numpy as jnp
import numpy as np
import torch
from torch import nn

from configs import meshgcn as meshgcn_config
from meshgcn import context, operators, train
from meshgcn.operators import Operator


def as_torch(operator: Operator, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The operator and its transpose as sparse CSR tensors."""
    matrix = operators.to_matrix(operator, columns)
    found = []
    for one in (matrix, matrix.T.tocsr()):
        parts = (torch.tensor(one.indptr), torch.tensor(one.indices))
        data = torch.tensor(one.data, dtype=torch.float32)
        found.append(torch.sparse_csr_tensor(*parts, data, one.shape))
    return found[0], found[1]


class Product(torch.autograd.Function):
    """Sparse times dense; the gradient is the transpose's product."""

    @staticmethod
    def forward(context, pair, dense):
        context.pair = pair
        return pair[0] @ dense

    @staticmethod
    def backward(context, gradient):
        return None, context.pair[1] @ gradient


class Conv(nn.Module):
    """Chebyshev convolution of [vertices, batch, channels]."""

    def __init__(self, inputs, outputs, terms):
        super().__init__()
        self.terms = terms
        self.weight = nn.Parameter(torch.randn(terms * inputs, outputs) / (terms * inputs) ** 0.5)

    def forward(self, x, pair):
        terms = [x.reshape(len(x), -1)]
        for k in range(1, self.terms):
            step = Product.apply(pair, terms[-1])
            terms.append(step if k == 1 else 2 * step - terms[-2])
        return torch.cat([t.reshape(x.shape) for t in terms], -1) @ self.weight


class Net(nn.Module):
    """The network of `meshgcn.models.MeshNet` with its defaults of configs/meshgcn.py."""

    def __init__(self, widths, terms, hidden, convolutions, pools, features):
        super().__init__()
        self.convolutions, self.pools = convolutions, pools
        inputs = [features, *widths[:-1]]
        self.first = nn.ModuleList(Conv(i, o, terms) for i, o in zip(inputs, widths, strict=True))
        self.second = nn.ModuleList(Conv(o, o, terms) for o in widths)
        self.norms = nn.ModuleList(nn.BatchNorm1d(o) for o in widths for _ in range(2))
        self.shortcuts = nn.ModuleList(
            nn.Identity() if i == o else nn.Linear(i, o, bias=False)
            for i, o in zip(inputs, widths, strict=True)
        )
        flat = convolutions[-1][0].shape[0] * widths[-1]
        self.head = nn.Sequential(nn.Linear(flat, hidden), nn.ReLU(), nn.Linear(hidden, 2))

    def forward(self, x):
        x = x.transpose(0, 1)
        for level, pair in enumerate(self.convolutions):
            if level:
                pooled = Product.apply(self.pools[level - 1], x.reshape(len(x), -1))
                x = pooled.reshape(-1, *x.shape[1:])
            y = torch.relu(self._norm(2 * level, self.first[level](x, pair)))
            y = self._norm(2 * level + 1, self.second[level](y, pair))
            x = torch.relu(y + self.shortcuts[level](x))
        return self.head(x.transpose(0, 1).reshape(x.shape[1], -1))

    def _norm(self, index, x):
        return self.norms[index](x.reshape(-1, x.shape[2])).reshape(x.shape)


def torch_trial(x, label, role, recipe, make) -> np.ndarray:
    """One trial; logits of all scans."""
    rows = [torch.tensor(np.flatnonzero(role == part)) for part in (0, 1)]
    mean, sd = x[rows[0]].mean(0), x[rows[0]].std(0, correction=0)
    x = (x - mean) * torch.where(sd > 1e-5, 1 / sd, 0.0)
    net = make()
    optimiser = torch.optim.AdamW(
        net.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    steps = len(rows[0]) // recipe.batch
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps * recipe.epochs)
    for _ in range(recipe.epochs):
        net.train()
        order = rows[0][torch.randperm(len(rows[0]))]
        for step in range(steps):
            chosen = order[step * recipe.batch : (step + 1) * recipe.batch]
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(x[chosen]), label[chosen]).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimiser.step()
            schedule.step()
        net.eval()
        with torch.no_grad():
            nn.functional.cross_entropy(net(x[rows[1]]), label[rows[1]])
    with torch.no_grad():
        return torch.cat([net(part) for part in x.split(recipe.eval_batch)]).numpy()


def timed(function) -> tuple[float, float]:
    """(wall, CPU) seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    function()
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--at_once", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config = meshgcn_config.get_config()
    config.network.dropout = 0.0
    config.train.epochs = options.epochs
    recipe = context.recipe(config, "residual")
    found = context.scans(config, context.conditions(config)[0])
    roles = context.roles_of(config, found, options.trials)
    levels, net = context.operators(config, "residual"), context.network(config, "residual")
    labels = np.tile(found.label, (options.trials, 1))
    x = jnp.asarray(found.x)

    def ours():
        seeds = np.arange(options.trials)
        train.fit_trials(net, recipe, seeds, roles, labels, x, levels, options.at_once)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "sparse CSR is in beta"
        sizes = [op.rows for op in levels.convolutions]
        convolutions = [as_torch(op, op.rows) for op in levels.convolutions]
        pools = [as_torch(op, n) for op, n in zip(levels.pools, sizes, strict=False)]
    settings = (config.network.widths, config.network.terms, config.network.hidden)
    scans, classes = torch.tensor(found.x), torch.tensor(found.label, dtype=torch.int64)

    def make():
        return Net(*settings, convolutions, pools, found.x.shape[2])

    def loop():
        for role in roles:
            torch_trial(scans, classes, role, recipe, make)

    first, warm, torches = timed(ours), timed(ours), timed(loop)
    print(
        f"{options.trials} trials, {options.epochs} epochs, {len(found.x)} scans of "
        f"{found.x.shape[1]} vertices"
    )
    print("| | wall, s | CPU, s |\n|---|---|---|")
    for name, times in (
        ("one program, with compilation", first),
        ("one program", warm),
        ("PyTorch, one trial after another", torches),
    ):
        print(f"| {name} | {times[0]:.1f} | {times[1]:.1f} |")
    print(
        f"ratio without compilation: wall {torches[0] / warm[0]:.2f}, CPU "
        f"{torches[1] / warm[1]:.2f}"
    )


if __name__ == "__main__":
    main()
