"""Monte Carlo cross-validation as one program, against loops over trials in PyTorch.

    python benchmarks/meshgcn_cv.py [--trials 25] [--epochs 2] [--route gather] [--at_once 1]
        [--device cuda]

All train the network of configs/meshgcn.py (without dropout) with AdamW on the same synthetic scans
and splits, evaluate the validation scans after every epoch and all scans at the end. The rivals
take one trial after another: with hand-written sparse CSR products and a symmetric backward pass,
and with torch_geometric's ChebConv. Before anything is timed all networks get the same weights and
must give the same logits. Rivals run `--csr_trials` and `--geometric_trials` trials; their times
are scaled to all trials, which take equally long. This project's time is given with and without
compilation; wall and CPU seconds of the process. With --threads 1 run it on one core
(`taskset -c 1`) and set XLA_FLAGS=--xla_cpu_multi_thread_eigen=false. On a GPU (--at_once 25) all
multiply by TensorFloat-32 (see timing.py), except in the comparison of logits.
"""

import argparse
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import timing
import torch
from torch import nn

from configs import meshgcn as meshgcn_config
from meshgcn import context, evaluate, operators, train
from meshgcn.operators import Operator


def as_torch(operator: Operator, columns: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The operator and its transpose as sparse CSR tensors."""
    matrix = operators.to_matrix(operator, columns)
    found = []
    for one in (matrix, matrix.T.tocsr()):
        parts = (torch.tensor(one.indptr), torch.tensor(one.indices))
        data = torch.tensor(one.data, dtype=torch.float32)
        found.append(torch.sparse_csr_tensor(*parts, data, one.shape).to(device))
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


def multiply(pair, x):
    """Sparse times [vertices, batch, channels]."""
    return Product.apply(pair, x.reshape(len(x), -1)).reshape(-1, *x.shape[1:])


class CsrConv(nn.Module):
    """Chebyshev convolution of [vertices, batch, channels] by sparse CSR products."""

    def __init__(self, inputs, outputs, terms, bias, level):
        super().__init__()
        self.terms, self.pair = terms, level["pair"]
        self.weight = nn.Parameter(torch.empty(terms * inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def load(self, kernel, bias):
        """Takes `kernel [terms, inputs, outputs]` and `bias`."""
        self.weight.copy_(kernel.reshape(-1, kernel.shape[2]))
        if self.bias is not None:
            self.bias.copy_(bias)

    def forward(self, x):
        terms = [x.reshape(len(x), -1)]
        for k in range(1, self.terms):
            step = Product.apply(self.pair, terms[-1])
            terms.append(step if k == 1 else 2 * step - terms[-2])
        y = torch.cat([t.reshape(x.shape) for t in terms], -1) @ self.weight
        return y if self.bias is None else y + self.bias


class GeometricConv(nn.Module):
    """The same by torch_geometric."""

    def __init__(self, inputs, outputs, terms, bias, level):
        super().__init__()
        from torch_geometric.nn import ChebConv

        self.edges = level["edges"]
        self.layer = ChebConv(inputs, outputs, terms, bias=bias)

    def load(self, kernel, bias):
        """Takes `kernel [terms, inputs, outputs]` and `bias`."""
        for linear, weight in zip(self.layer.lins, kernel, strict=True):
            linear.weight.copy_(weight.T)
        if self.layer.bias is not None:
            self.layer.bias.copy_(bias)

    def forward(self, x):
        return self.layer(x.transpose(0, 1), self.edges).transpose(0, 1)


class Net(nn.Module):
    """The network of configs/meshgcn.py: a stem, one residual block on the next level, regions.

    Starts from the variables of the same network in JAX.
    """

    def __init__(self, conv, settings, levels, pool, regions, features, variables):
        super().__init__()
        (width,), stem, terms = settings.widths, settings.stem, settings.terms
        assert stem == width and settings.head == "regions" and settings.preact
        self.pool, self.regions = pool, regions
        self.stem = conv(features, stem, terms, True, levels[0])
        self.convolutions = nn.ModuleList(conv(stem, width, terms, False, levels[1]) for _ in "12")
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for _ in "12")
        self.hidden = nn.Linear(regions[0].shape[0] * width, settings.hidden)
        self.logits = nn.Linear(settings.hidden, 2)
        params = jax.tree.map(lambda leaf: torch.tensor(np.array(leaf)), variables["params"])
        with torch.no_grad():
            self.stem.load(params["stem"]["kernel"], params["stem"]["bias"])
            for index, layer in enumerate(self.convolutions):
                layer.load(params["block1"][f"MeshConv_{index}"]["kernel"], None)
            for name in ("hidden", "logits"):
                getattr(self, name).weight.copy_(params[name]["kernel"].T)
                getattr(self, name).bias.copy_(params[name]["bias"])

    def forward(self, x):
        x = multiply(self.pool, self.stem(x.transpose(0, 1)))
        y = x
        for layer, norm in zip(self.convolutions, self.norms, strict=True):
            y = layer(torch.relu(norm(y.reshape(-1, y.shape[2])).reshape(y.shape)))
        y = multiply(self.regions, x + y)
        y = y.transpose(0, 1).reshape(y.shape[1], -1)
        return self.logits(torch.relu(self.hidden(y)))


def torch_trial(x, label, role, recipe, net) -> np.ndarray:
    """One trial; the difference of the logits of all scans."""
    rows = [torch.tensor(np.flatnonzero(role == part), device=x.device) for part in (0, 1)]
    mean, sd = x[rows[0]].mean(0), x[rows[0]].std(0, correction=0)
    x = (x - mean) * torch.where(sd > 1e-5, 1 / sd, 0.0)
    rate = recipe.learning_rate
    optimiser = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=recipe.weight_decay)
    steps = len(rows[0]) // recipe.batch
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimiser, steps * recipe.epochs, rate / 100
    )
    for _ in range(recipe.epochs):
        net.train()
        order = rows[0][torch.randperm(len(rows[0]), device=x.device)]
        for step in range(steps):
            chosen = order[step * recipe.batch : (step + 1) * recipe.batch]
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(x[chosen]), label[chosen]).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimiser.step()
            schedule.step()
        net.eval()
        with torch.no_grad():
            for part in rows[1].split(recipe.eval_batch):
                nn.functional.cross_entropy(net(x[part]), label[part])
    with torch.no_grad():
        logits = torch.cat([net(part) for part in x.split(recipe.eval_batch)]).cpu().numpy()
    return logits[:, 1] - logits[:, 0]


def timed(function):
    """(wall seconds, CPU seconds, result)."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = function()
    return time.perf_counter() - wall, time.process_time() - cpu, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=25)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--at_once", type=int, default=1)
    parser.add_argument("--route", default="gather", choices=("gather", "bcsr"))
    parser.add_argument("--csr_trials", type=int, default=25)
    parser.add_argument("--geometric_trials", type=int, default=5)
    parser.add_argument("--subjects", type=int, default=400)
    parser.add_argument("--template", default="fsaverage4")
    parser.add_argument("--threads", type=int, default=1)
    timing.add_device(parser)
    options = parser.parse_args()
    device = options.device
    timing.prepare(device, options.threads)
    config = meshgcn_config.get_config()
    config.mesh.template = options.template
    config.cohort.people.subjects = options.subjects
    config.network.dropout, config.train.epochs = 0.0, options.epochs
    levels = context.operators(config, "residual")
    brain, net = context.template_of(config), context.network(config, "residual")
    recipe = context.recipe(config, "residual")
    found = context.scans(config, context.conditions(config)[1])
    roles = context.roles_of(config, found, options.trials)
    labels, x = np.tile(found.label, (options.trials, 1)), jnp.asarray(found.x)
    scans = torch.tensor(found.x, device=device)
    classes = torch.tensor(found.label, dtype=torch.int64, device=device)

    warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
    warnings.filterwarnings("ignore", message="`torch.jit.script", category=DeprecationWarning)
    torch_levels = []
    for operator in levels.convolutions:
        matrix = operators.to_matrix(operator, operator.rows).tocoo()
        edges = torch.tensor(np.stack([matrix.row, matrix.col]), dtype=torch.int64, device=device)
        pair = as_torch(operator, operator.rows, device)
        torch_levels.append({"pair": pair, "edges": edges})
    pool = as_torch(levels.pools[0], len(brain.mesh), device)
    regions = as_torch(levels.regions[1], levels.convolutions[1].rows, device)
    variables = net.init(jax.random.key(0), x[:1], levels)

    def rival(conv):
        settings = (config.network, torch_levels, pool, regions, x.shape[2], variables)
        return Net(conv, *settings).to(device)

    with timing.exact():
        expected = np.asarray(net.apply(variables, x[:4], levels))
    for conv in (CsrConv, GeometricConv):
        with torch.no_grad(), timing.exact():
            difference = np.abs(rival(conv).eval()(scans[:4]).cpu().numpy() - expected).max()
        if difference > 1e-4:
            raise SystemExit(f"{conv.__name__}: logits differ by {difference:.1e}")

    config.operators.route = options.route
    levels = context.operators(config, "residual")

    def ours():
        seeds = np.arange(options.trials)
        fitted = train.fit_trials(net, recipe, seeds, roles, labels, x, levels, options.at_once)
        return fitted.logits[..., 1] - fitted.logits[..., 0]

    def loop(conv, count):
        return [torch_trial(scans, classes, role, recipe, rival(conv)) for role in roles[:count]]

    def area(scores):
        tests = zip(scores, roles, strict=False)
        found_ = [evaluate.auc(s[r == 2], found.label[r == 2] == 1) for s, r in tests]
        return np.mean(found_)

    counts = [min(n, options.trials) for n in (options.csr_trials, options.geometric_trials)]
    print(
        f"{options.trials} trials, {options.epochs} epochs, {len(found.x)} scans of "
        f"{found.x.shape[1]} vertices, route {options.route}, {options.at_once} at once; "
        f"{timing.devices(device)}"
    )
    timing.my_turn()
    print("| | wall, s | CPU, s | trials run | mean test AUC |\n|---|---|---|---|---|", flush=True)
    taken = []
    for name, count, function in (
        ("one program, with compilation", options.trials, ours),
        ("one program", options.trials, ours),
        ("PyTorch loop, sparse CSR by hand", counts[0], lambda: loop(CsrConv, counts[0])),
        ("PyTorch loop, torch_geometric", counts[1], lambda: loop(GeometricConv, counts[1])),
    ):
        wall, cpu, scores = timed(function)
        taken.append(np.array([wall, cpu]) * options.trials / count)
        cells = f"{taken[-1][0]:.2f} | {taken[-1][1]:.2f} | {count} | {area(scores):.3f}"
        print(f"| {name} | {cells} |", flush=True)
    for name, times in (("CSR by hand", taken[2]), ("torch_geometric", taken[3])):
        first, warm = times / taken[0], times / taken[1]
        print(
            f"{name}: {warm[0]:.2f} times as long (CPU {warm[1]:.2f}), "
            f"{first[0]:.2f} with compilation (CPU {first[1]:.2f})"
        )
    timing.print_memory(device)


if __name__ == "__main__":
    main()
