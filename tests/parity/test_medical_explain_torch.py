"""Saliency, integrated gradients, Grad-CAM and occlusion against captum on the same weights."""

import warnings

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from medical.explain import grad_cam, gradients, occlusion
from tests.medical import small_net

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # captum's own, at import
    from captum import attr

pytestmark = pytest.mark.parity

CASES = [(0, 8, 1), (1, 12, 3), (2, 16, 1), (3, 12, 1), (4, 8, 3)]


class Torch(torch.nn.Module):
    """`small_net` in torch."""

    def __init__(self, params: small_net.Params):
        super().__init__()
        kernels = {k: torch.from_numpy(v.copy()) for k, v in params.items()}
        self.first = kernels["first"].permute(3, 2, 0, 1)
        self.second = kernels["second"].permute(3, 2, 0, 1)
        self.bias, self.dense = kernels["bias"], kernels["dense"]
        self.features = torch.nn.Identity()  # the layer that Grad-CAM looks at

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.nn.functional.conv2d(x, self.first, self.bias, padding=1)
        x = torch.nn.functional.softplus(x)
        x = torch.nn.functional.conv2d(x, self.second, stride=2, padding=1)
        x = self.features(torch.relu(x))
        pooled = x.mean((2, 3))
        return (pooled + pooled**2) @ self.dense


def setup(seed: int, size: int, channels: int):
    """Network in both, images and baseline in both layouts."""
    params = small_net.make(seed, channels)
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(3, size, size, channels)).astype(np.float32)
    baseline = rng.normal(size=images.shape).astype(np.float32)

    def score(x):
        return small_net.logits(params, x)[:, 1]

    return params, Torch(params), score, images, baseline


def to_torch(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(x.transpose(0, 3, 1, 2).copy())


def back(x: torch.Tensor) -> np.ndarray:
    return x.detach().numpy().transpose(0, 2, 3, 1)


@pytest.mark.parametrize("seed, size, channels", CASES)
def test_gradients_like_captum(seed, size, channels):
    _, net, score, images, baseline = setup(seed, size, channels)
    theirs = attr.Saliency(net).attribute(to_torch(images).requires_grad_(), target=1)
    np.testing.assert_allclose(gradients.saliency(score, jnp.asarray(images)), back(theirs),
                               rtol=0, atol=1e-5)
    for rule in ("gausslegendre", "riemann_trapezoid", "riemann_middle"):
        theirs = attr.IntegratedGradients(net).attribute(
            to_torch(images), to_torch(baseline), target=1, n_steps=50, method=rule)
        ours = gradients.integrated_gradients(
            score, jnp.asarray(images), jnp.asarray(baseline), 50, rule)
        # captum weighs n points by 1 / n with halves at the ends; that sums to (n - 1) / n.
        share = 49 / 50 if rule == "riemann_trapezoid" else 1.0
        np.testing.assert_allclose(ours * share, back(theirs), rtol=0, atol=1e-5)


@pytest.mark.parametrize("seed, size, channels", CASES[:3])
def test_grad_cam_like_captum(seed, size, channels):
    params, net, _, images, _ = setup(seed, size, channels)
    theirs = attr.LayerGradCam(net, net.features).attribute(
        to_torch(images), target=1, relu_attributions=True)
    found = small_net.features(params, jnp.asarray(images))
    ours = grad_cam.grad_cam(lambda f: small_net.head(params, f)[:, 1], found)
    np.testing.assert_allclose(ours, back(theirs)[..., 0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("window, stride", [(4, 4), (3, 2), (5, 3)])
def test_occlusion_like_captum(window, stride):
    _, net, score, images, baseline = setup(0, 8, 1)
    theirs = attr.Occlusion(net).attribute(
        to_torch(images), (1, window, window), (1, stride, stride), to_torch(baseline), target=1)
    ours = occlusion.occlusion(
        score, jnp.asarray(images), (window, window), (stride, stride), jnp.asarray(baseline))
    np.testing.assert_allclose(ours, back(theirs)[..., 0], rtol=0, atol=1e-5)
