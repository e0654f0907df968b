"""One Chebyshev layer on fsaverage5: this project's routes against PyTorch.

    python benchmarks/meshgcn_layer.py [--batch 8] [--threads 1] [--rounds 7] [--device cuda]

Rivals: a hand-written layer on `torch.sparse_csr_tensor` with a symmetric backward pass, and
torch_geometric's ChebConv. Float32, 16 channels to 32, gradients with respect to
input and weights for all. The rivals take turns in every round; the smallest time of all rounds is
printed. CPU seconds are those of the whole process, which tell more than wall time on a busy
machine. With --threads 1 run it on one core (`taskset -c 1`) and set
XLA_FLAGS=--xla_cpu_multi_thread_eigen=false. On a GPU all multiply by TensorFloat-32 (see
timing.py), except in the comparison of their values.
"""

import argparse
import time
import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import timing
import torch

from meshgcn import chebyshev, templates
from meshgcn.laplacian import scaled_laplacian

INPUTS, OUTPUTS = 16, 32


def ours(matrix, route, x, weights, g) -> tuple[Callable, Callable, np.ndarray]:
    """(forward, forward and backward, value) of a route of this project."""
    operator = chebyshev.operator_for(matrix, route)
    arguments = (jnp.asarray(x), jnp.asarray(weights))
    forward = jax.jit(lambda x, w, op: chebyshev.convolve(x, w, op))

    @jax.jit
    def both(x, w, op, g):
        value, back = jax.vjp(lambda x, w: chebyshev.convolve(x, w, op), x, w)
        return value, back(g)

    cotangent = jnp.asarray(g)
    with timing.exact():
        value = np.asarray(forward(*arguments, operator))
    return (
        lambda: jax.block_until_ready(forward(*arguments, operator)),
        lambda: jax.block_until_ready(both(*arguments, operator, cotangent)),
        value,
    )


def torch_csr(matrix, x, weights, g, device) -> tuple[Callable, Callable, np.ndarray]:
    """The same by hand in PyTorch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "sparse CSR is in beta"
        parts = (torch.tensor(matrix.indptr), torch.tensor(matrix.indices))
        data = torch.tensor(matrix.data, dtype=torch.float32)
        sparse = torch.sparse_csr_tensor(*parts, data, matrix.shape).to(device)

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(context, dense):
            return sparse @ dense

        @staticmethod
        def backward(context, gradient):
            return sparse @ gradient

    count = len(weights)
    x_, w_, g_ = (
        torch.tensor(array, device=device)
        for array in (x, weights.reshape(count * INPUTS, OUTPUTS), g.reshape(-1, OUTPUTS))
    )
    x_.requires_grad_(), w_.requires_grad_()

    def layer():
        terms = [x_.reshape(len(x), -1)]
        for k in range(1, count):
            step = Product.apply(terms[-1])
            terms.append(step if k == 1 else 2 * step - terms[-2])
        stacked = torch.cat([t.reshape(*x.shape) for t in terms], -1)
        return stacked.reshape(-1, count * INPUTS) @ w_

    def forward():
        with torch.no_grad():
            return layer()

    def both():
        x_.grad = w_.grad = None
        layer().backward(g_)

    with timing.exact():
        value = forward().cpu().numpy().reshape(g.shape)
    return forward, both, value


def geometric(mesh, x, weights, g, device) -> tuple[Callable, Callable, np.ndarray]:
    """torch_geometric's layer, [batch, vertices, channels]."""
    from torch_geometric.nn import ChebConv

    layer = ChebConv(INPUTS, OUTPUTS, len(weights), bias=False)
    with torch.no_grad():
        for linear, weight in zip(layer.lins, weights, strict=True):
            linear.weight.copy_(torch.tensor(weight.T))
    layer = layer.to(device)
    edges = mesh.edges()
    index = torch.tensor(np.concatenate([edges, edges[:, ::-1]]).T.copy(), dtype=torch.int64)
    index = index.to(device)
    x_, g_ = (torch.tensor(array.transpose(1, 0, 2), device=device) for array in (x, g))
    x_.requires_grad_()

    def forward():
        with torch.no_grad():
            return layer(x_, index)

    def both():
        x_.grad = None
        layer.zero_grad()
        layer(x_, index).backward(g_)

    with timing.exact():
        value = forward().cpu().numpy().transpose(1, 0, 2)
    return forward, both, value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    timing.add_device(parser)
    options = parser.parse_args()
    device = options.device
    timing.prepare(device, options.threads)
    mesh = templates.fsaverage("fsaverage5").mesh.split()[0]
    matrix = scaled_laplacian(mesh)
    random = np.random.default_rng(0)
    x = random.normal(size=(len(mesh), options.batch, INPUTS)).astype(np.float32)
    g = random.normal(size=(len(mesh), options.batch, OUTPUTS)).astype(np.float32)
    print(f"{len(mesh)} vertices, batch {options.batch}, {INPUTS} -> {OUTPUTS} channels; "
          f"{timing.devices(device)}")
    print("| K | layer | forward CPU ms | wall | both CPU ms | wall |\n|---|---|---|---|---|---|")
    for count in (3, 6):
        weights = random.normal(size=(count, INPUTS, OUTPUTS)).astype(np.float32) / 10
        rivals = {f"this project, {r}": ours(matrix, r, x, weights, g) for r in ("gather", "bcsr")}
        rivals["torch CSR"] = torch_csr(matrix, x, weights, g, device)
        rivals["torch_geometric ChebConv"] = geometric(mesh, x, weights, g, device)
        expected = rivals["torch CSR"][2]
        best = {name: np.full(4, np.inf) for name in rivals}
        for name, (_, _, value) in rivals.items():
            if np.abs(value - expected).max() > 1e-4:
                raise SystemExit(f"{name}: differs by {np.abs(value - expected).max():.1e}")
        for forward, both, _ in rivals.values():  # compiles, warms up
            forward(), both()
        timing.wait(device)
        if count == 3:  # the first
            timing.my_turn()
        for _ in range(options.rounds):
            for name, (forward, both, _) in rivals.items():
                for place, function in enumerate((forward, both)):
                    cpu, wall = time.process_time(), time.perf_counter()
                    function()
                    timing.wait(device)
                    taken = (time.process_time() - cpu, time.perf_counter() - wall)
                    now = best[name][2 * place : 2 * place + 2]
                    best[name][2 * place : 2 * place + 2] = np.minimum(now, taken)
        for name, times in best.items():
            cells = " | ".join(f"{1000 * t:.2f}" for t in times)
            print(f"| {count} | {name} | {cells} |", flush=True)
    timing.print_memory(device)


if __name__ == "__main__":
    main()
