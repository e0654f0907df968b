"""Chebyshev convolution against torch_geometric's ChebConv and against torch's own autograd."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp
import torch

from meshgcn import chebyshev
from meshgcn.laplacian import adjacency, laplacian, largest_eigenvalue, scaled_laplacian
from tests.meshgcn.shapes import icosphere, two_spheres

pytestmark = pytest.mark.parity

INPUTS, OUTPUTS, BATCH = 3, 5, 2


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def ours(matrix, x, weights, g, dtype):
    """(value, gradient of x, gradient of the weights)."""
    with jax.enable_x64(dtype == np.float64):
        operator = chebyshev.operator_for(matrix, dtype=dtype)
        arrays = [jnp.asarray(a, dtype) for a in (x, weights, g)]
        value, back = jax.vjp(jax.jit(chebyshev.convolve), *arrays[:2], operator)
        return [np.asarray(a) for a in (value, *back(arrays[2])[:2])]


@pytest.mark.parametrize("count", [1, 3, 6])
@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-12), (np.float32, 1e-5)])
def test_against_torch_autograd(count, dtype, tolerance):
    matrix = scaled_laplacian(two_spheres(2), largest="exact")
    x, g = draw(0, matrix.shape[0], BATCH, INPUTS), draw(1, matrix.shape[0], BATCH, OUTPUTS)
    weights = draw(2, count, INPUTS, OUTPUTS) / (count * INPUTS)
    dense = torch.tensor(matrix.toarray())
    x_, w_ = torch.tensor(x, requires_grad=True), torch.tensor(weights, requires_grad=True)
    terms = [x_]
    for k in range(1, count):
        step = torch.einsum("uv,vbi->ubi", dense, terms[-1])
        terms.append(step if k == 1 else 2 * step - terms[-2])
    value = torch.einsum("kvbi,kio->vbo", torch.stack(terms), w_)
    value.backward(torch.tensor(g))
    expected = [value.detach().numpy(), x_.grad.numpy(), w_.grad.numpy()]
    for found, other in zip(ours(matrix, x, weights, g, dtype), expected, strict=True):
        np.testing.assert_allclose(found, other, atol=tolerance * max(1, np.abs(other).max()))


def geometric_layer(count, normalisation, edges, weights, edge_weights, largest, x, g, dtype):
    """torch_geometric's layer with our weights: (value, gradient of x)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit.script, used by it on import, is deprecated
        from torch_geometric import nn
    layer = nn.ChebConv(INPUTS, OUTPUTS, count, normalization=normalisation, bias=False)
    layer = layer.to(torch.float64 if dtype == np.float64 else torch.float32)
    with torch.no_grad():
        for linear, weight in zip(layer.lins, weights, strict=True):
            linear.weight.copy_(torch.tensor(weight.T))
    index = torch.tensor(np.concatenate([edges, edges[:, ::-1]]).T.copy(), dtype=torch.int64)
    both = None if edge_weights is None else torch.tensor(np.tile(edge_weights, 2).astype(dtype))
    x_ = torch.tensor(x.transpose(1, 0, 2).astype(dtype), requires_grad=True)
    bound = None if largest is None else torch.tensor(largest, dtype=x_.dtype)
    value = layer(x_, index, both, lambda_max=bound)
    value.backward(torch.tensor(g.transpose(1, 0, 2).astype(dtype)))
    assert x_.grad is not None
    return [a.detach().numpy().transpose(1, 0, 2) for a in (value, x_.grad)]


@pytest.mark.parametrize("normalisation", ["symmetric", "random_walk", "combinatorial"])
@pytest.mark.parametrize("count", [1, 3, 6])
@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-12), (np.float32, 1e-5)])
def test_against_torch_geometric(normalisation, count, dtype, tolerance):
    """Weighted edges and a vertex without neighbours; the largest eigenvalue is passed."""
    mesh = icosphere(1)
    edges = mesh.edges()
    size = len(mesh) + 1  # the last vertex is alone
    edge_weights = np.random.default_rng(3).uniform(0.5, 2, len(edges))
    graph = adjacency(edges, size, edge_weights)
    similar = "combinatorial" if normalisation == "combinatorial" else "symmetric"
    largest = largest_eigenvalue(laplacian(graph, similar))
    matrix = sp.csr_array(2 / largest * laplacian(graph, normalisation) - sp.eye_array(size))
    x, g = draw(0, size, BATCH, INPUTS), draw(1, size, BATCH, OUTPUTS)
    weights = draw(2, count, INPUTS, OUTPUTS) / (count * INPUTS)
    short = {"symmetric": "sym", "random_walk": "rw", "combinatorial": None}[normalisation]
    settings = (edges, weights, edge_weights, largest, x, g, dtype)
    expected = geometric_layer(count, short, *settings)
    for found, other in zip(ours(matrix, x, weights, g, dtype), expected, strict=False):
        np.testing.assert_allclose(found, other, atol=tolerance * max(1, np.abs(other).max()))


def test_torch_geometric_default_bound_is_two():
    mesh = two_spheres(1)
    matrix = scaled_laplacian(mesh)
    x, g = draw(0, len(mesh), BATCH, INPUTS), draw(1, len(mesh), BATCH, OUTPUTS)
    weights = draw(2, 4, INPUTS, OUTPUTS) / 12
    settings = (mesh.edges(), weights, None, None, x, g, np.float64)
    expected = geometric_layer(4, "sym", *settings)
    for found, other in zip(ours(matrix, x, weights, g, np.float64), expected, strict=False):
        np.testing.assert_allclose(found, other, atol=1e-12)
