"""Bilinear sampling of unprojection against torch's grid_sample, with gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from keypoints import unprojection

pytestmark = pytest.mark.parity


def test_bilinear_equals_grid_sample():
    maps = np.random.default_rng(0).normal(size=(2, 9, 13, 5)).astype(np.float32)
    pixels = np.random.default_rng(1).uniform(-2, 14, (400, 2)).astype(np.float32)
    tensor = torch.tensor(maps.transpose(0, 3, 1, 2), requires_grad=True)
    grid = torch.tensor(2 * pixels / [12, 8] - 1, dtype=torch.float32)
    sampled = torch.nn.functional.grid_sample(
        tensor, grid.expand(2, 1, -1, 2), align_corners=True, padding_mode="zeros")
    torch.sin(sampled).sum().backward()
    expected = sampled.detach().numpy()[:, :, 0].transpose(0, 2, 1)
    found = jax.jit(unprojection.bilinear)(maps, pixels)
    np.testing.assert_allclose(found, expected, atol=5e-5)
    gradient = jax.jit(
        jax.grad(lambda m: jnp.sum(jnp.sin(unprojection.bilinear(m, pixels)))))(maps)
    np.testing.assert_allclose(
        gradient, tensor.grad.numpy().transpose(0, 2, 3, 1), atol=5e-4)
